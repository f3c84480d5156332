"""The contract of data: what ifloo needs of a data module and its sample sets, and what they may state besides.

A data module meets it by having the members of `AttributionData`; any other LightningDataModule is wrapped in
`AdaptedData`, which makes them from its loaders. Optional members have defaults, which `DataNotes` gives.
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
    """What can be shown of samples."""

    def caption(self, id_: int, /) -> str:
        """What the sample is, in one short line, such as its label; empty where there is nothing to say."""
        ...

    def picture(self, id_: int, /) -> NDArray[np.uint8] | None:
        """The sample as an image, uint8 `[h, w]` or `[h, w, 3]`; None where it has none."""
        ...


@runtime_checkable
class ConversationSet(Protocol):
    """Optional: a set whose samples are a question, its answer and the images they are about."""

    def question(self, id_: int, /) -> str: ...

    def answer(self, id_: int, /) -> str: ...

    def pictures(self, id_: int, /) -> Sequence[NDArray[np.uint8]]: ...


@runtime_checkable
class SampleSet(CaptionedSet, Protocol):
    """Samples by id; an id names its sample for good, whatever limits, shuffles or batches the set."""

    @property
    def ids(self) -> Int64[Tensor, " n"]:
        """Ids of all samples, in order."""
        ...

    def __len__(self) -> int: ...


# Properties of a data module may raise before `setup`: `typing_extensions.Protocol` looks members up without
# evaluating them, while `isinstance` with that of Python 3.10 and 3.11 would call them.


@typing_extensions.runtime_checkable
class SampleSets(typing_extensions.Protocol):
    """Training and test samples, which is all that a report needs of a data module."""

    @property
    def train_set(self) -> CaptionedSet | ConversationSet: ...

    @property
    def test_set(self) -> CaptionedSet | ConversationSet: ...


@typing_extensions.runtime_checkable
class QueryBatches(typing_extensions.Protocol):
    """Test samples by id, as a model reads them."""

    def test_batch(self, ids: Sequence[int], /) -> Batch:
        """The test samples with these ids, in this order, as one batch."""
        ...


@typing_extensions.runtime_checkable
class AttributionData(SampleSets, QueryBatches, typing_extensions.Protocol):
    """A data module as the commands need it: the members below, beside those of every LightningDataModule."""

    @property
    def train_set(self) -> SampleSet: ...

    @property
    def test_set(self) -> SampleSet: ...

    @property
    def hparams(self) -> Mapping[str, object]:
        """The arguments of the constructor, as `save_hyperparameters` keeps them."""
        ...

    def prepare_data(self) -> None: ...

    def setup(self, stage: str, /) -> None: ...

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches that carry ids: key `idx` or `sample_index`, or the third item of `(x, y, idx)`."""
        ...

    def fingerprint(self) -> str:
        """A text that is another one when the training data are other ones: it keeps results apart."""
        ...


@runtime_checkable
class AnswerTokenizer(Protocol):
    """What reading an answer needs of a tokenizer.

    Attributes:
        eos: Token that ends an answer.
    """

    eos: int

    def decode(self, ids: Iterable[int], /) -> str: ...


# The optional members, each asked for by itself.


@typing_extensions.runtime_checkable
class _FreeSettings(typing_extensions.Protocol):
    free_settings: frozenset[str]


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
    """The optional members of a data module, each read when it is asked for, with a default where it is not stated."""

    def __init__(self, data: object) -> None:
        """Notes of a data module; of its class, the class variables alone."""
        self._data = data

    @property
    def free_settings(self) -> frozenset[str]:
        """Names of the settings that change no number, such as paths; none."""
        return self._data.free_settings if isinstance(self._data, _FreeSettings) else frozenset()

    @property
    def source_taken(self) -> str | None:
        """Which of its sources the data came from; None."""
        return self._data.source_taken if isinstance(self._data, _SourceTaken) else None

    @property
    def source_reason(self) -> str | None:
        """Why that source was taken, in words; None."""
        return self._data.source_reason if isinstance(self._data, _SourceReason) else None

    @property
    def left_out(self) -> dict[str, Sequence[Mapping[str, str | int]] | int]:
        """`skipped`, the rows that were left out, and `rows_cut`, how many lost a part; only what is stated."""
        found: dict[str, Sequence[Mapping[str, str | int]] | int] = {}
        if isinstance(self._data, _Skipped):
            found["skipped"] = self._data.skipped
        if isinstance(self._data, _RowsCut):
            found["rows_cut"] = self._data.rows_cut
        return found

    @property
    def corrupted_ids(self) -> tuple[int, ...]:
        """Ids of the training samples whose labels or answers were made wrong on purpose; none."""
        found = self._data.corrupted_ids if isinstance(self._data, _CorruptedIds) else None
        return () if found is None else tuple(int(i) for i in found)

    @property
    def tokenizer(self) -> AnswerTokenizer | None:
        """The tokenizer of a set of conversations; None."""
        return self._data.tokenizer if isinstance(self._data, _Tokenized) else None
