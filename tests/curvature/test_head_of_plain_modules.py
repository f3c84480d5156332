"""The exact head of modules whose losses come from their own training step: one pass, and plain autograd agrees."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution.head import HeadProducts
from ifloo.curvature import Hessian, LinearHead
from ifloo.curvature.head_layer import HeadLayer
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Identified, Objective, SampleWeights
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.loaders import separately
from ifloo.objective.singles import Singles
from ifloo.params import ParamSpace

N, D, H, C = 11, 4, 5, 3
PASSES = [0]  # of a body, whichever copy of the module runs it
ROUNDING = {"rtol": 1e-11, "atol": 1e-12}  # sums of 11 samples in float64, added in another order


class Data(Dataset[Any]):
    def __init__(self, sample: Callable[[torch.Generator, int], Any]) -> None:
        draw = torch.Generator().manual_seed(3)
        self.samples = [sample(draw, i) for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.samples[i]


class Module(L.LightningModule):
    """Counts how often the body runs, over all samples of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(D, H), nn.Linear(H, C)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        PASSES[0] += 1
        return torch.tanh(self.body(x))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.head(self.features(batch[0])), batch[1])


class Tokens(Module):
    """The mean over tokens, padding left out; two dimensions of positions."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.head(self.features(batch[0].unflatten(1, (2, 2))))
        return F.cross_entropy(z.flatten(0, 2), batch[1].flatten(), ignore_index=-100)


class TimeFirst(Module):
    """Sequences as [T, b]: the sample is not the first dimension of the layer's inputs."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.head(self.features(batch[0].transpose(0, 1)))
        return F.cross_entropy(z.flatten(0, 1), batch[1].T.flatten(), ignore_index=-100)


class Pixels(Module):
    """A convolution of one pixel as head, without a penalty for its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, H, 3, padding=1), nn.Conv2d(H, C, 1)
        self.double()

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.head(self.features(batch[0])), batch[1], ignore_index=255)


class Recurrent(Module):
    """A body that no transform runs, on texts of several lengths, a target for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(D, H, batch_first=True)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        PASSES[0] += 1
        return self.body(x)[0]

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.head(self.features(batch["x"]))
        assert float(z.detach().sum()) < 1e9  # reads a value
        return F.cross_entropy(z.flatten(0, 1), batch["y"].flatten(), ignore_index=-100)


def _row(draw: torch.Generator, _: int) -> Any:
    return torch.randn(D, generator=draw, dtype=torch.float64), torch.randint(C, (), generator=draw)


def _text(draw: torch.Generator, i: int) -> Any:
    x, y = torch.randn(4, D, generator=draw, dtype=torch.float64), torch.randint(C, (4,), generator=draw)
    y[: i % 3] = -100
    return x, y


def _image(draw: torch.Generator, i: int) -> Any:
    x, y = torch.randn(1, 3, 2, generator=draw, dtype=torch.float64), torch.randint(C, (3, 2), generator=draw)
    y[: i % 3] = 255
    return x, y


def _ragged(draw: torch.Generator, i: int) -> Any:
    t = 1 + (3 * i) % 5
    return {"x": torch.randn(t, D, generator=draw, dtype=torch.float64), "y": torch.randint(C, (t,), generator=draw)}


def _padded(samples: list[Any]) -> Any:
    x = nn.utils.rnn.pad_sequence([s["x"] for s in samples], batch_first=True)
    return {"x": x, "y": nn.utils.rnn.pad_sequence([s["y"] for s in samples], batch_first=True, padding_value=-100)}


CASES: dict[str, tuple[type[Module], Any, Any, Path]] = {
    "rows": (Module, _row, None, Path.FORWARD),
    "tokens": (Tokens, _text, None, Path.FORWARD),
    "time first": (TimeFirst, _text, None, Path.FORWARD),
    "pixels": (Pixels, _image, None, Path.FORWARD),
    "a recurrent body": (Recurrent, _ragged, _padded, Path.LOOP),
}


def make(name: str, patterns: tuple[str, ...] = ("head.*",)) -> tuple[Module, Data, Objective]:
    kind, sample, collate, path = CASES[name]
    torch.manual_seed(0)
    net, data = kind().eval(), Data(sample)
    objective = Objective.of(Adapted(net, l2=0.03), DataLoader(data, batch_size=4, collate_fn=collate), patterns, 4)
    assert objective.losses.path is path
    return net, data, objective


def reference(net: Module, data: Data, name: str, weights: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """J of the head's weights, by the training step on one sample after the other, without ifloo."""
    collate = CASES[name][2] or torch.utils.data.default_collate
    space = ParamSpace.of(net, ["head.*"])
    w = torch.ones(N, dtype=torch.float64) if weights is None else weights

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: Any) -> Tensor:
            return self.net.training_step(batch, 0)

    def value(theta: Tensor) -> Tensor:
        named = {f"net.{n}": x for n, x in space.unflatten(theta).items()}
        losses = torch.stack([functional_call(Step(), named, (collate([data[i]]),)) for i in range(N)])
        return (w * losses).sum() / N + 0.015 * theta.square().sum()

    return value


