"""Models with a linear last layer and various losses, with dense reference values by plain autograd."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ifloo.objective import FunctionalLosses, Objective, SampleWeights, TrainingData
from ifloo.params import ParamSpace

N, D, C = 23, 5, 3


class Rows(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "y": self.y[i], "idx": torch.tensor(3 * i)}


class Net(nn.Module):
    """A module `before` the head, the linear head, and a loss of its outputs."""

    def __init__(
        self, before: nn.Module, head: nn.Linear, loss: Callable[[Tensor, Tensor], Tensor], penalise_bias: bool = True
    ) -> None:
        super().__init__()
        self.before, self.head, self.loss, self.penalise_bias = before, head, loss, penalise_bias

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(self.head(self.before(batch["x"])), batch["y"])

    def penalty(self) -> Tensor:
        total = self.head.weight.square().sum()
        if self.head.bias is not None and self.penalise_bias:
            total = total + self.head.bias.square().sum()
        return 0.5 * 0.07 * total


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def binary(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.squeeze(1), (y > 0).to(z.dtype), reduction="none")


def squares(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (z - y.unsqueeze(1)).square().sum(1)


def curved(z: Tensor, y: Tensor) -> Tensor:
    """Computes a loss that is nonlinear in the outputs before the likelihood: a Poisson rate of three softplus."""
    rate = F.softplus(z).sum(1)
    return rate - y * torch.log(rate)


def tokens(z: Tensor, y: Tensor) -> Tensor:
    """Computes the mean over the answer's tokens; tokens with label −100 are not counted."""
    each = F.cross_entropy(z.movedim(-1, 1), y, reduction="none", ignore_index=-100)
    return each.sum(1) / (y != -100).sum(1).clamp_min(1)


@dataclass(frozen=True)
class HeadCase:
    """A model, its data, and patterns of the attributed parameters."""

    name: str
    module: Net
    x: Tensor
    y: Tensor
    patterns: tuple[str, ...] = ("*",)
    weights: SampleWeights = field(default_factory=SampleWeights)

    def __str__(self) -> str:
        return self.name

    def objective(self, batch_size: int = 7, dtype: torch.dtype = torch.float64) -> Objective:
        space = ParamSpace.of(self.module, self.patterns)
        data = TrainingData(DataLoader(Rows(self.x, self.y), batch_size=batch_size), torch.device("cpu"), dtype)
        return Objective(FunctionalLosses(self.module, space), data, self.weights)

    @property
    def theta(self) -> Tensor:
        return ParamSpace.of(self.module, self.patterns).values_of(self.module)

    @property
    def queries(self) -> dict[str, Tensor]:
        return {"x": self.x[:4] * 0.9, "y": self.y[:4], "idx": torch.arange(4)}

    def losses_at(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        named = ParamSpace.of(self.module, self.patterns).unflatten(theta)
        call = Losses(self.module)
        return functional_call(call, {f"module.{k}": v for k, v in named.items()}, ({"x": x, "y": y},))

    def value(self, theta: Tensor) -> Tensor:
        named = ParamSpace.of(self.module, self.patterns).unflatten(theta)
        penalty = functional_call(Penalty(self.module), {f"module.{k}": v for k, v in named.items()}, ())
        w = self.weights.of(3 * torch.arange(N), theta.dtype)
        return (w * self.losses_at(theta, self.x, self.y)).sum() / N + penalty

    def hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(self.value, self.theta)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(lambda t: self.losses_at(t, x, y), self.theta)

    def sample_hessian(self, i: int) -> Tensor:
        one = slice(i, i + 1)
        return torch.autograd.functional.hessian(
            lambda t: self.losses_at(t, self.x[one], self.y[one]).squeeze(0), self.theta
        )


class Losses(nn.Module):
    def __init__(self, module: Net) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.module.sample_losses(batch)


class Penalty(Losses):
    def forward(self) -> Tensor:  # type: ignore[override]
        return self.module.penalty()


def _head_case(
    name: str,
    out: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    bias: bool = True,
    before: Callable[[], nn.Module] = nn.Identity,
    patterns: tuple[str, ...] = ("head.*",),
    y: Callable[[torch.Generator], Tensor] = lambda draw: torch.randint(C, (N,), generator=draw),
    x: Callable[[torch.Generator], Tensor] = lambda draw: torch.randn(N, D, generator=draw, dtype=torch.float64),
    penalise_bias: bool = True,
    weights: SampleWeights | None = None,
) -> HeadCase:
    torch.manual_seed(11)
    draw = torch.Generator().manual_seed(12)
    module = Net(before().double(), nn.Linear(D, out, bias=bias, dtype=torch.float64), loss, penalise_bias)
    return HeadCase(name, module, x(draw), y(draw), patterns, weights or SampleWeights())


def _dead(draw: torch.Generator) -> Tensor:
    """Draws inputs with two columns that are zero in every sample."""
    x = torch.randn(N, D, generator=draw, dtype=torch.float64)
    x[:, [1, 4]] = 0
    return x


def _answers(draw: torch.Generator) -> Tensor:
    y = torch.randint(C, (N, 4), generator=draw)
    y[torch.rand(N, 4, generator=draw) < 0.4] = -100
    y[5] = -100  # a row without any answer
    return y


def _text(draw: torch.Generator) -> Tensor:
    return torch.randn(N, 4, D, generator=draw, dtype=torch.float64)


REMOVED = SampleWeights(23 / 21, torch.tensor([6, 30]), torch.zeros(2, dtype=torch.float64))
HEADS = [
    _head_case("softmax", C, cross_entropy, bias=False),
    _head_case("softmax, bias", C, cross_entropy),
    _head_case("softmax, free bias", C, cross_entropy, penalise_bias=False),
    _head_case("softmax, frozen bias", C, cross_entropy, patterns=("head.weight",)),
    _head_case("softmax, dead inputs", C, cross_entropy, x=_dead),
    _head_case("softmax, weighted samples", C, cross_entropy, weights=REMOVED),
    _head_case("binary logistic", 1, binary),
    _head_case("least squares", 2, squares, y=lambda draw: torch.randn(N, generator=draw, dtype=torch.float64)),
    _head_case("Poisson of three", C, curved),
    _head_case("last layer", C, cross_entropy, before=lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh())),
    _head_case("tokens", C, tokens, before=lambda: nn.Sequential(nn.Linear(D, D), nn.GELU()), x=_text, y=_answers),
]
