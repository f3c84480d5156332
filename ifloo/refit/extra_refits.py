"""Where refits other than plain removals are recorded: small weight steps, and groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ifloo.errors import InputError
from ifloo.refit.execution.job import RefitRequest, RefitResult
from ifloo.store import NULL_ID, GroupFile, GroupRow, LossFile, LossRow
from ifloo.store import WEIGHTS as WEIGHTS


class ExtraRefits(ABC):
    """Refits of one kind: which are still to be made, and where each goes."""

    @abstractmethod
    def missing(self) -> list[RefitRequest]:
        """Those not yet in every file."""

    @abstractmethod
    def record(self, outcome: RefitResult) -> bool:
        """Records an outcome if it is of this kind; says whether it is."""


@dataclass(frozen=True)
class WeightSteps(ExtraRefits):
    """Samples at weights near 1.

    Attributes:
        ids: samples.
        files: of each weight, one for each test.
    """

    ids: Sequence[int]
    files: Mapping[float, Sequence[LossFile]]

    @cached_property
    def _done(self) -> dict[float, list[dict[int, LossRow]]]:
        return {weight: [file.done() for file in files] for weight, files in self.files.items()}

    def missing(self) -> list[RefitRequest]:
        return [
            RefitRequest(i, weight=weight)
            for i in self.ids
            for weight, done in self._done.items()
            if any(i not in rows for rows in done)
        ]

    def record(self, outcome: RefitResult) -> bool:
        i, weight = outcome.request.id, outcome.request.weight
        if not weight:
            return False
        for file, rows, loss in zip(self.files[weight], self._done[weight], outcome.losses, strict=True):
            if i not in rows:
                rows[i] = LossRow(i, loss, outcome.grad_norm, outcome.seconds, None, {"weight": weight})
                file.add(rows[i])
        return True


@dataclass(frozen=True)
class Groups(ExtraRefits):
    """Samples removed together.

    Attributes:
        groups: of each test, by name.
        files: one for each test, in the same order.
    """

    groups: Mapping[int, Mapping[str, tuple[int, ...]]]
    files: Sequence[GroupFile]

    @cached_property
    def _done(self) -> list[dict[str, GroupRow]]:
        return [file.done() for file in self.files]

    def missing(self) -> list[RefitRequest]:
        """Those not yet in every file.

        Raises:
            InputError: a group of this name is there, and it is of other samples.
        """
        wanted = []
        for file, named, done in zip(self.files, self.groups.values(), self._done, strict=True):
            for name, ids in named.items():
                if name not in done:
                    wanted.append(RefitRequest(NULL_ID, group=ids, name=name))
                elif tuple(done[name].ids) != ids:
                    raise InputError(
                        f"{file.path}: group {name} was refitted without other samples than the scores now put into "
                        "it.\n  They were made anew since. Delete this file to refit its groups, or give another "
                        "--output_dir to keep both."
                    )
        return list(dict.fromkeys(wanted))  # random groups are the same for all tests

    def record(self, outcome: RefitResult) -> bool:
        name, ids = outcome.request.name, outcome.request.group
        if not ids:
            return False
        each = zip(self.groups.values(), self.files, self._done, outcome.losses, strict=True)
        for named, file, done, loss in each:
            if named.get(name) == ids and name not in done:
                done[name] = GroupRow(name, ids, loss, outcome.grad_norm, outcome.seconds)
                file.add(done[name])
        return True
