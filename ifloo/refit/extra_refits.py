"""Refits other than removals of one sample: small weight steps and groups, with the files of their losses."""

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
    """Refits of one kind, with the files that record them."""

    @abstractmethod
    def missing(self) -> list[RefitRequest]:
        """Lists the refits that are not yet in every file."""

    @abstractmethod
    def record(self, result: RefitResult) -> bool:
        """Writes a result to the files that lack it; returns False if it is a refit of another kind."""


@dataclass(frozen=True)
class WeightSteps(ExtraRefits):
    """Refits with one sample at a weight near 1.

    Attributes:
        ids: Ids of the samples.
        files: Loss files by weight, one for each test.
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

    def record(self, result: RefitResult) -> bool:
        i, weight = result.request.id, result.request.weight
        if not weight:
            return False
        for file, rows, loss in zip(self.files[weight], self._done[weight], result.losses, strict=True):
            if i not in rows:
                rows[i] = LossRow(i, loss, result.grad_norm, result.seconds, None, {"weight": weight})
                file.add(rows[i])
        return True


@dataclass(frozen=True)
class Groups(ExtraRefits):
    """Refits with a group of samples removed together.

    Attributes:
        groups: Ids of each group, by test and name of the group.
        files: Loss files, one for each test, in the order of `groups`.
    """

    groups: Mapping[int, Mapping[str, tuple[int, ...]]]
    files: Sequence[GroupFile]

    @cached_property
    def _done(self) -> list[dict[str, GroupRow]]:
        return [file.done() for file in self.files]

    def missing(self) -> list[RefitRequest]:
        """Lists the refits that are not yet in every file.

        Raises:
            InputError: If a file has a group of the same name with other samples.
        """
        requests = []
        for file, named, done in zip(self.files, self.groups.values(), self._done, strict=True):
            for name, ids in named.items():
                if name not in done:
                    requests.append(RefitRequest(NULL_ID, group=ids, name=name))
                elif tuple(done[name].ids) != ids:
                    raise InputError(
                        f"{file.path}: group {name} was refitted without other samples than the scores now put into "
                        "it.\n  The scores have been computed again since. Delete this file to refit its groups, or "
                        "give another --output_dir to keep both."
                    )
        return list(dict.fromkeys(requests))  # random groups are the same for all tests

    def record(self, result: RefitResult) -> bool:
        name, ids = result.request.name, result.request.group
        if not ids:
            return False
        each = zip(self.groups.values(), self.files, self._done, result.losses, strict=True)
        for named, file, done, loss in each:
            if named.get(name) == ids and name not in done:
                done[name] = GroupRow(name, ids, loss, result.grad_norm, result.seconds)
                file.add(done[name])
        return True
