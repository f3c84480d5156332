"""Update rules of optimizers as pure functions of state, gradient and learning rate, equal to those of torch.optim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.recorded import State, Update


@dataclass(frozen=True)
class SGD(Update):
    """θ ← θ − rate · d, with d the gradient g or a momentum buffer, as `torch.optim.SGD` (Sutskever et al. 2013).

    Attributes:
        momentum: Factor μ of the buffer m ← μ m + (1 − dampening) g, which starts at the first gradient.
        dampening: Share of the gradient that does not enter the buffer.
        nesterov: Whether d is g + μ m in place of m.
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
        share = 1 - self.dampening * (count > 1).to(gradient.dtype)
        buffer = self.momentum * state.moments[0] + share * gradient
        direction = gradient + self.momentum * buffer if self.nesterov else buffer
        return State(state.theta - rate * direction, (buffer,))

    def gain(self, state: State, count: int) -> float:
        return (1 - self.dampening) / (1 - self.momentum) if self.momentum else 1.0


@dataclass(frozen=True)
class Adam(Update):
    """θ ← (1 − rate · decay) θ − rate · m̂ / (√v̂ + ε), as `torch.optim.Adam` and `AdamW` (Kingma & Ba 2015, algorithm 1;
    Loshchilov & Hutter 2019, algorithm 2).

    Attributes:
        beta1: Decay rate of the running mean of gradients.
        beta2: Decay rate of the running mean of squared gradients.
        epsilon: ε, added after the square root.
        decay: Weight decay decoupled from the gradient (AdamW): part of this step, not of the objective.
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
        # At a weight whose gradient was always 0 the derivative of √0 is infinite, while that of the step is finite.
        positive = square > 0
        root = torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
        direction = (mean / (1 - self.beta1**count)) / (root / (1 - self.beta2**count).sqrt() + self.epsilon)
        return State((1 - rate * self.decay) * state.theta - rate * direction, (mean, square))

    def gain(self, state: State, count: int) -> float:
        root = (state.moments[1] / (1 - self.beta2**count)).sqrt()
        return float((1 / (root + self.epsilon)).mean())
