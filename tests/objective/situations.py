"""Losses, batches and data sets as projects have them, with the way in which they are differentiated."""

from collections import UserDict
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ifloo.objective.functional import Path

N = 24


def rows(n=N, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=draw, dtype=torch.float64)).argmax(1)


class Rows(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = rows()
        return x[i], y[i]


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 3, dtype=torch.float64)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1])


class ReadsValues(Linear):
    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        return 2 * loss if loss.item() > 1 else loss


class WeighsWithoutGradient(Linear):
    def training_step(self, batch, _):
        losses = F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")
        with torch.no_grad():
            weights = 1 - (-F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")).exp()
        return (weights * losses).mean()


class ScalesGradients(Linear):
    def training_step(self, batch, _):
        z = self.lin(batch[0])
        if z.requires_grad:
            z.register_hook(lambda g: g * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        return F.cross_entropy(z, batch[1])


class Compiled(Linear):
    def __init__(self):
        super().__init__()
        self.lin = torch.compile(self.lin, backend="eager")


def shared(samples):
    prior = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples]), "prior": prior}


class AddsPrior(Linear):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch["x"]) + batch["prior"], batch["y"])


class Fields(UserDict):
    def __getattr__(self, name):
        if name in self.__dict__["data"]:
            return self.__dict__["data"][name]
        raise AttributeError(name)


class ReadsFields(Linear):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch.x), batch.y)


class Tokens(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        tokens = torch.randint(6, (9,), generator=draw)
        return tokens[:-1], (tokens[1:] + tokens[:-1]) % 6


class TimeFirst(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 6, dtype=torch.float64)

    def training_step(self, batch, _):
        return F.cross_entropy(self.emb(batch[0]).flatten(0, 1), batch[1].flatten())


class Sentences(Dataset):
    def __init__(self, lengths=(2, 7)):
        self.lengths = lengths

    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        n = int(torch.randint(*self.lengths, (1,), generator=draw))
        tokens = torch.randint(1, 6, (n,), generator=draw)
        return tokens, (tokens + 1) % 3


def padded(samples):
    pad = nn.utils.rnn.pad_sequence
    return {
        "tokens": pad([a for a, _ in samples], batch_first=True),
        "tags": pad([b for _, b in samples], batch_first=True, padding_value=-100),
    }


class Tagger(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 2, dtype=torch.float64)
        self.rnn = nn.LSTM(2, 2, batch_first=True, dtype=torch.float64)
        self.out = nn.Linear(2, 3, dtype=torch.float64)

    def training_step(self, batch, _):
        hidden = self.rnn(self.emb(batch["tokens"]))[0]
        return F.cross_entropy(self.out(hidden).flatten(0, 1), batch["tags"].flatten(), ignore_index=-100)


@dataclass
class Graphs:
    x: Tensor
    edges: Tensor
    graph: Tensor
    y: Tensor


class GraphSet(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        k = int(torch.randint(2, 6, (1,), generator=draw))
        return (
            torch.randn(k, 4, generator=draw, dtype=torch.float64),
            torch.randint(k, (2, 2 * k), generator=draw),
            i % 3,
        )


def joined(samples):
    sizes = torch.tensor([len(x) for x, _, _ in samples])
    starts = sizes.cumsum(0) - sizes
    return Graphs(
        torch.cat([x for x, _, _ in samples]),
        torch.cat([e + s for (_, e, _), s in zip(samples, starts, strict=True)], 1),
        torch.arange(len(samples)).repeat_interleave(sizes),
        torch.tensor([y for _, _, y in samples]),
    )


class GraphNet(Linear):
    def training_step(self, batch, _):
        h = torch.tanh(batch.x)
        h = h + torch.zeros_like(h).index_add(0, batch.edges[1], h[batch.edges[0]])
        pooled = torch.zeros(len(batch.y), 4, dtype=h.dtype).index_add(0, batch.graph, h)
        return F.cross_entropy(self.lin(pooled), batch.y)


@dataclass
class Situation:
    module: type
    data: Dataset
    collate: object = None
    path: Path = Path.LOOP
    whole: bool = True

    def loader(self):
        return DataLoader(self.data, batch_size=7, **({"collate_fn": self.collate} if self.collate else {}))


SITUATIONS = {
    "plain": Situation(Linear, Rows(), path=Path.FORWARD),
    "values": Situation(ReadsValues, Rows(), whole=False),
    "no_grad": Situation(WeighsWithoutGradient, Rows(), path=Path.BACKWARD),
    "hook": Situation(ScalesGradients, Rows()),
    "compiled": Situation(Compiled, Rows(), path=Path.FORWARD),
    "shared tensor": Situation(AddsPrior, Rows(), shared),
    "mapping": Situation(
        ReadsFields,
        Rows(),
        lambda samples: Fields(x=torch.stack([x for x, _ in samples]), y=torch.stack([y for _, y in samples])),
        Path.FORWARD,
    ),
    "time first": Situation(
        TimeFirst, Tokens(), lambda samples: tuple(torch.stack(part, 1) for part in zip(*samples, strict=True))
    ),
    "recurrent": Situation(Tagger, Sentences((4, 5)), padded),
    "padded": Situation(Tagger, Sentences(), padded, whole=False),
    "graphs": Situation(GraphNet, GraphSet(), joined),
}
