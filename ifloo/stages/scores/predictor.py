"""The engine as a LightningModule: `Trainer.predict` goes through the training data and scores each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ifloo.attribution import Certificate, Directions, InfluenceEngine, Scores
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Batch, Objective, Stationarity, preflight
from ifloo.objective.augmentation import warn_of_augmentation
from ifloo.objective.batches import batch_size, slice_batch, to_device
from ifloo.objective.id_rule import IdRule, IdSetting
from ifloo.objective.ids import identified_queries, query_ids
from ifloo.objective.loaders import sequential
from ifloo.objective.protocol import states_losses
from ifloo.stages.certificate.examined_run import ExaminedRun, objective_certificate
from ifloo.stages.certificate.run_certificate import CertificateRequest
from ifloo.stages.distributed.process_group import ProcessGroup
from ifloo.stages.isolation import detached
from ifloo.stages.scores.engine_choice import engine_for
from ifloo.stages.scores.queries import samples_for
from ifloo.stages.settings import AttributionSettings

log = logging.getLogger(__name__)
SOLVED_TOGETHER = 16  # queries that one process solves for together: the same products as in a single process


@dataclass(frozen=True)
class ScoredBlock:
    """Scores of a block of queries on the host.

    Attributes:
        scores: Scores of all n training samples, rounded if the block has fewer bits.
        mean: Means of the scores before rounding, `[m]`, float64.
    """

    scores: Scores
    mean: Float[Tensor, " m"]


class InfluencePredictor(L.LightningModule):
    """Scores samples of the training data, or of any loader given to `predict`, against the present queries.

    `trainer.predict(InfluencePredictor(module, train_loader, queries=batch), dataloaders)` returns scores `[m, b]` for
    each batch, in order. The score of a sample outside the training data is the derivative in its weight if it were
    added to J with the weight of a training sample: −(1/n) ∇L_t·H⁻¹∇ℓ, n the number of training samples.

    Attributes:
        queries: Batch of test samples to explain; set before each predict run.
        directions: Solutions H⁻¹∇L_t of those queries, set at the start of a run.
        stationarity: |∇J| and the share of one sample, as preflight measured them.
        right_hand_sides: Number of queries in all runs together, for a solver that chooses by cost.
        objective_request: Fit against which J is checked; a caller that knows more of the fit replaces it.
        world: Processes that share the training samples; each also solves for its share of the queries.
    """

    def __init__(
        self,
        module: L.LightningModule,
        loader: DataLoader[Batch],
        settings: AttributionSettings | None = None,
        right_hand_sides: int | None = None,
        queries: Batch = None,
        ids: IdSetting = "auto",
        accept_objective: bool = False,
    ) -> None:
        """Wraps a module.

        Args:
            module: Module with `sample_losses` and `penalty`, or any LightningModule (see `Adapted`); its weights
                are θ̂.
            loader: Loader of the training data. Its batches matter as far as they are those of the fit: a plain
                module without its Trainer is taken as fitted in shuffled batches of this size, which matters where
                training steps weigh samples; of a module with stated losses neither order nor size matters.
            settings: Settings of the attribution, whose `test_ids` are not used; None: the defaults.
            right_hand_sides: Number of queries and other solves in all; None: the number of queries.
            queries: Batch of test samples, with or without ids.
            ids: Setting of the ids of training samples and queries: `auto` (see `IdRule`), `third` or `positions`.
            accept_objective: Whether scores are computed though the gradient of a training step differs from that of J
                for an unexplained reason.

        Raises:
            InputError: The settings name a method other than the curvature, or the module has no loss to score.
        """
        super().__init__()
        settings = settings or AttributionSettings()
        if queries is not None:
            _refuse_other_methods(settings)
        module = module if states_losses(module) else Adapted(module)
        # A copy if the precision differs, so that the caller's module stays as it was.
        self.module = detached(module).to(settings.torch_dtype) if settings.torch_dtype else module
        self.loader, self.settings, self.ids = loader, settings, ids
        self.queries = queries
        count = 1 if queries is None else batch_size(queries)
        self.right_hand_sides = count if right_hand_sides is None else right_hand_sides
        self.directions: Directions | None = None
        self.stationarity: Stationarity | None = None
        request = CertificateRequest.of(module, loader, settings.parameters)
        self.objective_request = replace(request, accept=accept_objective, dtype=settings.torch_dtype)
        self._examined: ExaminedRun | None = None
        self.world = ProcessGroup()
        self._failure: Exception | None = None  # error of this process in a run, raised at the end of the pass
        self._engine: InfluenceEngine | None = None

    @property
    def engine(self) -> InfluenceEngine:
        """The engine that `build_engine` built; every run of `predict` calls it.

        Raises:
            InputError: If it is not built yet.
        """
        if self._engine is None:
            raise InputError(
                "This InfluencePredictor has no engine yet.\n"
                "  Call build_engine() first; a run of trainer.predict(predictor) builds it too."
            )
        return self._engine

    def own_rows(self) -> slice:
        """Returns the positions of the training samples this process scores.

        A property that runs code of the user, such as `__len__` of a dataset, would lose an AttributeError of it: that
        of an nn.Module comes out as the absence of the property.
        """
        return self.world.share(self.engine.objective.n)

    def assume(self, examined: ExaminedRun) -> None:
        """Sets what is known of J and the training step, which is then not examined again."""
        self._examined = examined

    def examined(self) -> ExaminedRun:
        """Holds J against the training step, once; logs the outcome.

        Raises:
            InputError: The two differ for an unexplained reason, and this is not accepted.
        """
        if self._examined is None:
            self._examined = objective_certificate(self.objective_request)
        return self._examined

    def build_engine(self, right_hand_sides: int | None = None) -> InfluenceEngine:
        """Checks the premises of influence at the weights and builds the engine, once; the module is on its device.

        Args:
            right_hand_sides: Number of solves to come, for a solver that chooses by cost; None: the attribute's.

        Raises:
            InputError: No loss of this model can be scored with these settings.
        """
        if self._engine is None:
            settings, count = self.settings, right_hand_sides or self.right_hand_sides
            warn_of_augmentation(self.loader)
            found, loader = self.examined(), sequential(self.loader, settings.batch_size, ids=self.ids)
            objective = Objective.of(self.module, loader, settings.parameters, settings.batch_size)
            objective = found.weighed(objective)
            theta = objective.losses.theta()
            self.stationarity = preflight(objective, theta, found.certificate)
            if self.stationarity.warning:
                log.warning(self.stationarity.warning)
            for note in objective.losses.notes:
                log.warning("%s.", note)
            self._engine = engine_for(objective, theta, settings, count, self.world.first)
        return self._engine

    def share_runs(self, world: ProcessGroup, right_hand_sides: int) -> None:
        """Sets what the runs to come have in common.

        Args:
            world: Processes that share the training samples.
            right_hand_sides: Number of solves in all runs together.
        """
        self.world, self.right_hand_sides = world, right_hand_sides

    def explain(self, queries: Batch, trainer: L.Trainer) -> None:
        """Scores the training samples against a batch of test samples; the Trainer's `InfluenceWriter` delivers them.

        Raises:
            SolveError: A solve that cannot be used.
        """
        self.queries = queries
        trainer.predict(self, return_predictions=False)

    def raise_failure(self) -> None:
        """Raises the error that stopped the scoring of this process in the present run, if one did."""
        if self._failure is not None:
            raise self._failure

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Returns the training samples of this process in chunks; called when the module is on its device."""
        with self.world.raise_together():
            engine = self.build_engine()
            # Lightning skips a run without batches, hooks included: a process without samples scores one dummy sample,
            # whose result is dropped.
            own = self.own_rows()
            own = own if own.start < own.stop else slice(0, 1)
            loader = engine.products.loader(None if self.world.size == 1 else own)
            # Lightning reads the position of each batch in the dataset, which a loader without batches lacks.
            batched = loader.batch_sampler is not None
            return loader if batched else DataLoader(loader.dataset, batch_size=1, collate_fn=_only)

    def on_predict_start(self) -> None:
        """Solves for the directions; the rest of the run is one pass over the data.

        Raises:
            InputError: `queries` is None.
            SolveError: A solve failed.
        """
        if self.queries is None:
            raise InputError(
                "InfluencePredictor has no queries: nothing to score against.\n"
                "  Give it a batch of test samples: InfluencePredictor(module, train_loader, queries=batch)."
            )
        self.directions, self._failure = None, None
        engine, world = self.build_engine(), self.world
        self.queries = samples_for(engine.objective.losses, self.queries)
        m = batch_size(self.queries)
        own = world.share(m, SOLVED_TOGETHER)
        solved: Directions | None = None
        with world.raise_together():
            queries = identified_queries(self.queries, IdRule(self.ids))
            queries = to_device(queries, engine.theta.device, engine.theta.dtype)
            if own.start < own.stop:
                with solver_progress(engine, world.first):
                    solved = engine.directions(queries if world.size == 1 else slice_batch(queries, own))
        self.directions = solved if world.size == 1 else self._of_all(solved, m)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.directions is not None
        if self._failure is None:
            try:
                return _finite(self.engine.of(self.directions, batch), batch_idx)
            except Exception as error:
                if self.world.size == 1:
                    raise
                self._failure = error
        return self.directions.value.new_empty(len(self.directions.value), 0)

    def _of_all(self, solved: Directions | None, m: int) -> Directions:
        """Gathers the directions of all queries, each of which one process has solved for."""
        theta, world = self.engine.theta, self.world
        value = theta.new_zeros(m, len(theta))
        if solved is not None:
            value[world.share(m, SOLVED_TOGETHER)] = solved.value
        parts = world.all_gathered(None if solved is None else _on_host(solved.certificate))
        return Directions(
            world.spread_rows(value, SOLVED_TOGETHER),
            query_ids(identified_queries(self.queries, IdRule(self.ids))),
            Certificate.joined([part for part in parts if part is not None]),
        )


