"""Batches of rare forms: sparse, nested and packed tensors, arrays of NumPy, lists of boxes, squeezed samples."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from ifloo.attribution import GradientDot
from ifloo.attribution.method import TrainedModel
from ifloo.models import Adapted
from ifloo.objective import Objective, Singles, preflight
from ifloo.objective.batches import concatenate, slice_batch
from tests.objective.situations import Linear, Rows
from tests.objective.test_forms import Slots


def parts(samples: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def sparse(samples: Any) -> Any:
    x, y = parts(samples)
    return x.to_sparse(), y


def arrays(samples: Any) -> Any:
    return tuple(x.numpy() for x in parts(samples))


def packed(samples: Any) -> Any:
    return pack_sequence([x[: 2 + int(y), None] for x, y in samples], enforce_sorted=False), parts(samples)[1]


def nested(samples: Any) -> Any:
    return torch.nested.nested_tensor([x[: 2 + int(y)] for x, y in samples]), parts(samples)[1]


def boxes(samples: Any) -> Any:
    targets = [{"boxes": x.repeat(1 + int(y), 1), "labels": y.repeat(1 + int(y))} for x, y in samples]
    return [x for x, _ in samples], targets


class Dense(Linear):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0].to_dense()), batch[1])


class Arrays(Linear):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.lin(torch.as_tensor(batch[0])), torch.as_tensor(batch[1]))


class Recurrent(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 4, dtype=torch.float64)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.lin(self.rnn(batch[0])[1][0]), batch[1])


class Padded(Linear):
    def training_step(self, batch: Any, _: int) -> Tensor:
        x = F.pad(batch[0].to_padded_tensor(0.0), (0, 4))[:, :4]
        return F.cross_entropy(self.lin(x), batch[1])


class Detector(Linear):
    def training_step(self, batch: Any, _: int) -> Tensor:
        losses = [F.cross_entropy(self.lin(one["boxes"]), one["labels"]) for one in batch[1]]
        return torch.stack(losses).mean()


class Squeezed(Linear):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]).squeeze(), batch[1].squeeze())


CASES: dict[str, Any] = {
    "sparse": (Dense, sparse),
    "arrays": (Arrays, arrays),
    "packed": (Recurrent, packed),
    "nested": (Padded, nested),
    "boxes": (Detector, boxes),
    "squeezed": (Squeezed, parts),
}


class Columns(Dataset[Any]):
    """A data set of columns, as Hugging Face has them: a column by name, a row by position."""

    def __init__(self) -> None:
        self.columns = dict(zip("xy", parts([Rows()[i] for i in range(len(Rows()))]), strict=True))

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        assert isinstance(key, (int, np.integer, list))
        return {name: column[key] for name, column in self.columns.items()}

    def __getitems__(self, keys: list[int]) -> Any:
        found = self[keys]
        return [{name: column[k] for name, column in found.items()} for k in range(len(keys))]


def slopes(module: L.LightningModule, batch: Any) -> Tensor:
    loss = module.training_step(batch, 0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_scores_are_those_of_each_sample_alone(case):
    kind, collate = CASES[case]
    module, data = kind(), Rows()
    objective = Objective.of(Adapted(module), DataLoader(data, batch_size=7, collate_fn=collate), batch_size=7)
    theta = objective.losses.theta()
    preflight(objective, theta)
    singles = [collate([data[i]]) for i in range(len(data))]
    found = GradientDot().scores(TrainedModel(objective, theta), Singles((singles[2], singles[5]))).value
    exact = torch.stack([slopes(module, one) for one in singles])
    torch.testing.assert_close(found, -exact[[2, 5]] @ exact.T / len(data), rtol=1e-12, atol=1e-15)


def test_a_data_set_of_columns():
    class Named(Linear):
        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.lin(batch["x"]), batch["y"])

    module, data = Named(), Columns()
    objective = Objective.of(Adapted(module), DataLoader(data, batch_size=7))
    theta = objective.losses.theta()
    preflight(objective, theta)
    found = GradientDot().scores(TrainedModel(objective, theta), data[[2, 5]]).value
    exact = torch.stack([slopes(module, data[[i]]) for i in range(len(data))])
    torch.testing.assert_close(found, -exact[[2, 5]] @ exact.T / len(data), rtol=1e-12, atol=1e-15)


def test_texts_and_attributes_are_cut_and_joined_with_their_samples():
    first, second = ({"x": torch.arange(float(n)), "names": [f"{n}{k}" for k in range(n)], "unit": "m"} for n in (3, 2))
    assert slice_batch(first, slice(1, 3))["names"] == ["31", "32"]
    assert slice_batch(first, torch.tensor([2, 0]))["names"] == ["32", "30"]
    joined = concatenate([first, second])
    assert joined["names"] == ["30", "31", "32", "20", "21"]
    assert (joined["x"].tolist(), joined["unit"]) == ([0.0, 1.0, 2.0, 0.0, 1.0], "m")
    slots = concatenate([Slots(torch.zeros(2), torch.ones(2)), Slots(torch.zeros(1), torch.ones(1))])
    assert (type(slots), slots.x.tolist(), slots.y.tolist()) == (Slots, [0.0] * 3, [1.0] * 3)


def test_stated_losses_that_read_texts_are_those_of_their_samples():
    class Named(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            return {"x": Rows()[i][0], "y": Rows()[i][1], "name": "a" * (1 + i % 4)}

    def losses(model: Any, batch: Any) -> Tensor:
        lengths = torch.tensor([float(len(name)) for name in batch["name"]], dtype=torch.float64)
        return F.cross_entropy(model.lin(batch["x"] * lengths.unsqueeze(1)), batch["y"], reduction="none")

    module, data = Linear(), Named()
    objective = Objective.of(Adapted(module, losses), DataLoader(data, batch_size=7), batch_size=7)
    theta = objective.losses.theta()
    preflight(objective, theta)
    singles = [default_collate([data[i]]) for i in range(len(data))]
    parameters = list(module.parameters())
    each = [torch.autograd.grad(losses(module, one).sum(), parameters) for one in singles]
    exact = torch.stack([torch.cat([g.flatten() for g in one]) for one in each])
    queries = default_collate([data[2], data[5], data[7]])
    found = GradientDot().scores(TrainedModel(objective, theta), queries).value
    torch.testing.assert_close(found, -exact[[2, 5, 7]] @ exact.T / len(data), rtol=1e-12, atol=1e-15)


class InPlace(Linear):
    """Scales its batch in place, which harms no fit: each batch is collated anew there."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        batch[0].mul_(2)
        return F.cross_entropy(self.lin(batch[0]), batch[1])


