"""Data contract: the members that ifloo needs of a data module and its sample sets, and the optional ones.

A data module meets it by having the members of `AttributionData`; any other LightningDataModule is wrapped in
`AdaptedData`, which builds them from its loaders. `DataNotes` gives the defaults of the optional members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import typing_extensions
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.objective.batches import Batch


@runtime_checkable
class CaptionedSet(Protocol):
    """A set whose samples have a caption and, if possible, an image."""

    def caption(self, id_: int, /) -> str:
        """Returns a description of the sample in one short line, such as its label; may be empty."""
        ...

    def picture(self, id_: int, /) -> NDArray[np.uint8] | None:
        """Returns the sample as an image, uint8 `[h, w]` or `[h, w, 3]`; None if it has none."""
        ...


@runtime_checkable
class ConversationSet(Protocol):
    """A set whose samples have a question, an answer and images (optional)."""

    def question(self, id_: int, /) -> str: ...

    def answer(self, id_: int, /) -> str: ...

    def pictures(self, id_: int, /) -> Sequence[NDArray[np.uint8]]: ...


@runtime_checkable
class SampleSet(CaptionedSet, Protocol):
    """Samples by id; an id refers to the same sample under every limit, order and batch size."""

    @property
    def ids(self) -> Int64[Tensor, " n"]:
        """Ids of all samples, in order."""
        ...

    def __len__(self) -> int: ...


# Properties of a data module may raise before `setup`: `typing_extensions.Protocol` looks members up without
# evaluating them, while `isinstance` with that of Python 3.10 and 3.11 would call them.


@typing_extensions.runtime_checkable
class SampleSets(typing_extensions.Protocol):
    """Training and test samples: the members of a data module that a report needs."""

    @property
    def train_set(self) -> CaptionedSet | ConversationSet: ...

    @property
    def test_set(self) -> CaptionedSet | ConversationSet: ...


@typing_extensions.runtime_checkable
class QueryBatches(typing_extensions.Protocol):
    """Access to batches of test samples by id."""

    def test_batch(self, ids: Sequence[int], /) -> Batch:
        """Returns the test samples with these ids, in this order, as one batch."""
        ...


@typing_extensions.runtime_checkable
class SingleQueries(typing_extensions.Protocol):
    """Optional member: access to test samples one by one, for losses that no batch of several can be given."""

    def test_singles(self, ids: Sequence[int], /) -> Batch:
        """Returns the test samples with these ids, in this order, each as a batch of one, with their ids."""
        ...


@typing_extensions.runtime_checkable
class AttributionData(SampleSets, QueryBatches, typing_extensions.Protocol):
    """Members of a data module that the commands need, in addition to those of every LightningDataModule."""

    @property
    def train_set(self) -> SampleSet: ...

    @property
    def test_set(self) -> SampleSet: ...

    @property
    def hparams(self) -> Mapping[str, object]:
        """Arguments of the constructor, as stored by `save_hyperparameters`."""
        ...

    def prepare_data(self) -> None: ...

    def setup(self, stage: str, /) -> None: ...

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns a loader whose batches carry ids: key `idx` or `sample_index`, or the third item of `(x, y, idx)`."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that identifies the training data: different data have different fingerprints."""
        ...


@runtime_checkable
class AnswerTokenizer(Protocol):
    """Members of a tokenizer that reading an answer needs.

    Attributes:
        eos: Token that ends an answer.
    """

    eos: int

    def decode(self, ids: Iterable[int], /) -> str: ...


# Protocols of the optional members, one each.


@typing_extensions.runtime_checkable
class _FreeSettings(typing_extensions.Protocol):
    free_settings: frozenset[str]


@typing_extensions.runtime_checkable
class _PathSettings(typing_extensions.Protocol):
    path_settings: frozenset[str]


@typing_extensions.runtime_checkable
class _SourceTaken(typing_extensions.Protocol):
    @property
    def source_taken(self) -> str: ...


@typing_extensions.runtime_checkable
class _SourceReason(typing_extensions.Protocol):
    @property
    def source_reason(self) -> str: ...


@typing_extensions.runtime_checkable
class _Skipped(typing_extensions.Protocol):
    @property
    def skipped(self) -> Sequence[Mapping[str, str | int]]: ...


@typing_extensions.runtime_checkable
class _RowsCut(typing_extensions.Protocol):
    @property
    def rows_cut(self) -> int: ...


@typing_extensions.runtime_checkable
class _CorruptedIds(typing_extensions.Protocol):
    @property
    def corrupted_ids(self) -> Iterable[int] | None: ...


@typing_extensions.runtime_checkable
class _Tokenized(typing_extensions.Protocol):
    @property
    def tokenizer(self) -> AnswerTokenizer: ...


class DataNotes:
    """Optional members of a data module, each read on access, with a default if the module does not define it."""

    def __init__(self, data: object) -> None:
        """Takes a data module, or its class, of which only class variables can be read."""
        self._data = data

    @property
    def free_settings(self) -> frozenset[str]:
        """Names of the settings that change no number, such as paths; empty by default."""
        return self._data.free_settings if isinstance(self._data, _FreeSettings) else frozenset()

    @property
    def path_settings(self) -> frozenset[str]:
        """Names of the settings that are paths of what is read, which no checkpoint from elsewhere sets; empty by
        default.
        """
        return self._data.path_settings if isinstance(self._data, _PathSettings) else frozenset()

    @property
    def source_taken(self) -> str | None:
        """Name of the source that the data came from; None by default."""
        return self._data.source_taken if isinstance(self._data, _SourceTaken) else None

    @property
    def source_reason(self) -> str | None:
        """Reason why that source was chosen; None by default."""
        return self._data.source_reason if isinstance(self._data, _SourceReason) else None

    @property
    def left_out(self) -> dict[str, Sequence[Mapping[str, str | int]] | int]:
        """`skipped` (rows left out) and `rows_cut` (number of rows that lost text), as far as defined."""
        found: dict[str, Sequence[Mapping[str, str | int]] | int] = {}
        if isinstance(self._data, _Skipped):
            found["skipped"] = self._data.skipped
        if isinstance(self._data, _RowsCut):
            found["rows_cut"] = self._data.rows_cut
        return found

    @property
    def corrupted_ids(self) -> tuple[int, ...]:
        """Ids of the training samples whose labels or answers were made wrong on purpose; empty by default."""
        found = self._data.corrupted_ids if isinstance(self._data, _CorruptedIds) else None
        return () if found is None else tuple(int(i) for i in found)

    @property
    def tokenizer(self) -> AnswerTokenizer | None:
        """Tokenizer of a set of conversations; None by default."""
        return self._data.tokenizer if isinstance(self._data, _Tokenized) else None