def _finite(scores: Tensor, batch_idx: int) -> Tensor:
    """Returns the scores of a batch.

    Raises:
        InputError: One is not finite, such as that of a loss of 0/0.
    """
    wrong = (~torch.isfinite(scores)).any(0)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise InputError(
            f"The score of row {k} of batch {batch_idx} is {float(scores[:, k].sum())}: its own loss has no finite "
            "gradient.\n  Its targets may all be ignored (ignore_index, padding, a class of weight 0). Leave it out of "
            "the loader of the prediction."
        )
    return scores


class InfluenceWriter(BasePredictionWriter):
    """Collects the scores of a predict run in one block, allocated once, and delivers it in the first process."""

    def __init__(
        self,
        deliver: Callable[[ScoredBlock], None],
        dtype: torch.dtype | None = None,
        advance: Callable[[int], object] = lambda pairs: None,
    ) -> None:
        """Stores the functions to call; writes no file itself.

        Args:
            deliver: Function of a finished block, whose memory is used again for the next block.
            dtype: Precision of the block; None: that of the parameters.
            advance: Function of the number of (test, training sample) pairs scored since its last call.
        """
        super().__init__(write_interval="batch")
        self.deliver, self.dtype, self.advance = deliver, dtype, advance
        self._block: Tensor | None = None

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, InfluencePredictor)
        assert pl_module.directions is not None
        theta, world, share = pl_module.engine.theta, pl_module.world, pl_module.own_rows()
        m = len(pl_module.directions.value)
        n = pl_module.engine.objective.n if world.first else share.stop - share.start
        with world.raise_together():
            # The block is on the device of the scores: one transfer for a block, not one for each batch.
            if self._block is None or self._block.shape != (m, n):
                self._block = None
                self._block = torch.empty(m, n, dtype=self.dtype or theta.dtype, device=theta.device)
            self._sums = torch.zeros(m, dtype=torch.float64, device=theta.device)
        self._done, self._own = 0, share.stop - share.start

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._block is not None
        columns = prediction[:, : self._own - self._done]
        self._block[:, self._done : self._done + columns.shape[1]] = columns
        self._sums += columns.sum(1, dtype=torch.float64)
        self._done += columns.shape[1]
        self.advance(columns.numel())

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, InfluencePredictor)
        assert pl_module.directions is not None
        assert self._block is not None
        world, objective, directions = pl_module.world, pl_module.engine.objective, pl_module.directions
        with world.raise_together():
            pl_module.raise_failure()
        value = self._block.cpu()
        world.gather_columns(value, objective.n)
        sums = torch.stack(world.all_gathered(self._sums.cpu())).sum(0)
        self.advance((objective.n - self._own) * len(value))
        with world.raise_together():
            if world.first:
                ids, factors = objective.data.ids, objective.factors
                scores = Scores(value, ids, directions.query_ids, directions.certificate, factors)
                self.deliver(ScoredBlock(scores, sums / objective.n))