def in_place(model: Any, batch: Any) -> Tensor:
    batch[0].mul_(2)
    return F.cross_entropy(model.lin(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("losses", [None, in_place])
def test_a_step_that_changes_its_batch_in_place(losses):
    module, data = InPlace(), Rows()
    objective = Objective.of(Adapted(module, losses), DataLoader(data, batch_size=7), batch_size=7)
    theta = objective.losses.theta()
    preflight(objective, theta)
    query = parts([data[2], data[5]])
    found = GradientDot().scores(TrainedModel(objective, theta), query).value
    assert torch.equal(query[0], parts([data[2], data[5]])[0])
    exact = torch.stack([slopes(module, parts([data[i]])) for i in range(len(data))])
    torch.testing.assert_close(found, -exact[[2, 5]] @ exact.T / len(data), rtol=1e-12, atol=1e-15)


class WithGradient(Dataset[Any]):
    """Inputs that require a gradient, as for a penalty of its norm."""

    def __len__(self) -> int:
        return len(Rows())

    def __getitem__(self, i: int) -> Any:
        x, y = Rows()[i]
        return x.clone().requires_grad_(), y


def test_inputs_that_require_a_gradient():
    module, data = Linear(), WithGradient()
    objective = Objective.of(Adapted(module), DataLoader(data, batch_size=7), batch_size=7)
    theta = objective.losses.theta()
    preflight(objective, theta)
    found = GradientDot().scores(TrainedModel(objective, theta), parts([data[2], data[5]])).value
    exact = torch.stack([slopes(module, parts([data[i]])) for i in range(len(data))])
    torch.testing.assert_close(found, -exact[[2, 5]] @ exact.T / len(data), rtol=1e-12, atol=1e-15)
