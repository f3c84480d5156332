"""Adapter for plain LightningDataModules: samples by id, and a hash of their content."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import lightning as L
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch.utils.data import DataLoader

from ifloo.data.fit_data import TRAIN, HeldRows, refuse_trained
from ifloo.data.fit_record import FitRecord
from ifloo.data.kept_samples import ReadSettings, SampleReads
from ifloo.data.protocol import AttributionData, DataNotes
from ifloo.data.samples import Samples
from ifloo.data.second_setup import SecondSetup, Source
from ifloo.data.subset_rows import same_rows, subset_rows
from ifloo.data.test_loaders import chosen, recorded_loaders, recorded_name, refuse_other_form
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, batch_size, fetch_samples, tensors_of
from ifloo.objective.counterparts import counterparts
from ifloo.objective.id_rule import IdSetting, third_ids
from ifloo.objective.loaders import identified, sample_count, training_dataset, unwrap_loader
from ifloo.objective.singles import first_draw


class AdaptedData(L.LightningDataModule):
    """A plain data module with access to its samples by id; loaders within a LightningModule serve as one, too.

    Test samples are those of `test_dataloader`, or of `val_dataloader` if the module defines no `test_dataloader`.

    Attributes:
        data: The wrapped data module, or the module that holds its loaders itself.
        ids: Setting of the sample ids: `auto` (see `IdRule`), `third` or `positions`.
        test_loader: Name or index of the test loader, where there are several; None if there is one.
        attaching: Function that returns the context in which hooks and loaders of the data module run while no Trainer
            is attached to it.
    """

    free_settings: frozenset[str] = frozenset({"num_workers", "pin_memory", "persistent_workers", "prefetch_factor"})

    def __init__(
        self,
        data: L.LightningDataModule | L.LightningModule,
        ids: IdSetting = "auto",
        reads: ReadSettings | None = None,
        *,
        test_loader: str | int | None = None,
    ) -> None:
        """Wraps a data module without copying it.

        Args:
            data: Data module to wrap, or a LightningModule that defines its loaders itself.
            ids: Setting of the sample ids.
            reads: Way in which scores read its samples; None for the defaults.
            test_loader: Name or index of the test loader, where there are several.
        """
        self.data, self.ids, self.test_loader = data, ids, test_loader
        self.attaching: Callable[[], AbstractContextManager[None]] = nullcontext
        super().__init__()
        self._reads = SampleReads(reads or ReadSettings())
        self._rows = HeldRows()
        self._second_setup: SecondSetup | None = None
        self._ready: set[str | None] = set()
        self._sets: dict[str, Samples] = {}
        self._fingerprint: str | None = None

    @property
    def trainer(self) -> L.Trainer | None:
        return self._own_trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        """Attaches the Trainer to the wrapped data module too; a module is attached by the Trainer itself."""
        self._own_trainer = trainer
        if not self._within_module:
            self.data.trainer = trainer

    @property
    def hparams(self) -> AttributeDict | MutableMapping[str, object]:
        return AttributeDict() if self._within_module else self.data.hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        return AttributeDict() if self._within_module else self.data.hparams_initial

    @property
    def corrupted_ids(self) -> tuple[int, ...]:
        """Training ids whose labels the data module declares wrong on purpose; empty if it declares none."""
        return DataNotes(self.data).corrupted_ids

    @property
    def _within_module(self) -> bool:
        return isinstance(self.data, counterparts(L.LightningModule))

    def __getstate__(self) -> dict[str, object]:
        """Leaves the Trainer behind; that of the data module, which stays attached here, too."""
        state = {**self.__dict__, "_own_trainer": None, "_second_setup": None}
        if not self._within_module:  # which leaves its own behind
            data = copy.copy(self.data)
            data.trainer = None
            state["data"] = data
        return state

    def _attached(self) -> AbstractContextManager[None]:
        classes = counterparts(L.LightningModule)
        attached = self.data._trainer if isinstance(self.data, classes) else self.data.trainer
        return nullcontext() if attached is not None else self.attaching()

    def prepare_data(self) -> None:
        with self._attached():
            self.data.prepare_data()

    def state_dict(self) -> dict[str, object]:
        return {} if self._within_module else self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        if not self._within_module:
            self.data.load_state_dict(state_dict)

    def setup(self, stage: str | None = None) -> None:
        """Sets up the data module once per stage; further calls for the same stage do nothing."""
        # A module is set up for a fit where its layers are made.
        if stage not in self._ready and not (self._within_module and stage == "fit"):
            with self._attached():
                self.data.setup(stage)  # type: ignore[arg-type]
        self._ready.add(stage)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the training loader with sample ids added to its batches.

        Raises:
            InputError: If the data module does not return a single loader over a fixed set of samples.
        """
        with self._attached():
            loader = self._read("train", "train_dataloader", self.data.train_dataloader(), "train")
        return identified(loader, self.train_set.id_rule.source) if sample_count(loader) else loader

    def val_dataloader(self) -> EVAL_DATALOADERS:
        with self._attached():
            return self.data.val_dataloader() if self._has("val_dataloader") else []

    def test_dataloader(self) -> EVAL_DATALOADERS:
        with self._attached():
            return self.data.test_dataloader() if self._has("test_dataloader") else self.val_dataloader()

    @property
    def train_set(self) -> Samples:
        return self._samples("train", "train_dataloader", self.data.train_dataloader, "fit")

    @property
    def test_set(self) -> Samples:
        """Test samples of the data module.

        Raises:
            InputError: If the data module defines neither `test_dataloader` nor `val_dataloader`.
        """
        if self._has("test_dataloader"):
            return self._samples("test", "test_dataloader", self.data.test_dataloader, "test")
        if self._has("val_dataloader"):
            return self._samples("test", "val_dataloader", self.data.val_dataloader, "fit")
        raise InputError(
            f"{type(self.data).__name__} has neither test_dataloader nor val_dataloader: there is no prediction to "
            "explain.\n  Write one of them; its samples are the tests, by their id or position."
        )

    def test_batch(self, ids: Sequence[int]) -> Identified:
        """Returns the test samples with these ids; raises the same errors as `Samples.batch`."""
        return self.test_set.batch(ids)

    def test_singles(self, ids: Sequence[int]) -> Identified:
        """Returns the test samples with these ids, one by one; raises the same errors as `Samples.batch`."""
        return self.test_set.singles(ids)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the training samples, as the model receives them, and of their ids."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for batch in self.train_set.contents():
                for x in tensors_of(first_draw(batch)):  # the same data, however many draws are scored
                    digest.update(f"{x.dtype} {tuple(x.shape[1:])} {batch_size(batch)}".encode())
                    digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            digest.update(self.train_set.ids.numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def hold_to(self, record: FitRecord) -> None:
        """Holds the samples to the rows of a fit, from now on; a split drawn at random becomes that of the fit."""
        if not self._rows.agrees_with(record):
            self._sets, self._fingerprint, self._reads = {}, None, SampleReads(self._reads.settings)
        self._rows = HeldRows(record)

    def prepare_second_setup(self, make: Callable[[], Source] | None = None) -> None:
        """Keeps a copy of the data module for `split_is_random`, unless it is set up already.

        Args:
            make: Function that makes another one; None: it is made from its saved arguments, or copied.
        """
        if not self._ready:
            self._second_setup = SecondSetup(self.data, make)

    def split_is_random(self) -> bool:
        """Whether a set-up under another seed gives other training samples; False where no second one is possible."""
        return self._second_setup is not None and bool(self._second_setup.differs(self.train_dataloader()))

    def split_is_unseeded(self) -> bool:
        """Whether two set-ups under one seed give other training samples."""
        return self._second_setup is not None and self._second_setup.differs_from_itself()

    def leaves_tests_to_chance(self, record: FitRecord) -> bool:
        """Whether a record holds no rows of the tests, and the present split is a random one and not that of the fit.

        It is to be asked before `hold_to`.
        """
        name = "test" if self._has("test_dataloader") else "val"
        if name in record.evaluation or any(one.startswith(f"{name}.") for one in record.evaluation):
            return False
        if same_rows(subset_rows(training_dataset(self.train_dataloader())), record.subsets):
            return False  # the same rows again
        return self.split_is_random()

    def evaluation_loaders(self) -> dict[str, DataLoader[Batch]]:
        """Returns the validation and test loaders that the data module makes, by their names in a record."""
        found: dict[str, DataLoader[Batch]] = {}
        for name, make in (("val", self.data.val_dataloader), ("test", self.data.test_dataloader)):
            if self._has(f"{name}_dataloader"):
                with suppress(Exception), self._attached():  # one that needs another stage's set-up is left out
                    found |= recorded_loaders(name, make())
        return found

    def _samples(self, name: str, loader: str, build: Callable[[], object], stage: str) -> Samples:
        if name not in self._sets:
            self.setup(stage)
            with self._attached():
                built, recorded = build(), loader.removesuffix("_dataloader")
                if name == "test":
                    recorded = recorded_name(recorded, built, self.test_loader)
                    built = chosen(built, self.test_loader, self._name(loader))
                single = self._read(name, loader, built, recorded)
                if not self._rows.records(recorded):
                    refuse_trained(single, self._held_training(), self._name(loader))
                if name == "test" and sample_count(single) == 0:
                    raise InputError(
                        f"{self._name(loader)} holds no sample.\n  Check its paths, its split and its limits."
                    )
                samples = Samples(single, self._name(loader), self.ids, noted=name == "train")
            if name == "test":
                training = self.train_set
                refuse_other_form(training.first, samples.first, training.id_rule, training.where, samples.where)
            self._sets[name] = samples
        return self._sets[name]

    def _read(self, name: str, loader: str, made: object, recorded: str) -> DataLoader[Batch]:
        """Returns a loader of the data module with the rows held, whose samples scores read in a fixed way and once."""
        rows = self._rows.applied(_single(made, self._name(loader)), recorded, self._name(loader))
        return self._reads.of(rows, name, self._reads.settings.draws if name == "train" else 1)

    def _held_training(self) -> DataLoader[Batch]:
        """Returns the training loader with the rows of the fit, as training reads it."""
        where = self._name("train_dataloader")
        return self._rows.applied(_single(self.data.train_dataloader(), where), TRAIN, where)

    def _has(self, loader: str) -> bool:
        base = L.LightningModule if self._within_module else L.LightningDataModule
        return all(is_overridden(loader, self.data, one) for one in counterparts(base))

    def _name(self, loader: str) -> str:
        return f"{type(self.data).__name__}.{loader}"


def unwrap_data(data: object) -> object:
    """Returns the user's own data module, without the adapter around it."""
    return data.data if isinstance(data, AdaptedData) else data


def training_loader(data: AttributionData) -> DataLoader[Batch]:
    """Returns the training loader of a data module that meets the contract, with the ids that its `train_set` states.

    Such a module may state ids as the third item of its batches.
    """
    loader = data.train_dataloader()
    if isinstance(data, AdaptedData):
        return loader
    dataset, collate = unwrap_loader(loader)
    first = third_ids(collate(fetch_samples(dataset, [0])), 1)
    stated = first is not None and first.tolist() == data.train_set.ids[:1].tolist()
    return identified(loader, "third") if stated else loader


def serves_attribution(data: object) -> bool:
    """Returns whether a data module offers by itself everything the commands need."""
    return isinstance(data, AttributionData)


def _single(loader: object, name: str) -> DataLoader[Batch]:
    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"{name} must give one torch DataLoader over a fixed set of samples; it gave {type(loader).__name__}.\n"
            "  Return a single DataLoader."
        )
    return loader