def _refuse_other_methods(settings: AttributionSettings) -> None:
    if settings.method is not None:
        raise InputError(
            f"InfluencePredictor scores by curvature and solver; settings ask for method {settings.method.name}.\n"
            "  Leave method out, or score by it: method.scores(TrainedModel(objective, theta), queries)."
        )


def _only(batch: list[Batch]) -> Batch:
    return batch[0]


def _on_host(certificate: Certificate) -> Certificate:
    undamped, bound, repeat = certificate.undamped_residual, certificate.error_bound, certificate.repeat_error
    return replace(
        certificate,
        residual=certificate.residual.cpu(),
        undamped_residual=None if undamped is None else undamped.cpu(),
        error_bound=None if bound is None else bound.cpu(),
        repeat_error=None if repeat is None else repeat.cpu(),
        steps=certificate.steps.cpu(),
    )


@contextmanager
def solver_progress(engine: InfluenceEngine, shown: bool = True) -> Generator[None, None, None]:
    """Shows a progress line during the solve: steps, and the worst residual of the recurrence."""
    with tqdm(desc="inverse-HVP", unit="step", leave=False, mininterval=0.5, disable=not shown) as bar:

        def show(step: int, residual: float) -> None:
            if residual == residual:  # NaN from a stochastic recursion, which has no residual
                bar.set_postfix_str(f"residual {residual:.1e}", refresh=False)
            bar.update(max(0, step - bar.n))

        engine.prepared.progress = show
        try:
            yield
        finally:
            engine.prepared.progress = None
