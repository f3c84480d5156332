"""Tiny training runs of torch.optim, recorded while they run, and repeated with other sample weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from ifloo.attribution.method import TrainedModel
from ifloo.attribution.recorded import RecordedRun, State, Update
from ifloo.objective import FunctionalLosses, Objective, TrainingData
from ifloo.params import ParamSpace
from tests.problems import Samples

N, D, C, BATCH, STEPS = 12, 4, 3, 5, 14


class Curved(nn.Module):
    """Two layers with LayerNorm between them: a loss curved in the weights, with a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, C)).double()

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch["x"]), batch["labels"], reduction="none")

    def penalty(self) -> Tensor:
        return 0.01 * torch.stack([p.square().sum() for p in self.parameters()]).sum()


@dataclass
class Training:
    """A run of torch's own optimizer by plain autograd, without functional code."""

    make: Callable[[Any], optim.Optimizer]
    update: Update
    schedule: Callable[[int], float] = lambda k: 1.0
    every: int = 4
    x: Tensor = field(default_factory=lambda: torch.randn(N, D, generator=_seeded(0), dtype=torch.float64))
    labels: Tensor = field(default_factory=lambda: torch.randint(C, (N,), generator=_seeded(1)))

    @property
    def samples(self) -> Samples:
        return Samples(self.x, self.labels, torch.randperm(N, generator=_seeded(2)))

    @property
    def queries(self) -> dict[str, Tensor]:
        return {"x": torch.randn(3, D, generator=_seeded(4), dtype=torch.float64), "labels": torch.tensor([0, 2, 1])}

    def batches(self) -> list[Tensor]:
        """Returns the ids of each batch of shuffled epochs; the last batch of an epoch is short."""
        epochs = [torch.randperm(N, generator=_seeded(10 + e)).split(BATCH) for e in range(STEPS)]
        return [ids for epoch in epochs for ids in epoch][:STEPS]

    def run(self, weights: Tensor, observe: Callable[[int, nn.Module, Any], None] = lambda *_: None) -> nn.Module:
        """Trains under sample weights and calls `observe` before the first step and after each."""
        torch.manual_seed(3)
        module = Curved()
        optimizer = self.make(module.parameters())
        schedule = optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        observe(0, module, optimizer)
        for k, ids in enumerate(self.batches()):
            optimizer.zero_grad()
            losses = module.sample_losses({"x": self.x[ids], "labels": self.labels[ids]})
            ((weights[ids] * losses).mean() + module.penalty()).backward()
            optimizer.step()
            schedule.step()
            observe(k + 1, module, optimizer)
        return module

    def test_losses(self, weights: Tensor) -> Tensor:
        module = self.run(weights)
        with torch.no_grad():
            return module.sample_losses(self.queries)

    def trained(self) -> TrainedModel:
        """Records the run at w = 1 every few steps."""
        states: dict[int, State] = {}

        def record(k: int, module: nn.Module, optimizer: optim.Optimizer) -> None:
            if k % self.every == 0 or k == STEPS:
                theta = ParamSpace.of(module).values_of(module)
                moments = _moments(optimizer, list(module.parameters()))
                states[k] = State(theta, moments) if moments else self.update.start(theta)

        module = self.run(torch.ones(N, dtype=torch.float64), record)
        space = ParamSpace.of(module)
        loader = torch.utils.data.DataLoader(self.samples, batch_size=7)
        data = TrainingData(loader, torch.device("cpu"), torch.float64)
        rates = torch.tensor([self.lr * self.schedule(k) for k in range(STEPS)], dtype=torch.float64)
        run = RecordedRun(self.update, self.batches(), rates, sorted(states), states.__getitem__)
        return TrainedModel(Objective(FunctionalLosses(module, space), data), space.values_of(module), run)

    @property
    def lr(self) -> float:
        return self.make(nn.Linear(1, 1).parameters()).param_groups[0]["lr"]


def _moments(optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    state = [optimizer.state[p] for p in parameters if p in optimizer.state]
    names = [n for n in ("momentum_buffer", "exp_avg", "exp_avg_sq") if state and state[0].get(n) is not None]
    return tuple(torch.cat([s[n].flatten() for s in state]).clone() for n in names)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
