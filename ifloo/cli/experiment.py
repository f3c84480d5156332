"""The objects of one experiment, made from flags and config: model, data, settings and the files of results."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L

from ifloo.cli.adaptation import Adaptation
from ifloo.data import AdaptedData, AttributionData, DataNotes, unwrap_data
from ifloo.data.fit_data import refuse_other_data
from ifloo.data.second_setup import RANDOM_SPLIT, UNSEEDED_SPLIT
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule, unwrap
from ifloo.models.lightning_classes import is_data_module
from ifloo.models.run_state import RunState, StandInTrainer, attached, stand_in_trainer
from ifloo.models.set_up import set_up
from ifloo.objective.augmentation import refuse_changing_reads
from ifloo.refit import BaseCheckpoint, NewtonFinish, RefitSettings, weights_sha256
from ifloo.stages import AttributionSettings, settings_json
from ifloo.store import JSON, Layout

log = logging.getLogger(__name__)

Build: TypeAlias = Callable[[], tuple[L.LightningModule, L.LightningDataModule | None]]


@dataclass(frozen=True)
class Experiment:
    """What a command fits, scores, refits and reports.

    Attributes:
        name: Name <exp> of the experiment.
        module: Model under the contract; untrained until `restore`.
        datamodule: Data module of the training and test samples.
        attribution: Settings of the scores.
        refit: Settings of the refits.
        finish: Callback that ends every fit.
        layout: Files of results.
        checkpoint: File of the base model.
        seed: Random seed of the fit.
        base: Checkpoint of the base model; None where the file does not exist yet.
        adaptation: Way in which a plain module states its losses.
        arguments: Arguments of the model, as flags and config give them.
        build: Function that makes module and data module, where the settings name one in place of classes.
        planned: State of the fit as the Trainer's settings describe it, for a model without a checkpoint.
        seed_given: Whether the seed was given by a flag or config, and is no default.
        held_to: Checkpoints that the data have been held to.
        doubtful_splits: Checkpoints that do not record the random split of their fit, which a seed draws now.
    """

    name: str
    module: SampleLossModule
    datamodule: AttributionData
    attribution: AttributionSettings
    refit: RefitSettings
    finish: NewtonFinish
    layout: Layout
    checkpoint: Path
    seed: int
    base: BaseCheckpoint | None
    adaptation: Adaptation = field(default_factory=Adaptation)
    arguments: dict[str, object] = field(default_factory=dict)
    build: Build | None = None
    planned: RunState = field(default_factory=RunState)
    seed_given: bool = False
    held_to: list[BaseCheckpoint] = field(default_factory=list)
    doubtful_splits: list[BaseCheckpoint] = field(default_factory=list)

    @property
    def author_module(self) -> L.LightningModule:
        """The model as its author wrote it."""
        return unwrap(self.module)

    @property
    def lightning_data(self) -> L.LightningDataModule:
        """The data module as a Trainer takes it."""
        assert isinstance(self.datamodule, L.LightningDataModule)  # the command line makes no other
        return self.datamodule

    @property
    def test_ids(self) -> list[int]:
        """The test ids in the settings.

        Raises:
            InputError: If the settings name `all` tests.
        """
        if self.attribution.test_ids == "all":
            raise InputError(
                "Refits and reports need test ids by name, got `all`; give --attribution.test_ids '[0, 8]'."
            )
        return list(self.attribution.test_ids)

    @property
    def fit_seed(self) -> int:
        """Random seed of the base fit, and so of every refit."""
        return self.seed if self.base is None else self.base.record["seed"]

    @functools.cached_property
    def stand_in(self) -> StandInTrainer:
        """Idle Trainer that module and data module may read outside a fit, in the state of the fit."""
        own = unwrap_data(self.datamodule)
        state = self.planned if self.base is None else self.base.run_state
        if isinstance(self.module, Adapted):
            self.module.describe_fit(state, own)
        trainer = stand_in_trainer(state, own if is_data_module(own) else None, model=self.author_module)
        if isinstance(self.datamodule, AdaptedData):
            self.datamodule.attaching = functools.partial(attached, self.datamodule.data, trainer, changing=True)
        return trainer

    def base_settings(self) -> dict[str, JSON]:
        """Describes the base model: the settings behind every number of the later commands."""
        free = DataNotes(self.datamodule).free_settings
        training = {name: value for name, value in self.datamodule.hparams.items() if name not in free}
        adapted = self.author_module is not self.module
        return {
            "model": type(self.author_module).__name__,
            **({"adapt": self.adaptation.identity_settings()} if adapted else {}),
            "objective": settings_json(self.hyper_parameters()),
            "data": self.datamodule.fingerprint(),
            "loader": settings_json(training),
            "seed": self.fit_seed,
            "weights": weights_sha256(self.module),
        }

    def hyper_parameters(self) -> dict[str, Any]:
        """Returns the arguments of the model, as it saved them.

        Raises:
            InputError: If the model does not save all of them, so that it could be neither compared nor made again.
        """
        saved = {k: v for k, v in dict(self.module.hparams).items() if not k.startswith("_")}
        own = list(inspect.signature(type(self.author_module).__init__).parameters)[1:]  # without self, of any name
        arguments = set(own) - {"args", "kwargs"}
        if self.build is not None:
            return saved
        if missing := sorted(arguments - saved.keys()):
            if self.author_module is not self.module and self.refit.init == "warm":
                return {**self.arguments, **saved}  # compared only: refits start from copies
            raise InputError(
                f"{type(self.author_module).__name__} does not save its arguments {missing}.\n"
                "  Call self.save_hyperparameters() in its __init__: results are compared, and refits made, by them."
            )
        return saved

    def fresh_model(self) -> Callable[[], SampleLossModule]:
        """Returns a function that makes the untrained model from its arguments; it travels between processes.

        Raises:
            InputError: As `hyper_parameters`.
        """
        arguments = self.hyper_parameters()
        make = functools.partial(type(self.author_module), **arguments)
        again = self.module.again if isinstance(self.module, Adapted) else None
        return functools.partial(_set_up_again, make if self.build is None else self.build, again, self.stand_in)

    def load_data(self) -> None:
        """Fetches and reads the data, and makes the layers that the model makes in its hooks."""
        with attached(self.lightning_data, self.stand_in):
            self.datamodule.prepare_data()
            with attached(self.author_module, self.stand_in, changing=True):
                self.author_module.prepare_data()
            if self._tells_no_split and isinstance(self.datamodule, AdaptedData):
                self.datamodule.prepare_second_setup(self._made_again)
            self.datamodule.setup("fit")
        set_up(self.module, self.stand_in)

    @property
    def _made_again(self) -> Callable[[], L.LightningDataModule | L.LightningModule] | None:
        """Function that makes the data module again, where a function of the user's made it."""
        build = self.build
        return None if build is None else lambda: (made := build())[1] or made[0]

    @property
    def _unrecorded(self) -> bool:
        """Whether nothing in the checkpoint tells which data it was fitted on."""
        return self.base is not None and self.base.trained_on is None and self.base.record["fingerprint"] is None

    @property
    def _tells_no_split(self) -> bool:
        """Whether the checkpoint records no data, or those of training alone, so that a random split may be another."""
        recorded = None if self.base is None else self.base.trained_on
        return self._unrecorded or (recorded is not None and recorded.evaluation.keys() != {"val", "test"})

    def hold_data(self) -> None:
        """Holds the data to those that the checkpoint was fitted on; to be called before any sample is read.

        Raises:
            InputError: If the training data differ from those, or are drawn at random and nothing tells the draw.
        """
        base, data = self.base, self.datamodule
        if base is None or any(base is one for one in self.held_to):
            return
        self.held_to.append(base)
        if base.trained_on is not None:
            if isinstance(data, AdaptedData):
                if not self.seed_given and data.leaves_tests_to_chance(base.trained_on):
                    refuse_changing_reads(data.train_dataloader())
                    raise InputError(
                        f"{type(unwrap_data(data)).__name__}: {base.path} records the rows of the training set and not "
                        f"of the tests; {RANDOM_SPLIT}"
                    )
                data.hold_to(base.trained_on)
            refuse_other_data(base.trained_on, data.train_dataloader(), str(base.path))
        elif self._unrecorded:
            seed = self.seed if self.seed_given else None
            if _split_in_doubt(data, str(base.path), seed):
                self.doubtful_splits.append(base)

    def restore(self) -> None:
        """Loads data and weights.

        Raises:
            InputError: If the training data differ from those the checkpoint was fitted on.
        """
        assert self.base is not None
        self.load_data()
        self.base.restore_data(self.lightning_data)
        self.hold_data()
        now, fitted = self.datamodule.fingerprint(), self.base.record["fingerprint"]
        notes = DataNotes(self.datamodule)
        if fitted is not None and now != fitted:
            raise InputError(
                f"The training data are not those the checkpoint {self.base.path} was fitted on: their content has "
                f"SHA-256 {now[:16]}..., fitted on {fitted[:16]}....\n"
                f"  Data now: {notes.source_taken or '?'} ({notes.source_reason or '?'}); at the fit: "
                f"{self.base.record.get('source')}.\n"
                "  Give the same data (--data.source, --data.root), or fit again."
            )
        self.base.restore(self.module, self.stand_in)


