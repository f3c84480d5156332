"""Batches in dataclasses with slots, and in objects whose tensors lie in a store of their own."""

from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ifloo.curvature import Hessian, dense
from ifloo.errors import InputError
from ifloo.gradients import gradient_products
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring
from ifloo.objective.batches import batch_size, slice_batch, to_device
from ifloo.objective.forms import attributes, map_tensors, opaque_parts, tensors_of
from ifloo.objective.functional import Path
from ifloo.objective.plain import recordable
from ifloo.objective.singles import Singles

N = 20


@dataclass(slots=True)
class Slots:
    x: Tensor
    y: Tensor
    source: str = "a table"


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: Tensor
    y: Tensor


class Store:
    """Values by name; no mapping, as in libraries of graphs."""

    def __init__(self, values):
        self.values = values


class Graph:
    """Rows with a number of nodes each, in a store of its own; the object can be called and moved."""

    def __init__(self, **values):
        self.store = Store(values)
        self.moves = 0

    def __call__(self, *names):
        return [self.store.values[name] for name in names]

    def to(self, device):
        self.moves += 1
        self.store.values = {name: value.to(device) for name, value in self.store.values.items()}
        return self


def row(i):
    draw = torch.Generator().manual_seed(i)
    x = torch.randn(2 + i % 3, 4, generator=draw)
    return x, torch.tensor(int(x.sum() > 0) + int(i % 5 == 0))


class Graphs(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return row(i)


def graph(samples):
    index = torch.cat([torch.full((len(x),), k) for k, (x, _) in enumerate(samples)])
    return Graph(x=torch.cat([x for x, _ in samples]), y=torch.stack([y for _, y in samples]), index=index)


def pooled(form):
    """Returns a collate function of the mean over nodes."""
    return lambda samples: form(torch.stack([x.mean(0) for x, _ in samples]), torch.stack([y for _, y in samples]))


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 3, dtype=torch.float64)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch.x), batch.y)


class OfGraphs(Net):
    def training_step(self, batch, _):
        x, y, index = batch("x", "y", "index")
        sums = torch.zeros(len(y), 4, dtype=x.dtype).index_add(0, index, x)
        return F.cross_entropy(self.lin(sums / index.bincount().unsqueeze(1)), y)


class WithHook(OfGraphs):
    def on_after_batch_transfer(self, batch, _):
        return Graph(**{**batch.store.values, "x": batch.store.values["x"] * 2})


CASES = {
    "slots": (Net, pooled(Slots), 1.0),
    "frozen slots": (Net, pooled(FrozenSlots), 1.0),
    "opaque": (OfGraphs, graph, 1.0),
    "opaque, with a hook": (WithHook, graph, 2.0),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_curvature_are_those_of_each_sample(case):
    kind, collate, scale = CASES[case]
    module = kind()
    objective = Objective.of(Adapted(module), DataLoader(Graphs(), batch_size=6, collate_fn=collate))
    theta = objective.losses.theta()
    V = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of_graphs = collate is graph  # their nodes are averaged in float64, after the cast
    means = [(x.double() if of_graphs else x).mean(0) for x, _ in map(row, range(N))]
    X, y = scale * torch.stack(means).double(), torch.stack([row(i)[1] for i in range(N)])

    def losses(t):
        weight, bias = t[:12].view(3, 4), t[12:]
        return F.cross_entropy(X @ weight.T + bias, y, reduction="none")

    G = torch.autograd.functional.jacobian(losses, theta)
    H = torch.autograd.functional.hessian(lambda t: losses(t).mean(), theta)
    with scoring(objective.losses.module):
        found = [gradient_products(objective.losses, theta, batch, V) for _, batch in objective.data.with_ids()]
        curvature = dense(Hessian(objective, theta))
    torch.testing.assert_close(torch.cat(found, 1), V @ G.T, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(curvature, H, rtol=1e-10, atol=1e-13)
    preflight(objective, theta)
    assert objective.losses.path is Path.LOOP or not of_graphs


def test_an_opaque_part_moves_itself_and_is_cast():
    given = graph([row(0), row(1)])
    found = to_device({"graph": given, "name": "a"}, torch.device("cpu"), torch.float64)["graph"]
    assert given.moves == 1
    assert found("x")[0].dtype == torch.float64
    assert found("y")[0].dtype == torch.int64
    assert given("x")[0].dtype == torch.float32  # of the caller
    assert type(found) is Graph


def test_an_opaque_part_that_moves_itself_in_place_is_kept():
    class InPlace(Graph):
        def to(self, device):
            super().to(device)

    given = InPlace(x=torch.ones(2, dtype=torch.float64))
    assert to_device(given, torch.device("cpu"), torch.float64) is given


def test_an_opaque_part_is_not_split():
    batch = (graph([row(0), row(1)]), torch.zeros(2))
    with pytest.raises(InputError) as caught:
        slice_batch(batch, slice(0, 1))
    assert str(caught.value) == (
        "A batch holds a Graph, which has no tensor attributes and cannot be split into samples.\n"
        "  Give the samples as a data set: each is then collated alone."
    )
    assert batch_size(batch) == 2
    assert slice_batch(Singles((batch, batch)), slice(0, 1)).batches == (batch,)


def test_tensors_in_an_opaque_part_are_seen_and_can_be_recorded():
    with torch.inference_mode():
        given = graph([row(3)])
    assert [len(x) for x in tensors_of(given)] == [2, 1, 2]
    assert list(tensors_of(given, within_opaque=False)) == []
    assert not any(x.is_inference() for x in tensors_of(recordable(given)))
    assert opaque_parts([{"a": given}, Slots(torch.ones(1), torch.ones(1))]) == [given]


def test_dataclasses_with_slots_are_traversed():
    doubled = map_tensors(lambda x: 2 * x, FrozenSlots(torch.ones(2), torch.ones(1)))
    assert (doubled.x.tolist(), doubled.y.tolist()) == ([2.0, 2.0], [2.0])
    assert attributes(Slots(torch.ones(1), torch.ones(1)))["source"] == "a table"
    partly = Slots.__new__(Slots)
    partly.x = torch.ones(1)
    assert list(attributes(partly)) == ["x"]


def test_a_device_is_known_without_tensors():
    class Text:
        def to(self, device):
            return self

    class OfText(Net):
        def training_step(self, batch, _):
            return self.lin.weight.square().sum()

        def on_after_batch_transfer(self, batch, _):
            return batch

    adapted = Adapted(OfText())
    assert adapted.single_loss(Text()).item() == pytest.approx(adapted.model.lin.weight.square().sum().item())
