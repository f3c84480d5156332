"""Where the ids of samples stand: decided once for a data set, over all of its samples, and then read by one rule.

An id is the value of key `idx` or `sample_index` where that is one whole number per sample and unique; the third item
of a tuple only where a setting says so; else the row of the sample in the user's own dataset. Anything else under these
names is data.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Subset

from ifloo.errors import InputError
from ifloo.objective.singles import Singles, first_draw

log = logging.getLogger(__name__)
ID_KEYS: tuple[Literal["idx", "sample_index"], ...] = ("idx", "sample_index")
IdSetting: TypeAlias = Literal["auto", "third", "positions"]
Source: TypeAlias = Literal["auto", "third", "positions", "idx", "sample_index"]
THIRD_IGNORED = (
    "ids: the third item of a batch, one whole number per sample, is taken for data: it is not the position of the "
    "sample. Ids are positions; `--adapt.ids third` takes the third item."
)
ADVICE = "give each sample a unique whole number under key `idx` or `sample_index`, or leave the setting out"


@dataclass(frozen=True)
class IdRule:
    """The place where the ids of all samples of one data set are found.

    Attributes:
        source: Key of a dict, third item of a tuple, or positions; `auto` before all samples have been read.
        rows: Row of each sample in the user's own dataset, `[n]`; None: the positions themselves.
    """

    source: Source = "auto"
    rows: Int[Tensor, " n"] | None = None

    def carried(self, batch: object, b: int) -> Int[Tensor, " b"] | None:
        """Returns the ids within a batch of b samples; None where ids are rows, or are not decided yet."""
        return None if self.source in ("auto", "positions") else _under(batch, self.source, b)

    def of_rows(self, positions: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Returns the rows in the user's dataset of the samples at these positions."""
        return positions if self.rows is None else self.rows[positions]

    def of(self, batch: object, positions: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Returns the ids of the samples at these positions, which the batch holds."""
        found = self.carried(batch, len(positions))
        return self.of_rows(positions) if found is None else found.cpu()

    def part(self, positions: range) -> IdRule:
        """Returns the rule of some of the samples."""
        at = torch.tensor(list(positions), dtype=torch.int64)
        return replace(self, rows=self.of_rows(at))


@runtime_checkable
class StatesIds(Protocol):
    """A loader that knows where the ids of its samples stand.

    Attributes:
        id_rule: The rule, of samples in the order of the loader.
    """

    id_rule: IdRule


def rows_of(dataset: object) -> Int[Tensor, " n"] | None:
    """Returns the row of each sample in the innermost dataset behind (nested) `Subset`s; None without a `Subset`."""
    rows: Tensor | None = None
    while isinstance(dataset, Subset):
        indices = torch.as_tensor([int(i) for i in dataset.indices], dtype=torch.int64)
        if len(indices) and int(indices.min()) < 0:  # as Python counts, from the end
            indices = torch.where(indices < 0, indices + len(dataset.dataset), indices)  # type: ignore[arg-type]
        rows = indices if rows is None else indices[rows]
        dataset = dataset.dataset
    if rows is not None and len(torch.unique(rows)) != len(rows):  # a sample that a Subset holds twice is two samples
        return None
    return rows


def third_ids(batch: object, b: int) -> Int[Tensor, " b"] | None:
    """Returns the third item of a tuple if it is one whole number per sample."""
    return _under(batch, "third", b)


def carried_ids(batch: object, b: int) -> Int[Tensor, " b"] | None:
    """Returns the value of the first key of ids that is one whole number per sample; None if no key is."""
    return next((found for key in ID_KEYS if (found := _under(batch, key, b)) is not None), None)


_noted: set[tuple[str, int]] = set()


def note(text: str, dataset: object = None) -> None:
    """Logs a note about the ids of a data set once, although several stages of a run decide them."""
    key = (text, id(dataset))
    if key in _noted:
        return
    _noted.add(key)
    # A data set without weak references, such as a list, keeps its note: another one at its address gets none.
    with suppress(TypeError):
        weakref.finalize(dataset, _noted.discard, key).atexit = False
    log.warning(text)


class IdReader:
    """Decides the rule of a data set while all of its samples are read once."""

    def __init__(self, rule: IdRule) -> None:
        """Starts with a setting (`auto`, `third`), or with a rule that is decided already."""
        self._rule, self._n = rule, 0
        # A setting `third` is of tuples; dicts have no third item.
        sources: dict[Source, tuple[Source, ...]] = {
            "auto": ("idx", "sample_index", "third"),
            "third": ("third", "idx", "sample_index"),
            "positions": (),
        }
        self._found: dict[Source, list[Tensor]] = {s: [] for s in sources.get(rule.source, (rule.source,))}
        self._given: list[Tensor] = []

    @property
    def undecided(self) -> bool:
        """Whether ids can still be those that the batches carry."""
        return bool(self._found)

    def add(self, batch: object, b: int, ids: Int[Tensor, " b"] | None = None) -> None:
        """Reads the next b samples, whose ids are known if `ids` is given."""
        if ids is not None:
            self._given.append(ids.cpu())
        for source in list(self._found):
            if (found := _under(batch, source, b)) is None:
                self._refuse_lack(source, batch)
                del self._found[source]
            else:
                self._found[source].append(found.cpu())
        self._n += b

    def decided(self) -> tuple[IdRule, Int[Tensor, " n"]]:
        """Returns the rule and the ids of all samples, in order.

        Raises:
            InputError: The setting asks for the third item, which is not one unique whole number per sample; or ids
                that the loader gave occur twice.
        """
        if self._given:
            ids = torch.cat(self._given)
            _refuse_repeated(ids)
            return IdRule("positions", ids), ids
        positions = self._rule.of_rows(torch.arange(self._n))
        for source, parts in self._found.items() if self._n else ():
            ids = torch.cat(parts)
            if source == "third" and self._rule.source == "auto":
                if not torch.equal(ids, positions):
                    note(THIRD_IGNORED)
            elif (distinct := len(torch.unique(ids))) == self._n:
                return replace(self._rule, source=source), ids
            else:
                self._refuse_repeats(source, ids)
                note(
                    f"ids: key {source} holds {distinct:,} different numbers for {self._n:,} samples, and is taken for "
                    "data. Ids are positions."
                )
        return replace(self._rule, source="positions"), positions

    def _refuse_lack(self, source: Source, batch: object) -> None:
        if source == self._rule.source == "third" and not _is_mapping(batch):
            raise InputError(
                "ids third: the third item of a batch is not one whole number per sample.\n"
                f"  Give batches (x, y, id), {ADVICE}."
            )

    def _refuse_repeats(self, source: Source, ids: Tensor) -> None:
        if source == self._rule.source:
            _refuse_repeated(ids)


def _is_mapping(batch: object) -> bool:
    return isinstance(first_draw(batch.batches[0] if isinstance(batch, Singles) else batch), Mapping)


def _under(batch: object, source: Source, b: int) -> Int[Tensor, " b"] | None:
    """Returns what stands under a key, or third, if it is one whole number per sample."""
    if isinstance(batch, Singles):
        parts = [found for one in batch.batches if (found := _under(one, source, 1)) is not None]
        return torch.cat(parts) if parts and len(parts) == b else None
    batch, value = first_draw(batch), None
    if source == "third":
        value = batch[2] if isinstance(batch, (tuple, list)) and len(batch) == 3 else None
    elif isinstance(batch, Mapping):
        value = batch.get(source)
    if not isinstance(value, Tensor) or value.shape != (b,) or value.dtype is torch.bool:
        return None
    return None if value.is_floating_point() or value.is_complex() else value.long()


def _refuse_repeated(ids: Tensor) -> None:
    values, counts = torch.unique(ids, return_counts=True)
    if len(twice := values[counts > 1]):
        raise InputError(
            f"Sample ids must be unique; {len(twice)} occur more than once, the first is {int(twice[0])}.\n"
            "  Give each training sample its own id (key `idx` or `sample_index`), or none at all."
        )
