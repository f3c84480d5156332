"""Projects whose batches are not tuples of tensors with the sample first."""

from collections import UserDict
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.practice.base import D, Softmax, minimiser, rows


def drawn(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


class Texts(Dataset[Any]):
    """Texts of eight tokens and their targets."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        t = torch.randint(6, (9,), generator=drawn(i))
        return t[:-1], (t[1:] + t[:-1]) % 6


def in_columns(samples: Any) -> Any:
    """Stacks texts with time first, `[T, b]`."""
    return torch.stack([x for x, _ in samples], 1), torch.stack([y for _, y in samples], 1)


class TextsInColumns(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Texts(), batch_size=10, collate_fn=in_columns)

    def val_dataloader(self) -> Any:
        return DataLoader(Texts(5), batch_size=5, collate_fn=in_columns)


class Bigram(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(6, 6, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z, y = self.emb(batch[0]).flatten(0, 1), batch[1].flatten()
        return F.cross_entropy(z, y) + 0.01 * self.emb.weight.square().sum()

    def configure_optimizers(self) -> Any:
        return minimiser(self.parameters())


class NamedTexts(Dataset[Any]):
    """Texts whose tokens are under a key that other projects use for ids."""

    def __init__(self, n: int = 60) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        t = torch.randint(7, (6,), generator=drawn(i))
        return {"idx": t[:-1], "targets": (t[1:] + t[:-1]) % 7}


class TokensUnderIdx(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(NamedTexts(), batch_size=60)

    def val_dataloader(self) -> Any:
        return DataLoader(NamedTexts(5), batch_size=5)


class NamedBigram(Bigram):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 7, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["idx"], batch["targets"]), batch_idx)


class NamedRows(Dataset[Any]):
    """Rows with a name of their own."""

    def __init__(self, n: int, seed: int) -> None:
        self.x, self.y = rows(n, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i], "y": self.y[i], "idx": f"row-{i}"}


class NamesUnderIdx(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(NamedRows(120, 0), batch_size=120)

    def val_dataloader(self) -> Any:
        return DataLoader(NamedRows(9, 1), batch_size=9)


class OfDicts(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class LengthsThird(L.LightningDataModule):
    """Rows whose third item is a length."""

    def _loader(self, n: int, seed: int) -> Any:
        return DataLoader(TensorDataset(*rows(n, seed), torch.arange(n) % 5 + 1), batch_size=n)

    def train_dataloader(self) -> Any:
        return self._loader(120, 0)

    def val_dataloader(self) -> Any:
        return self._loader(9, 1)


class UniqueThird(LengthsThird):
    """Rows whose third item is a whole number that no two rows share, and no id."""

    def _loader(self, n: int, seed: int) -> Any:
        return DataLoader(TensorDataset(*rows(n, seed), 500 - 3 * torch.arange(n)), batch_size=n)


class Divided(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]) / batch[2][:, None], batch[1]) + self.l2()


class Bag(UserDict):  # type: ignore[type-arg]  # at run time it takes no arguments on Python 3.10
    """A mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


def in_a_bag(samples: Any) -> Bag:
    return Bag({"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])})


class Bags(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=120, collate_fn=in_a_bag)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9, collate_fn=in_a_bag)


class OfBags(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch.x, batch.y), batch_idx)


def with_prior(samples: Any) -> Any:
    """Adds a tensor that all samples of the batch share."""
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=D).log()
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples]), "log_prior": prior}


class PriorInBatch(L.LightningDataModule):
    batch_size = 40

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=self.batch_size, collate_fn=with_prior)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9, collate_fn=with_prior)


class PriorAsLongAsTheBatch(PriorInBatch):
    batch_size = 3


class WithPrior(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch["x"]) + batch["log_prior"], batch["y"]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def pixels(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws images and labels of their pixels; image 30 is void throughout."""
    x = torch.randn(n, 1, 5, 5, generator=drawn(seed), dtype=D)
    y = (x[:, 0] > 0).long()
    if n > 30:
        y[30] = 255
    return x, y


class VoidImage(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*pixels(60, 0)), batch_size=60)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*pixels(9, 1)), batch_size=9)


class Segmenter(Softmax):
    def __init__(self) -> None:
        super().__init__()
        self.lin = None  # type: ignore[assignment]
        self.conv = nn.Conv2d(1, 2, 3, padding=1, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.conv(batch[0]), batch[1], ignore_index=255) + self.l2()


class Ragged(Dataset[Any]):
    """Texts of 2 to 29 tokens, in 300 rows of 400 words."""

    def __init__(self, n: int = 300, words: int = 400) -> None:
        self.n, self.words = n, words

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        draw = drawn(i)
        length = int(torch.randint(2, 30, (1,), generator=draw))
        return torch.randint(1, self.words, (length,), generator=draw), i % 2


def padded(samples: Any) -> Any:
    """Pads the texts of a batch to the longest among them."""
    tokens = nn.utils.rnn.pad_sequence([t for t, _ in samples], batch_first=True)
    return {"t": tokens, "y": torch.tensor([y for _, y in samples])}


class MeanOfWords(L.LightningModule):
    def __init__(self, words: int = 400, width: int = 64) -> None:
        super().__init__()
        self.emb, self.lin = nn.Embedding(words, width, padding_idx=0, dtype=D), nn.Linear(width, 2, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mask = (batch["t"] > 0).to(self.lin.weight)[..., None]
        return F.cross_entropy(self.lin(torch.tanh((self.emb(batch["t"]) * mask).sum(1) / mask.sum(1))), batch["y"])
