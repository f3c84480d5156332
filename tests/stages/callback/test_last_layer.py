"""The default of the callback goes through the layer of the logits, wherever it is registered."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ifloo.stages import InfluenceCallback
from ifloo.stages.scores.self_influence import DAMPING
from ifloo.store import influences
from tests.stages.callback.fits import CLASSES, FEATURES, N, fitted, samples

QUERIES = samples(2, seed=1)[:]

BATCH = 8


class Net(L.LightningModule):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.body(x)))


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin, self.proj = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES), nn.Linear(5, 8)
        self.double()


class HeadFirst(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(5, CLASSES)
        self.body = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 5))
        self.double()


class ConvHead(Net):
    """A convolution of one pixel, over six pixels whose logits are averaged in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.body = nn.Conv1d(4, CLASSES, 1), nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 4, 3))
        self.double()

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.logits(batch[0])
        return F.cross_entropy(z, batch[1].unsqueeze(1).expand(-1, z.shape[-1]))


def dense(module: L.LightningModule) -> np.ndarray:
    """−c_i ∇L_t·(H + δI)⁻¹∇ℓ_i over the layer `lin`, one sample at a time by plain autograd.

    The fit takes its batches in order: the last one is shorter, and its samples count more.
    """
    layer = {n: p.detach() for n, p in module.lin.named_parameters()}
    theta = torch.cat([p.flatten() for p in layer.values()])

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, batch: Any) -> Tensor:
            return self.net.training_step(batch, 0)

    def loss(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = at.split([p.numel() for p in layer.values()])
        named = {f"net.lin.{n}": v.view_as(p) for (n, p), v in zip(layer.items(), parts, strict=True)}
        return functional_call(Step(), named, ((x.unsqueeze(0), y.unsqueeze(0)),))

    def gradients(rows: Any) -> Tensor:
        pairs = zip(*rows, strict=True)
        return torch.stack([torch.autograd.functional.jacobian(lambda at, p=p: loss(at, *p), theta) for p in pairs])

    trained = samples(N)[:]
    sizes = [len(x) for x in trained[0].split(BATCH)]
    c = torch.cat([torch.full((size,), 1 / size / len(sizes)) for size in sizes]).to(theta)
    H = [torch.autograd.functional.hessian(lambda at, p=p: loss(at, *p), theta) for p in zip(*trained, strict=True)]
    H = torch.tensordot(c, torch.stack(H), 1) + DAMPING * torch.eye(len(theta)).to(theta)
    return (-gradients(QUERIES) @ torch.linalg.solve(H, gradients(trained).T) * c).numpy()


@pytest.mark.parametrize("kind", [Unused, HeadFirst, ConvHead])
def test_scores_go_through_the_layer_of_the_logits(tmp_path, kind):
    torch.manual_seed(0)
    module = kind()
    fitted(module, DataLoader(samples(N), batch_size=BATCH), [InfluenceCallback(QUERIES)], tmp_path)
    folder = tmp_path / "influence"
    expected = dense(module.eval())
    for t in range(2):
        found = influences.load(folder / "epoch_003" / f"influences_test_{t}.npz")
        assert found.method == "last_layer"
        # Kept in 32 bits.
        np.testing.assert_allclose(found.scores, expected[t], rtol=0, atol=1e-6 * np.abs(expected[t]).max())
