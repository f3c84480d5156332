"""Batches in other layouts than [b, ...]: sequences as [T, b], texts padded batch by batch, graphs joined into one."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ifloo.attribution import GradientDot
from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.stages.callback.fits import fitted

D = torch.float64
N = 20


class Drawn(Dataset[Any]):
    """Data set of samples that a function draws."""

    def __init__(self, draw: Any, first: int, count: int) -> None:
        self.draw, self.first, self.count = draw, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.draw(torch.Generator().manual_seed(self.first + i))


class Tokens(L.LightningModule):
    """Predicts a token of the one before; sequences are [T, b]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 6, dtype=D)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.emb(x).flatten(0, 1), y.flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def sequence(g: torch.Generator) -> tuple[Tensor, Tensor]:
    t = torch.randint(6, (9,), generator=g)
    return t[:-1], (t[1:] + t[:-1]) % 6


def side_by_side(samples: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples], 1)


class Texts(L.LightningModule):
    """Classifies padded texts by their mean embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.lin = nn.Embedding(40, 5, padding_idx=0, dtype=D), nn.Linear(5, 2, dtype=D)

    def training_step(self, batch, batch_idx):
        mask = (batch["t"] > 0).to(D)[..., None]
        mean = (self.emb(batch["t"]) * mask).sum(1) / mask.sum(1)
        return nn.functional.cross_entropy(self.lin(torch.tanh(mean)), batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def text(g: torch.Generator) -> tuple[Tensor, int]:
    length = int(torch.randint(2, 9, (1,), generator=g))
    return torch.randint(1, 40, (length,), generator=g), int(torch.randint(2, (1,), generator=g))


def padded(samples: Any) -> dict[str, Tensor]:
    texts = nn.utils.rnn.pad_sequence([t for t, _ in samples], batch_first=True)
    return {"t": texts, "y": torch.tensor([y for _, y in samples])}


@dataclass
class Graphs:
    """Nodes of several graphs, one after the other, and the graph of each."""

    nodes: Tensor
    owner: Tensor
    y: Tensor


class GraphNet(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.node, self.out = nn.Linear(3, 4, dtype=D), nn.Linear(4, 2, dtype=D)

    def training_step(self, batch, batch_idx):
        pooled = torch.zeros(len(batch.y), 4, dtype=D).index_add(0, batch.owner, torch.tanh(self.node(batch.nodes)))
        return nn.functional.cross_entropy(self.out(pooled), batch.y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def graph(g: torch.Generator) -> tuple[Tensor, int]:
    size = int(torch.randint(2, 6, (1,), generator=g))
    return torch.randn(size, 3, generator=g, dtype=D), int(torch.randint(2, (1,), generator=g))


def joined(samples: Any) -> Graphs:
    owner = torch.cat([torch.full((len(x),), k) for k, (x, _) in enumerate(samples)])
    return Graphs(torch.cat([x for x, _ in samples]), owner, torch.tensor([y for _, y in samples]))


KINDS: dict[str, Any] = {
    "[T, b]": (Tokens, sequence, side_by_side),
    "padded texts": (Texts, text, padded),
    "graphs": (GraphNet, graph, joined),
}


def plain(module: L.LightningModule, train: Any, tests: Any, collate: Any) -> np.ndarray:
    """−(1/n) ∇L_t·∇ℓ_i by backward passes of batches of one."""

    def gradients(data: Any) -> Tensor:
        steps = [module.training_step(collate([data[i]]), 0) for i in range(len(data))]
        slopes = [torch.autograd.grad(loss, list(module.parameters())) for loss in steps]
        return torch.stack([torch.cat([g.flatten() for g in one]) for one in slopes])

    return (-gradients(tests) @ gradients(train).T / len(train)).numpy()


@pytest.mark.parametrize("form", ["batch", "data set", "list of samples"])
@pytest.mark.parametrize("name", KINDS)
def test_each_sample_counts_once(tmp_path, name, form, caplog):
    kind, draw, collate = KINDS[name]
    train, tests, module = Drawn(draw, 0, N), Drawn(draw, 100, 2), kind()
    queries = {"batch": collate([tests[0], tests[1]]), "data set": tests, "list of samples": [tests[0], tests[1]]}[form]
    callback = InfluenceCallback(queries, method=GradientDot())
    fitted(module, DataLoader(train, batch_size=5, collate_fn=collate), [callback], tmp_path)
    if (name, form) == ("graphs", "batch"):
        assert any("The samples of a batch (Graphs) cannot be separated" in text for text in caplog.messages)
        return
    expected = plain(module, train, tests, collate)
    for t in (0, 1):
        found = influences.load(tmp_path / "influence" / "epoch_003" / f"influences_test_{t}.npz")
        assert len(found.scores) == N
        np.testing.assert_allclose(found.scores, expected[t], rtol=0, atol=1e-6 * abs(expected[t]).max())


class Pixels(L.LightningModule):
    """Segments small images; the targets of one image are all ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, dtype=D)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.conv(batch[0]), batch[1], ignore_index=255)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_sample_without_a_finite_loss_is_named(tmp_path, caplog):
    x = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    y = (x[:, 0] > 0).long()
    y[33] = 255  # a later one than those of the trial before the fit
    data = torch.utils.data.TensorDataset(x, y)
    fitted(Pixels(), DataLoader(data, batch_size=8), [InfluenceCallback((x[:2], y[:2]))], tmp_path)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("ifloo")]
    assert any("33" in text and "nan" in text for text in warned), warned
    assert not (tmp_path / "influence").exists()
