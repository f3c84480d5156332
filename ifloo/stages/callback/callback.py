"""Callback that scores training samples during a user's own fit without changing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution import Method
from ifloo.data.fit_record import KEY
from ifloo.errors import IflooError, InputError, in_one_line
from ifloo.models.adapted import SampleLossFunction
from ifloo.objective import Batch
from ifloo.objective.id_rule import IdSetting
from ifloo.objective.loaders import sample_count
from ifloo.objective.user_code import reason
from ifloo.stages.callback.data_reads import DataReads, only_memory
from ifloo.stages.callback.epoch_files import EpochFolders
from ifloo.stages.callback.fit_weights import FitWeights
from ifloo.stages.callback.loggers import SnapshotLog, table
from ifloo.stages.callback.moment import (
    BEST,
    LAST,
    RAW,
    BestCheckpoint,
    Moment,
    last_or_best,
    other_best,
    refuse_without_checkpoints,
    weights_of,
)
from ifloo.stages.callback.queries import Queries, on_host
from ifloo.stages.callback.scorer import EpochScorer, refuse_below_one
from ifloo.stages.callback.slow_scoring import shown_when_slow
from ifloo.stages.callback.snapshot import Snapshot
from ifloo.stages.callback.training_data import (
    data_record,
    note_of_augmentation,
    refuse_partial_fit,
    training_loader,
    warn_of_hooks,
)
from ifloo.stages.isolation import undisturbed_with
from ifloo.stages.scores.self_influence import DAMPING

log = logging.getLogger(__name__)
FOLDER = "influence"
ONE_DRAW = (
    "two reads of a training sample differ (augmentation): the scores are of one draw of each, seeded by its row."
)


@dataclass(frozen=True)
class _Fit:
    """Parts of the callback that stay the same during a fit."""

    queries: Queries
    reads: DataReads
    scorer: EpochScorer
    folders: EpochFolders
    loggers: SnapshotLog
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Attempt:
    """Last scoring of a fit.

    Attributes:
        moment: Point of the fit.
        weights: SHA-256 of the module's weights.
        snapshot: Scores; None where they failed.
        folder: Folder of the scores.
    """

    moment: Moment
    weights: str
    snapshot: Snapshot | None = None
    folder: str = ""

    @property
    def table(self) -> str:
        """Table of the scores; empty where they failed."""
        return "" if self.snapshot is None else table(self.snapshot, self.moment, self.folder)


class InfluenceCallback(L.Callback):
    """Scores all training samples against some test samples at the end of a fit, and optionally every n epochs.

    It works with any LightningModule. A module that defines `sample_losses` and `penalty` is used directly; for any
    other the losses come from the argument `sample_losses`, else from its own `training_step`, run on batches of one.
    Training samples are those of the dataset behind the Trainer's training loader, in the order of the dataset; the
    loader itself is not changed.

    The fit ends with the same weights, bit by bit, as without the callback: scoring works on a copy of the module and
    restores every random state. The scores at the end are of the weights that the fit ends with, after every other
    callback, such as one that averages weights; those of an epoch are of the raw weights. Settings that do not fit the
    module or its data turn the callback off for the fit, and a failure of scoring is a warning, unless `strict`. Where
    the last layer cannot serve, the default method is `GradientDot`.

    Files in `output_dir` are `epoch_<e>/influences_test_<t>.npz` (and `self_influence.npz`) after e epochs, the same
    in `best` for the best checkpoint, and `manifest.json`, which names what is complete. TensorBoard receives
    histograms and quantiles, any other logger quantiles. Checkpoints of the fit receive a record of its data.

    Under ddp the first process scores while the others wait for it in their next exchange, such as that of a test after
    the fit. If scoring takes longer than the timeout of the process group (30 minutes for gloo, 10 for nccl), give
    `DDPStrategy(timeout=...)` a longer one.

    Args:
        queries: Test samples: a batch, or a dataset, list of samples or DataLoader whose first `num_queries` are
            used. Their ids are those in the batch (key `idx` or `sample_index`), else their positions.
        every_n_epochs: Number of epochs between scorings during the fit; None: at the end only.
        method: Any `Method` that needs no recorded run. None: influence through the last linear layer with its
            inputs fixed, −(1/n) ∇L_t·(H + δI)⁻¹∇ℓ_i, which is convex at any weights, unlike the whole network.
        parameters: Shell-style patterns of parameters; None: the last linear layer's, or all if a method is given.
        sample_losses: Function of (module, batch) that returns unreduced losses, `[b]`, nats; None: the module's.
        l2: Strength λ >= 0 of a penalty ½λ‖θ‖² that the training adds and `sample_losses` does not.
        self_influence: Whether the effect of each training sample on its own loss is computed, in the last layer.
        damping: Number δ >= 0 added to the last layer's curvature, nats per squared parameter.
        dtype: Precision of scoring; None: as trained, float32 for 16 bits, float64 where the solve needs it.
        num_queries: Number of test samples taken from a dataset or DataLoader.
        batch_size: Number of training samples scored at once; None: that of the training loader.
        output_dir: Folder of the results; None: `influence` in the first logger's folder or `default_root_dir`.
        overwrite: Whether the scores of an earlier fit in `output_dir` are replaced.
        weights: Weights scored at the end: those that the fit ends with, or those of the best checkpoint.
        strict: Whether a scoring that is not possible or fails ends the fit with its error.
        ids: Setting of the sample ids: `auto` (a unique key `idx`, else positions), `third` item or `positions`.
        accept_objective: Whether scores are computed though the gradient of a training step differs from that of the
            objective for an unexplained reason.
        draws: Number of seeded draws of each training sample, if its reads are augmented; its loss is their mean.
    """

    _fit: _Fit | None = None
    _attempt: _Attempt | None = None
    _record: dict[str, object] | None = None  # of the data, for checkpoints
    _seconds: float | None = None  # duration of the last scoring
    _started = False  # whether a training step was about to be taken
    _to_clear = False  # whether complete new scores replace those of an earlier fit

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
        weights: Literal["last", "best"] = "last",
        strict: bool = False,
        ids: IdSetting = "auto",
        accept_objective: bool = False,
        draws: int = 1,
    ) -> None:
        """Stores the settings; nothing is read before the fit.

        Raises:
            InputError: A setting is out of range, or the method needs a recorded run.
        """
        refuse_below_one(every_n_epochs=every_n_epochs, num_queries=num_queries, batch_size=batch_size, draws=draws)
        self.queries, self.num_queries, self.every_n_epochs = queries, num_queries, every_n_epochs
        self.output_dir, self.overwrite = output_dir, overwrite
        self.weights, self.strict = last_or_best(weights), strict
        patterns = [parameters] if isinstance(parameters, str) else parameters
        chosen = None if patterns is None else tuple(patterns)
        self._scorer = EpochScorer(
            method, chosen, damping, sample_losses, l2, self_influence, dtype, batch_size, ids, accept_objective, draws
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Moves the callback behind all others, some of which replace the weights when the fit ends."""
        if stage == "fit":
            self._fit = self._attempt = self._record = self._seconds = None
            self._started = False
            others = [one for one in trainer.callbacks if one is not self]  # type: ignore[attr-defined]  # undeclared
            trainer.callbacks = [*others, self]  # type: ignore[attr-defined]  # a new list: Lightning walks the old one

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the queries and scores a few samples on a copy, in every process, so that errors occur before training.

        Raises:
            InputError: With `strict`: queries, data, module and method do not fit together, or the output folder holds
                other scores.
        """
        self._started = True
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it undeclared
            log.warning("No influence scores of a fast_dev_run, which draws part of the data.")
            return
        with self._warning(trainer, lambda error: f"InfluenceCallback is off for this fit: {_in_words(error)}"):
            root = self._root(trainer)  # an exchange in which all processes take part
            reads = DataReads(lambda: trainer.received_sigterm, [*_held_by(trainer), self.queries])
            with undisturbed_with(*_held_by(trainer), self.queries):
                self._record = data_record(trainer, reads)
                self._fit = self._begun(trainer, pl_module, root, reads)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._score(trainer, pl_module, Moment(trainer.current_epoch + 1, trainer.global_step, RAW))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores the weights that the fit ends with; other callbacks replace them in `on_train_end` or `on_fit_end`."""
        if not trainer.is_global_zero:
            return
        if not self._started:
            log.warning("No influence scores: max_epochs, max_steps or max_time ended the fit before its first step.")
        if self._fit is None:
            return
        end = Moment(trainer.current_epoch, trainer.global_step, LAST)
        with self._warning(trainer, partial(_without_scores, end)):
            if self.weights == "best":
                self._score(trainer, pl_module, replace(end, weights=BEST, best=True))
            else:
                self._score_last(trainer, pl_module, end)
            self._print_table()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Says that the weights at which a fit was interrupted are not scored."""
        if self._fit is not None and trainer.is_global_zero:
            log.warning("No influence scores of the last weights: the fit ended by %s.", type(exception).__name__)
        self._fit = self._attempt = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Scores again where a hook that runs after this callback's `on_fit_end` changed the weights."""
        if stage != "fit":
            return
        done = self._attempt
        if done is not None and not done.moment.best:
            with self._warning(trainer, partial(_without_scores, done.moment)):
                if done.weights != weights_of(pl_module):
                    log.warning("The weights changed after on_fit_end; they are scored again.")
                    self._score(trainer, pl_module, replace(done.moment, weights=LAST))
                    self._print_table()
        self._fit = self._attempt = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Writes what the fit trained on into the checkpoint, so that later runs can hold to it."""
        if self._record is not None:
            checkpoint.setdefault(KEY, self._record)

    def _begun(self, trainer: L.Trainer, module: L.LightningModule, root: Path, reads: DataReads) -> _Fit:
        """Reads the queries, tries the scorer on a few samples, and checks the output folder.

        Raises:
            InputError: Queries, data, module and method do not fit together, or the folder holds other scores.
        """
        if self.weights == "best":
            refuse_without_checkpoints(trainer)
        loader, draws = training_loader(trainer), self._scorer.draws
        reads.once(partial(refuse_partial_fit, trainer), loader, alone=True)
        warn_of_hooks(trainer, module)
        given, ids = on_host(self.queries), self._scorer.ids
        queries = reads.once(
            lambda one: Queries.of(reads.own(given), self.num_queries, one, ids),
            loader,
            alone=only_memory(given),
        )

        def tried(one: DataLoader[Batch]) -> EpochScorer:
            return self._scorer.try_on_few(FitWeights(trainer, module, one, ran=False), queries)

        scorer = reads.during(tried, loader, draws)
        notes = reads.once(lambda one: note_of_augmentation(one, draws), loader, alone=True)
        folders = EpochFolders(root, self._scorer.identity_settings(queries))
        self._to_clear = False
        try:
            folders.refuse_others(continued=trainer.global_step > 0)
        except InputError:
            if not self.overwrite:
                raise
            self._to_clear = True  # when new scores are complete
        return _Fit(queries, reads, scorer, folders, SnapshotLog(), notes)

    def _score_last(self, trainer: L.Trainer, module: L.LightningModule, end: Moment) -> None:
        """Scores the last weights, unless the scores of the last epoch are of the same ones."""
        done = self._attempt
        if done is None or (done.moment.step, done.weights) != (end.step, weights_of(module)):
            self._score(trainer, module, end)
        elif self._fit is not None and done.snapshot is not None:
            self._attempt = replace(done, moment=replace(done.moment, weights=LAST))
            self._fit.folders.write_label(done.snapshot, self._attempt.moment)
        if (differs := other_best(trainer, module)) is not None:
            log.warning(differs)

    def _print_table(self) -> None:
        if self._attempt is not None and self._attempt.table:
            print(self._attempt.table, flush=True)

    def _score(self, trainer: L.Trainer, module: L.LightningModule, moment: Moment) -> None:
        """Scores, writes and logs in the first process; a failure is a warning, so that the fit goes on."""
        if self._fit is None or not trainer.is_global_zero:
            return
        self._attempt = None
        with self._warning(trainer, partial(_without_scores, moment)):
            self._attempt = _Attempt(moment, weights_of(module))
            self._attempt = self._scored(trainer, module, self._attempt, self._fit)

    @contextmanager
    def _warning(self, trainer: L.Trainer, text: Callable[[Exception], str]) -> Generator[None, None, None]:
        """Turns an error into a warning, unless `strict`: what is only an addition must not end a fit."""
        try:
            yield
        except Exception as error:  # the user's code may raise any
            if self.strict:
                self._fit = None
                raise
            if trainer.is_global_zero:
                log.warning("%s", text(error))
            if self._fit is not None and self._fit.reads.ended is not None:
                self._fit = None  # scoring would fail again

    def _scored(self, trainer: L.Trainer, module: L.LightningModule, begun: _Attempt, fit: _Fit) -> _Attempt:
        loader, moment = training_loader(trainer), begun.moment
        best = BestCheckpoint.of(trainer) if moment.best else None
        if best is not None:
            moment = best.moment
        text = _announcement(sample_count(loader), len(fit.queries), moment, self._seconds)

        def scored(one: DataLoader[Batch]) -> Snapshot:
            with shown_when_slow(text) as tick:
                return fit.scorer.score_somehow(FitWeights(trainer, module, one, best), fit.queries, tick)

        with undisturbed_with(*_held_by(trainer)):
            snapshot = fit.reads.during(scored, loader, fit.scorer.draws)
        self._seconds = snapshot.seconds
        snapshot = replace(snapshot, notes=(*snapshot.notes, *fit.notes))
        if self._to_clear:
            fit.folders.clear()
            self._to_clear = False
        fit.folders.write(snapshot, moment)
        fit.loggers.log(trainer.loggers, snapshot, moment.step)
        return _Attempt(moment, begun.weights, snapshot, str(fit.folders.of(moment).root))

    def _root(self, trainer: L.Trainer) -> Path:
        folder = trainer.log_dir or trainer.default_root_dir
        return Path(self.output_dir) if self.output_dir is not None else Path(folder) / FOLDER


def _held_by(trainer: L.Trainer) -> list[object]:
    """Returns what a fit draws its samples and its losses with."""
    loader = training_loader(trainer)
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    order = (loader.sampler, loader.batch_sampler, loader.generator)
    return [trainer.lightning_module, data, loader.dataset, loader.collate_fn, *order]


def _without_scores(moment: Moment, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if isinstance(error, IflooError) else reason(error)
    return f"No influence scores {moment}; the fit is untouched. {text}"


def _in_words(error: Exception) -> str:
    """Returns an error in one line; that of the user's code with file and line."""
    return in_one_line(error) if isinstance(error, IflooError) else reason(error)


def _announcement(n: int, m: int, moment: Moment, seconds: float | None) -> str:
    """Returns the line about a scoring that takes long.

    Args:
        n: Number of training samples.
        m: Number of test samples.
        moment: Point of the fit.
        seconds: Duration of the last scoring; None before the first.
    """
    duration = "" if seconds is None else f" (the last time it took {seconds:.0f} s)"
    return f"influence: scoring {n:,} training samples against {m:,} test samples {moment}{duration} ..."
