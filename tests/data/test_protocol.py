"""The contract of data: who serves attribution, and what a data module may state besides."""

import lightning as L
import numpy as np
import pytest
import torch

from ifloo.cli.adaptation import data_of
from ifloo.data import (
    AdaptedData,
    AttributionData,
    ConversationSet,
    DataNotes,
    MNISTDataModule,
    MultimodalDataModule,
    SampleSet,
    serves_attribution,
)


class Rows:
    def __init__(self):
        self.ids = torch.arange(3)

    def __len__(self):
        return 3

    def caption(self, id_):
        return str(id_)

    def picture(self, id_):
        return np.zeros((4, 4), np.uint8)


class Own(L.LightningDataModule):
    """What "Adding to ifloo" describes: the sets are attributes of the instance."""

    def __init__(self):
        super().__init__()
        self.train_set = self.test_set = Rows()

    def train_dataloader(self):
        return torch.utils.data.DataLoader([{"x": torch.zeros(1), "idx": i} for i in range(3)])

    def test_batch(self, ids):
        return {"x": torch.zeros(len(ids), 1)}

    def fingerprint(self):
        return "own"


class Late(Own):
    """The sets are there after `setup` only."""

    def __init__(self):
        L.LightningDataModule.__init__(self)

    @property
    def train_set(self):
        raise RuntimeError("not set up")

    test_set = train_set


class Noted(Own):
    free_settings = frozenset({"root"})
    source_taken, source_reason = "mirror", "the files are not in ./data"
    skipped: tuple = ({"file": "a.jsonl", "line": 3, "reason": "no answer"},)
    rows_cut = 2
    corrupted_ids = np.array([4, 2])


@pytest.mark.parametrize("made", [MNISTDataModule, MultimodalDataModule, Own, Late], ids=lambda made: made.__name__)
def test_data_that_serve_attribution_are_taken_as_they_are(made):
    """To ask does not touch the sets, which may not be there yet."""
    data = made()
    assert isinstance(data, AttributionData)
    assert serves_attribution(data)
    assert data_of(data, L.LightningModule()) is data


def test_other_data_are_adapted():
    class Loaders(L.LightningDataModule):
        def train_dataloader(self):
            return Own().train_dataloader()

    data = data_of(Loaders(), L.LightningModule())
    assert isinstance(data, AdaptedData)
    assert isinstance(data, AttributionData)
    assert not serves_attribution(Loaders())


def test_sets():
    assert isinstance(Rows(), SampleSet)
    assert not isinstance(Rows(), ConversationSet)
    adapted = AdaptedData(Own())
    assert isinstance(adapted.train_set, SampleSet)


def test_notes_have_defaults():
    for notes in (DataNotes(Own()), DataNotes(object())):
        assert notes.free_settings == frozenset()
        assert (notes.source_taken, notes.source_reason, notes.tokenizer) == (None, None, None)
        assert (notes.left_out, notes.corrupted_ids) == ({}, ())


def test_notes_that_are_stated():
    notes = DataNotes(Noted())
    assert notes.free_settings == {"root"}
    assert (notes.source_taken, notes.source_reason) == ("mirror", "the files are not in ./data")
    assert notes.left_out == {"skipped": Noted.skipped, "rows_cut": 2}
    assert notes.corrupted_ids == (4, 2)
    assert all(type(i) is int for i in notes.corrupted_ids)


def test_notes_of_a_class_are_its_class_variables():
    assert DataNotes(MNISTDataModule).free_settings == MNISTDataModule.free_settings
    assert DataNotes(Own).free_settings == frozenset()


def test_notes_that_adapted_data_hand_on():
    assert AdaptedData(Noted()).corrupted_ids == (4, 2)
    assert AdaptedData(Own()).corrupted_ids == ()


def test_conversations_have_a_tokenizer():
    data = MultimodalDataModule()
    tokenizer = DataNotes(data).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode([72, 105, tokenizer.eos]) == "Hi"
