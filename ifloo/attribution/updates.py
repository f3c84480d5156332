"""The rules of optimizers as pure functions of state, gradient and learning rate: what torch.optim does in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.recorded import State, Update


@dataclass(frozen=True)
class SGD(Update):
    """θ ← θ − rate · d with d = v + damped memory of it, as `torch.optim.SGD` (Sutskever et al. 2013).

    Attributes:
        momentum: μ; the memory is m ← μ m + (1 − dampening) g, at the first step g itself.
        dampening: of the gradient in the memory.
        nesterov: step along g + μ m instead of m.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def start(self, theta: Float[Tensor, " p"]) -> State:
        return State(theta, (torch.zeros_like(theta),) if self.momentum else ())

    def step(
        self, state: State, gradient: Float[Tensor, " p"], rate: Float[Tensor, ""], count: Float[Tensor, ""]
    ) -> State:
        if not self.momentum:
            return State(state.theta - rate * gradient, ())
        kept = 1 - self.dampening * (count > 1).to(gradient.dtype)
        memory = self.momentum * state.moments[0] + kept * gradient
        direction = gradient + self.momentum * memory if self.nesterov else memory
        return State(state.theta - rate * direction, (memory,))

    def gain(self, state: State, count: int) -> float:
        return (1 - self.dampening) / (1 - self.momentum) if self.momentum else 1.0


@dataclass(frozen=True)
class Adam(Update):
    """θ ← (1 − rate · decay) θ − rate · m̂ / (√v̂ + ε), as `torch.optim.Adam` and `AdamW` (Kingma & Ba 2015, algorithm 1;
    Loshchilov & Hutter 2019, algorithm 2).

    Attributes:
        beta1: of the mean of gradients.
        beta2: of the mean of their squares.
        epsilon: ε, outside of the root.
        decay: decoupled from the gradient (AdamW); part of this step and of no objective.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.0

    def start(self, theta: Float[Tensor, " p"]) -> State:
        return State(theta, (torch.zeros_like(theta), torch.zeros_like(theta)))

    def step(
        self, state: State, gradient: Float[Tensor, " p"], rate: Float[Tensor, ""], count: Float[Tensor, ""]
    ) -> State:
        mean = self.beta1 * state.moments[0] + (1 - self.beta1) * gradient
        square = self.beta2 * state.moments[1] + (1 - self.beta2) * gradient.square()
        # A weight that never had a gradient has √0, whose derivative is infinite; the step's own is finite there.
        seen = square > 0
        root = torch.where(seen, torch.where(seen, square, 1.0).sqrt(), 0.0)
        direction = (mean / (1 - self.beta1**count)) / (root / (1 - self.beta2**count).sqrt() + self.epsilon)
        return State((1 - rate * self.decay) * state.theta - rate * direction, (mean, square))

    def gain(self, state: State, count: int) -> float:
        root = (state.moments[1] / (1 - self.beta2**count)).sqrt()
        return float((1 / (root + self.epsilon)).mean())