@pytest.mark.parametrize("patterns", [("head.*",), ("head.weight",)], ids=["with bias", "bias fixed"])
@pytest.mark.parametrize("name", CASES)
def test_products_and_core_are_the_hessian(name, patterns):
    net, data, objective = make(name, patterns)
    theta = objective.losses.theta()
    head = LinearHead(objective, theta)
    whole = ParamSpace.of(net, ["head.*"]).values_of(net)
    truth = torch.autograd.functional.hessian(reference(net, data, name), whole)
    if len(theta) < len(whole):
        truth = truth[: len(theta), : len(theta)]  # the weight comes before the bias
    V = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    torch.testing.assert_close(head.matmat(V), V @ truth, **ROUNDING)
    torch.testing.assert_close(head.core().product(V), V @ truth, **ROUNDING)
    torch.testing.assert_close(Hessian(objective, theta).matmat(V), V @ truth, **ROUNDING)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_outer_products_of_its_rows(name):
    net, data, objective = make(name)
    theta = objective.losses.theta()
    products = HeadProducts(LinearHead(objective, theta))
    V = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    found = torch.cat([products.of(piece, V) for piece in products.chunks()], 1)
    each = []
    for i in range(N):
        w = torch.zeros(N, dtype=torch.float64)
        w[i] = N
        total = torch.autograd.functional.jacobian(reference(net, data, name, w), theta)
        each.append(total - 0.03 * theta)
    torch.testing.assert_close(found, V @ torch.stack(each).T, **ROUNDING)
    batch = next(iter(objective.data.with_ids()))[1]
    torch.testing.assert_close(products.query_gradients(batch), torch.stack(each[:4]), **ROUNDING)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_samples_and_factors_of_losses_count(name):
    net, data, objective = make(name)
    theta = objective.losses.theta()
    weights = SampleWeights.removing([2, 7], "drop", N)
    head = LinearHead(objective.reweighted(weights), theta)
    w = weights.of(torch.arange(N), torch.float64)
    truth = torch.autograd.functional.hessian(reference(net, data, name, w), theta)
    V = torch.eye(len(theta), dtype=theta.dtype)
    torch.testing.assert_close(head.matmat(V), truth, **ROUNDING)

    factors = torch.linspace(0.5, 1.5, N, dtype=torch.float64)

    class Factored:
        """The same samples, each with a factor of its loss."""

        n, ids = N, torch.arange(N)

        def with_ids(self) -> Any:
            for ids, batch in objective.data.with_ids():
                yield ids, Identified(batch, ids, factors[ids])

    head = LinearHead(Objective(objective.losses, Factored()), theta)
    truth = torch.autograd.functional.hessian(reference(net, data, name, factors), theta)
    torch.testing.assert_close(head.matmat(V), truth, **ROUNDING)


@pytest.mark.parametrize("name", CASES)
def test_the_body_runs_once_for_all_derivatives(name):
    _, _, objective = make(name)
    theta = objective.losses.theta()
    PASSES[0] = 0
    head = LinearHead(objective, theta)
    batches = [batch for _, batch in objective.data.with_ids()]
    each = len(batches) if not isinstance(batches[0], Singles) else N
    checks = 3 * (1 if each < N else 4)  # of other uses of the weights, on the first batch
    first = 0 if each == N else len(batches)  # the first sample of each batch, for its number of positions
    assert PASSES[0] == each + checks + first
    before = PASSES[0]
    head.matmat(torch.ones(2, len(theta), dtype=theta.dtype))
    assert PASSES[0] == before


def test_losses_at_other_outputs():
    """What refits by a fixed factor, and losses of samples left out, ask for."""
    for name in CASES:
        _, _, objective = make(name)
        layer = HeadLayer.of(objective.losses)
        theta = objective.losses.theta()
        moved = theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=theta.dtype)
        for _, batch in objective.data.with_ids():
            z = layer.outputs(moved, layer.inputs(theta, batch))
            torch.testing.assert_close(
                layer.losses_of(theta, z, batch), objective.losses.sample_losses(moved, batch), **ROUNDING
            )


class Twice(Module):
    def training_step(self, batch: Any, _: int) -> Tensor:
        h = self.features(batch[0])
        return F.cross_entropy(self.head(h) + self.head(h * 2), batch[1])


class Own(Module):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return super().training_step(batch, _) * self.head.weight.square().sum()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Twice, r"Layer 'model\.head' must be passed once with one row \(or several positions\) for each of the 1 "),
        (Own, r"The losses depend on the parameters of layer 'model\.head' other than through its output "),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_is_no_linear_head_is_explained(kind, text, one_by_one):
    torch.manual_seed(0)
    loader = DataLoader(Data(_row), batch_size=4)
    module = Adapted(kind())
    losses = FunctionalLosses(module, ParamSpace.of(module, ["head.*"]))
    objective = Objective.of(module, loader, ["head.*"], 4)
    if one_by_one:
        singles = list(separately(loader, with_whole=False))
        looped = FunctionalLosses(losses.module, losses.space, Path.LOOP)
        objective = Objective(looped, type(objective.data)(singles, torch.device("cpu"), torch.float64))
    with pytest.raises(InputError, match=f"^{text}"):
        LinearHead(objective, objective.losses.theta())