def _split_in_doubt(data: AttributionData, checkpoint: str, seed: int | None) -> bool:
    """Whether the training data depend on the seed where the checkpoint does not record them; warns if they do.

    Args:
        data: Data module, set up.
        checkpoint: File of the checkpoint, for messages.
        seed: Seed that the user gave; None: none was given.

    Raises:
        InputError: If they depend on the seed, and none was given; or if no seed repeats them.
    """
    random = isinstance(data, AdaptedData) and data.split_is_random()
    if random:
        refuse_changing_reads(data.train_dataloader())  # samples that no seed repeats make any two set-ups differ
    if random and isinstance(data, AdaptedData) and data.split_is_unseeded():
        raise InputError(f"{type(unwrap_data(data)).__name__}: {UNSEEDED_SPLIT}")
    if random and seed is None:
        raise InputError(f"{type(unwrap_data(data)).__name__}: {RANDOM_SPLIT}")
    unverified = (
        "training data: unverified, since %s holds no record of them (InfluenceCallback and `ifloo fit` write one)"
    )
    if not random:
        log.info(f"{unverified}.", checkpoint)
        return False
    log.warning(
        f"{unverified}; the split is drawn at random, by --seed_everything %s as given. It is that of the fit only "
        "if the fit had this seed and drew the same random numbers before its split: model and data made in the same "
        "order.",
        checkpoint,
        seed,
    )
    return True


def _set_up_again(
    make: Callable[[], L.LightningModule] | Build,
    again: Callable[[L.LightningModule], Adapted] | None,
    trainer: L.Trainer,
) -> SampleLossModule:
    """Makes the untrained model, complete with the layers that its hooks make."""
    made = make()
    author_module = made[0] if isinstance(made, tuple) else made
    module = author_module if again is None else again(author_module)
    assert isinstance(module, SampleLossModule)
    set_up(module, trainer)
    return module
