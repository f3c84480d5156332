"""Callback that scores training samples during a user's own fit without changing it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution import Method
from ifloo.errors import InputError
from ifloo.models.adapted import SampleLossFunction
from ifloo.models.hooks import overridden
from ifloo.objective import Batch, sequential
from ifloo.objective.batches import batch_size, map_tensors
from ifloo.objective.id_rule import IdRule, IdSetting
from ifloo.objective.ids import identified_queries
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.loaders import unwrap_loader
from ifloo.stages.callback.epoch_files import EpochFolders
from ifloo.stages.callback.loggers import SnapshotLog, table
from ifloo.stages.callback.scorer import EpochScorer, refuse_below_one
from ifloo.stages.callback.snapshot import ids_of
from ifloo.stages.isolation import detached, undisturbed_with
from ifloo.stages.scores.self_influence import DAMPING

log = logging.getLogger(__name__)
FOLDER = "influence"
NEVER = -1  # value of the last scored step before any scoring


@dataclass(frozen=True)
class _Fit:
    """Parts of the callback that stay the same during a fit."""

    queries: Batch
    folders: EpochFolders
    loggers: SnapshotLog


class InfluenceCallback(L.Callback):
    """Scores all training samples against some test samples at the end of a fit, and optionally every n epochs.

    It works with any LightningModule. A module that defines `sample_losses` and `penalty` is used directly; for any
    other the losses come from the argument `sample_losses`, else from its own `training_step`, run on batches of one.
    Training samples are those of the dataset behind the Trainer's training loader, in the order of the dataset; the
    loader itself is not changed.

    The fit ends with the same weights, bit by bit, as without the callback: scoring works on a copy of the module and
    restores every random state. A failure of scoring is a warning; invalid arguments raise an InputError before the
    first step.

    Files in `output_dir` are `epoch_<e>/influences_test_<t>.npz` (and `self_influence.npz`) after e epochs, and
    `manifest.json`, which names the completed epochs. TensorBoard receives histograms and quantiles, any other logger
    quantiles.

    Under ddp the first process scores while the others wait for it in their next exchange. If scoring takes longer than
    the timeout of the process group (30 minutes for gloo, 10 for nccl), give `DDPStrategy(timeout=...)` a longer one.
    """

    def __init__(
        self,
        queries: Batch | Dataset[Batch] | DataLoader[Batch],
        *,
        every_n_epochs: int | None = None,
        method: Method | None = None,
        parameters: Sequence[str] | None = None,
        sample_losses: SampleLossFunction | None = None,
        l2: float = 0.0,
        self_influence: bool = False,
        damping: float = DAMPING,
        dtype: Literal["float64", "float32"] | None = None,
        num_queries: int = 8,
        batch_size: int | None = None,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
        ids: IdSetting = "auto",
    ) -> None:
        """Stores the settings; nothing is read before the fit.

        Args:
            queries: Test samples: a batch, or a dataset or DataLoader whose first `num_queries` samples are used.
            every_n_epochs: Number of epochs between scorings during the fit; None: at the end only.
            method: Any `Method` that needs no recorded run. None: influence through the last linear layer with its
                inputs fixed, −(1/n) ∇L_t·(H + δI)⁻¹∇ℓ_i, which is convex at any weights, unlike the whole network.
            parameters: Shell-style patterns of the parameters attributed; None: those of the last linear layer, or all
                if a method is given.
            sample_losses: Function of (module, batch) that returns unreduced losses, `[b]`, nats; None: the module's.
            l2: Strength λ >= 0 of a penalty ½λ‖θ‖² that the training adds and `sample_losses` does not.
            self_influence: Whether the effect of each training sample on its own loss is computed, in the last layer.
            damping: Number δ >= 0 added to the last layer's curvature, nats per squared parameter.
            dtype: Precision of scoring; None: as trained, float32 for 16 bits, float64 where the solve needs it.
            num_queries: Number of test samples taken from a dataset or DataLoader.
            batch_size: Number of training samples scored at once; None: that of the training loader.
            output_dir: Folder of the results; None: `influence` in the first logger's, else the `default_root_dir`.
            overwrite: Whether the scores of an earlier fit in `output_dir` are replaced.
            ids: Setting of the sample ids: `auto` (a unique key `idx`, else positions), `third` item or `positions`.

        Raises:
            InputError: A setting is out of range, or the method needs a recorded run.
        """
        refuse_below_one(every_n_epochs=every_n_epochs, num_queries=num_queries, batch_size=batch_size)
        self.queries, self.num_queries, self.every_n_epochs = queries, num_queries, every_n_epochs
        self.output_dir, self.overwrite = output_dir, overwrite
        patterns = [parameters] if isinstance(parameters, str) else parameters
        chosen = None if patterns is None else tuple(patterns)
        self._scorer = EpochScorer(method, chosen, damping, sample_losses, l2, self_influence, dtype, batch_size, ids)
        self._fit: _Fit | None = None
        self._scored_at, self._to_clear, self._table = NEVER, False, ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the queries and scores a few samples on a copy, in every process, so that errors occur before training.

        Raises:
            InputError: Queries, data, module and method do not fit together, or the output folder holds other scores.
        """
        root = self._root(trainer)  # an exchange in which all processes take part
        loader = _loader(trainer)
        sequential(loader, 1)
        _warn_of_hooks(trainer, pl_module)
        with undisturbed_with(loader.dataset, loader.collate_fn, self.queries):
            queries = _query_batch(self.queries, self.num_queries, loader, self._scorer.ids)
            ids = ids_of(queries)
            if len(set(ids)) != len(ids):
                raise InputError(
                    f"InfluenceCallback: queries hold an id twice: {list(ids)}.\n  Each has files of its own."
                )
            self._scorer.try_on_few(detached(pl_module), loader, queries)
        folders = EpochFolders(root, self._scorer.identity_settings(queries))
        self._to_clear = False
        try:
            folders.refuse_others(continued=trainer.global_step > 0)
        except InputError:
            if not self.overwrite:
                raise
            self._to_clear = True  # when new scores are complete
        self._fit, self._scored_at = _Fit(queries, folders, SnapshotLog()), NEVER

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._score(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._scored_at != trainer.global_step:
            self._score(trainer, pl_module, trainer.current_epoch)
        if self._table:
            print(self._table, flush=True)
        self._fit = None

    def _score(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        """Scores, writes and logs in the first process; a failure is a warning, so that the fit goes on."""
        if self._fit is None or not trainer.is_global_zero:
            return
        self._scored_at, self._table = trainer.global_step, ""
        try:
            loader, fit = _loader(trainer), self._fit
            with undisturbed_with(loader.dataset, loader.collate_fn):
                snapshot = self._scorer.score(detached(module), loader, fit.queries)
            if self._to_clear:
                fit.folders.clear()
                self._to_clear = False
            fit.folders.write(snapshot, epoch, trainer.global_step)
            fit.loggers.log(trainer.loggers, snapshot, trainer.global_step)
            self._table = table(snapshot, epoch, str(fit.folders.of(epoch).root))
        except Exception as error:
            log.warning(
                "No influence scores after epoch %d; the fit is untouched. %s: %s", epoch, type(error).__name__, error
            )

    def _root(self, trainer: L.Trainer) -> Path:
        folder = trainer.log_dir or trainer.default_root_dir
        return Path(self.output_dir) if self.output_dir is not None else Path(folder) / FOLDER


def _loader(trainer: L.Trainer) -> DataLoader[Batch]:
    """Returns the training loader.

    Raises:
        InputError: There are several loaders, or the weights are split among processes.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise InputError(
            "InfluenceCallback scores the data set behind one training DataLoader; this fit has a "
            f"{type(loader).__name__}.\n"
            "  Concatenate the data sets (torch.utils.data.ConcatDataset), or score after the fit."
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise InputError(
            f"InfluenceCallback needs the whole module in one process; {type(trainer.strategy).__name__} may split it "
            f"among {trainer.world_size}.\n  Use strategy='ddp', or score after the fit."
        )
    return loader


def _warn_of_hooks(trainer: L.Trainer, module: L.LightningModule) -> None:
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    owners = {
        "module": (module, L.LightningModule),
        "data module": (data, L.LightningDataModule),
    }
    found = [
        f"{name} of the {owner}" for owner, (one, base) in owners.items() for name in overridden(one, BATCH_HOOKS, base)
    ]
    if found:
        log.warning("Influence is scored on batches as the training loader makes them: without %s.", ", ".join(found))


def _query_loader(queries: object, train: DataLoader[Batch]) -> DataLoader[Batch]:
    if isinstance(queries, DataLoader):
        return queries
    # Whatever has a length and items serves as a dataset.
    return DataLoader(queries, collate_fn=unwrap_loader(train)[1])  # type: ignore[arg-type]


def _query_batch(
    queries: Batch | Dataset[Batch] | DataLoader[Batch], count: int, train: DataLoader[Batch], ids: IdSetting
) -> Batch:
    """Returns the test samples as one batch on the host; those of a data set are collated as training samples are.

    Raises:
        InputError: There is no sample.
    """
    batch: Batch = queries
    if isinstance(queries, DataLoader) or not isinstance(queries, (Tensor, Mapping, list, tuple)):
        first = sequential(_query_loader(queries, train), count, slice(0, count), ids)
        batch = identified_queries(next(iter(first)), first.id_rule)
    else:
        batch_size(batch)
        batch = identified_queries(batch, IdRule(ids))
    return map_tensors(lambda x: x.detach().cpu(), batch)
