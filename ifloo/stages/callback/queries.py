"""Test samples that a user gives, in any of the usual forms, as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.errors import InputError
from ifloo.objective import Batch, sequential
from ifloo.objective.batches import Identified, concatenate, without_ids
from ifloo.objective.forms import map_tensors
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.id_rule import IdRule, IdSetting
from ifloo.objective.ids import identified_queries, query_ids
from ifloo.objective.loaders import separately, unwrap_loader
from ifloo.objective.separation import Separation, same_form
from ifloo.objective.singles import Singles
from ifloo.store import content_of


@dataclass(frozen=True)
class Queries:
    """Test samples on the host.

    Attributes:
        singles: The samples one by one, and as one batch; both are collated as training samples are.
        ids: Ids of the samples.
    """

    singles: Singles
    ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        queries: Batch | Dataset[Batch] | DataLoader[Batch],
        count: int,
        train: DataLoader[Batch],
        ids: IdSetting = "auto",
    ) -> Queries:
        """Reads test samples.

        Args:
            queries: A batch, a data set (a list of samples is one), a single sample, or a DataLoader.
            count: Number of samples taken from a data set or DataLoader.
            train: Training loader; a batch has the form that its collate function makes.
            ids: Setting of the ids.

        Raises:
            InputError: There is no sample, the samples of a batch cannot be separated, or an id occurs twice.
        """
        loader = queries if isinstance(queries, DataLoader) else None
        forms = Separation.of(train) if loader is None else None
        if forms is not None and not isinstance(queries, Identified):
            data = _as_data_set(queries, forms)
            loader = None if data is None else _loader_of(data, train)
        if loader is not None:
            rule = sequential(loader, count, slice(0, count), ids).id_rule
            found = next(iter(sequential(separately(loader, with_whole=True), count)))
        else:
            assert forms is not None
            rule, found = IdRule(ids), forms.singles(without_ids(queries))
        moved = map_tensors(lambda x: x.detach().cpu(), without_ids(found))
        assert isinstance(moved, Singles)
        named = Identified(moved, queries.positions) if isinstance(queries, Identified) else moved
        own = query_ids(identified_queries(named, rule)).tolist()
        if len(set(own)) != len(own):
            raise InputError(f"InfluenceCallback: queries hold an id twice: {own}.\n  Each has files of its own.")
        return cls(moved, tuple(own))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def contents(self) -> list[str]:
        """SHA-256 of each sample."""
        return [content_of(one) for one in self.singles.batches]

    def in_form_of(self, losses: FunctionalLosses) -> Identified:
        """Returns the samples in the form in which losses are taken: one by one, or as one batch."""
        one_by_one, ids = self.singles.batches, torch.tensor(self.ids)
        if losses.path is Path.LOOP:
            return Identified(Singles(one_by_one), ids)
        return Identified(concatenate(one_by_one) if self.singles.whole is None else self.singles.whole, ids)


def _loader_of(data: object, train: DataLoader[Batch]) -> DataLoader[Batch]:
    # Whatever has a length and items serves as a dataset.
    return DataLoader(data, collate_fn=unwrap_loader(train)[1])  # type: ignore[arg-type]


def _as_data_set(queries: object, forms: Separation) -> object | None:
    """Returns the queries as a data set; None if they are a batch.

    A list may be either: of tensors for the model, or of samples for the collate function, as the training data show.
    """
    if forms.alike(queries):
        return None
    if same_form(queries, forms.sample):
        return [queries]
    if isinstance(queries, (list, tuple)) and queries and same_form(queries[0], forms.sample):
        return list(queries)
    return None if isinstance(queries, (Tensor, Mapping, list, tuple)) else queries
