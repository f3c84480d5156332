"""Division of raw batches into samples: by what the collate function shows, or a refusal; never several as one."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution import GradientCosine, GradientDot, InfluenceFunction, OneStep, RandomScores
from ifloo.attribution.method import TrainedModel
from ifloo.curvature import Hessian
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective, Singles
from ifloo.objective.forms import tensors_of
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.separation import Separation, same_form
from tests.objective.situations import SITUATIONS, Linear, Rows, joined


def objective_of(name: str) -> Objective:
    case = SITUATIONS[name]
    return Objective.of(Adapted(case.module()), case.loader())


def scores_of(objective: Objective, queries: Any) -> Tensor:
    return GradientDot().scores(TrainedModel(objective, objective.losses.theta()), queries).value


def test_several_graphs_in_one_batch_are_refused_and_one_is_one():
    objective, data = objective_of("graphs"), SITUATIONS["graphs"].data
    with pytest.raises(InputError) as caught:
        scores_of(objective, joined([data[0], data[1]]))
    assert str(caught.value) == (
        "The samples of a batch (Graphs) cannot be separated: its tensors differ in their first dimension.\n"
        "  Give them as a data set or a list of samples where one is accepted: each is then collated alone. Or give "
        "each as a batch of one: ifloo.objective.Singles((first, second)), also for a single sample."
    )
    alone = [scores_of(objective, joined([data[i]])) for i in (0, 1)]
    singles = scores_of(objective, Singles((joined([data[0]]), joined([data[1]]))))
    assert alone[0].shape == (1, len(data))
    torch.testing.assert_close(torch.cat(alone), singles, rtol=1e-12, atol=1e-15)


class Sets(Dataset[Any]):
    """Rows that belong together, with a label each: no tensor of a batch counts the samples."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        x = torch.randn(2 + i % 3, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        return x, (x[:, 0] > 0).long()


def all_rows(samples: Any) -> Any:
    return torch.cat([x for x, _ in samples]), torch.cat([y for _, y in samples])


def test_rows_that_are_no_samples_are_not_taken_for_them():
    loader = DataLoader(Sets(), batch_size=4, collate_fn=all_rows)
    with pytest.raises(InputError, match=r"cannot be separated: rows of its tensors are no samples\."):
        Separation.of(loader).singles(all_rows([Sets()[0], Sets()[1]]))


class Opaque:
    """A graph whose tensors lie in a store."""

    def __init__(self, x: Tensor) -> None:
        self.store = {"x": x}.items()

    def to(self, device: torch.device) -> "Opaque":
        return self


@dataclass
class Numbered:
    """Nodes of graphs, with the number of graphs."""

    x: Tensor
    count: int


def chain(samples: Any) -> Any:
    """Two nodes and one edge for each sample: the edges of one sample count from another node."""
    k = torch.arange(len(samples))
    return torch.cat([x[:2] for x, _ in samples]), torch.stack([2 * k, 2 * k + 1]), torch.stack([y for _, y in samples])


REFUSED: dict[str, Any] = {
    "an object beside labels": lambda s: (Opaque(torch.stack([x for x, _ in s])), torch.stack([y for _, y in s])),
    "edges that count on": chain,
    "packed rows": lambda s: (pack_sequence([x[:1] for x, _ in s]), torch.stack([y for _, y in s])),
    "a number of graphs": lambda s: Numbered(torch.cat([x[:2] for x, _ in s]), len(s)),
    "a tensor of sums": lambda s: {"x": torch.stack([x for x, _ in s]), "sum": torch.stack([x for x, _ in s]).sum(0)},
}


@pytest.mark.parametrize("collate", REFUSED.values(), ids=REFUSED)
def test_a_batch_of_parts_that_cannot_be_divided_is_refused(collate):
    samples = [Rows()[i] for i in range(3)]
    separation = Separation.of(DataLoader(Rows(), batch_size=4, collate_fn=collate))
    with pytest.raises(InputError, match="cannot be separated"):
        separation.singles(collate(samples))
    one = collate(samples[:1])
    assert separation.singles(one).batches == (one,)


DIVIDED: dict[str, Any] = {
    "a number of samples": lambda s: {"x": torch.stack([x for x, _ in s]), "n": len(s)},
    "a name and a shared tensor": lambda s: ("train", torch.ones(3), torch.stack([x for x, _ in s])),
    "lists": lambda s: {"boxes": [x[:2] for x, _ in s], "texts": ["a"] * len(s), "y": torch.stack([y for _, y in s])},
    "sparse": lambda s: torch.stack([x for x, _ in s]).to_sparse(),
}


@pytest.mark.parametrize("collate", DIVIDED.values(), ids=DIVIDED)
def test_a_batch_is_divided_into_batches_of_one(collate):
    samples = [Rows()[i] for i in range(3)]
    separation = Separation.of(DataLoader(Rows(), batch_size=4, collate_fn=collate))
    found = separation.singles(collate(samples))
    assert len(found) == 3
    for one, sample in zip(found.batches, samples, strict=True):
        expected = collate([sample])
        assert same_form(one, expected)
        torch.testing.assert_close(list(tensors_of(one)), list(tensors_of(expected)), rtol=0, atol=0)


def test_each_item_of_a_dataset_of_batches_is_one_sample_and_this_is_noted():
    x, y = Rows()[0][0].expand(5, 4), torch.arange(5) % 3
    loader = DataLoader([(x, y), (2 * x, y)], batch_size=None)  # type: ignore[arg-type]
    objective = Objective.of(Adapted(Linear()), loader)
    assert scores_of(objective, (x, y)).shape == (1, 2)
    (note,) = objective.losses.notes
    assert "each item of the data set is a batch (batch_size=None) and counts as one sample" in note


def test_without_training_data_a_batch_is_not_divided():
    module = Adapted(Linear())
    losses = FunctionalLosses(module, objective_of("plain").losses.space, Path.LOOP)
    with pytest.raises(InputError, match="the form of the training batches is not known"):
        losses.sample_losses(losses.theta(), (torch.zeros(3, 4), torch.zeros(3).long()))


METHODS = {
    "gradient dot": GradientDot(),
    "gradient cosine": GradientCosine(),
    "one step": OneStep(rate=0.1),
    "influence": InfluenceFunction("hessian", Hessian, damping=0.1),
    "random": RandomScores(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_queries_side_by_side_have_one_id_each(method):
    """Rows of such a batch are positions in texts, not samples."""
    objective, case = objective_of("time first"), SITUATIONS["time first"]
    batch = case.loader().collate_fn([case.data[i] for i in (3, 5, 8)])
    found = method.scores(TrainedModel(objective, objective.losses.theta()), batch)
    assert (found.value.shape, found.query_ids.tolist()) == ((3, len(case.data)), [0, 1, 2])
