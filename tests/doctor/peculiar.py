"""Small models with one peculiarity each, for the tests of their diagnosis."""

import torch
from torch import nn
from torch.nn import functional as F

BATCH = {
    "x": torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "y": torch.tensor([0, 1, 2, 0, 1, 2]),
}


class Classifier(nn.Module):
    """A body from `[b, 4, 3]` to `features` numbers per sample, and a linear head."""

    def __init__(self, body, features=12, metric=None):
        super().__init__()
        self.body, self.head, self.metric = body, nn.Linear(features, 3), metric
        self.double()

    def sample_losses(self, batch):
        out = self.body(batch["x"])
        out = out[0] if isinstance(out, tuple) else out
        return F.cross_entropy(self.head(out.flatten(1)), batch["y"], reduction="none")

    def penalty(self):
        return 0.01 * self.head.weight.square().sum()


class Wrapping(nn.Module):
    """Stand-in for an adapter around a model, with `wraps` as prefix of the parameter names."""

    wraps = "model."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def sample_losses(self, batch):
        return self.model.sample_losses(batch)

    def penalty(self):
        return self.model.penalty()


class Counting(nn.Module):
    """A layer that changes a buffer at each call, in place or by assigning a new tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


REFUSED_IN_PLACE = (
    "During a grad (vjp, jvp, grad, etc) transform, the function provided attempted to call in-place operation "
    "(aten::add_.Tensor) that would mutate a captured Tensor"
)


def run(module, batch):
    return module.sample_losses(batch)
