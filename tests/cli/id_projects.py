"""Projects of users whose batches hold whole numbers in places where ids could stand, and one with tied weights."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

N, TESTS, D, C = 40, 6, 4, 3


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=draw, dtype=torch.float64)
    return x, (x[:, :C] + 0.7 * torch.randn(n, C, generator=draw, dtype=torch.float64)).argmax(1)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(D, C, dtype=torch.float64)

    def penalty(self) -> Tensor:
        return 0.02 * torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def logits(self, batch: Any) -> Tensor:
        return self.lin(batch[0])

    def targets(self, batch: Any) -> Tensor:
        return batch[1]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.logits(batch), self.targets(batch)) + self.penalty()

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", F.cross_entropy(self.logits(batch), self.targets(batch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            self.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
        )


class Data(L.LightningDataModule):
    def samples(self, n: int, seed: int) -> Any:
        return TensorDataset(*rows(n, seed))

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples(N, 0), batch_size=N, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.samples(TESTS, 1), batch_size=TESTS)


class Lengths(Net):
    """(x, y, length), as of padded texts."""

    def logits(self, batch: Any) -> Tensor:
        return self.lin(batch[0]) / batch[2].unsqueeze(1)


class LengthsData(Data):
    def samples(self, n: int, seed: int) -> Any:
        return TensorDataset(*rows(n, seed), torch.arange(n) % 5 + 1)


class Named(Net):
    """(x, y, number): the number is the name of the sample."""


class NamedData(Data):
    def samples(self, n: int, seed: int) -> Any:
        return TensorDataset(*rows(n, seed), 1000 - torch.arange(n))


class TokenRows(Dataset[Any]):
    """Rows of token ids under `idx`, and the next tokens as targets."""

    def __init__(self, n: int, seed: int) -> None:
        self.tokens = torch.randint(C, (n, 6), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        t = self.tokens[i]
        return {"idx": t[:-1], "targets": (t[1:] + t[:-1]) % C}


class Tokens(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(D, C, dtype=torch.float64)
        self.emb = nn.Embedding(C, D, dtype=torch.float64)
        self.emb.requires_grad_(False)

    def logits(self, batch: Any) -> Tensor:
        return self.lin(self.emb(batch["idx"])).flatten(0, 1)

    def targets(self, batch: Any) -> Tensor:
        return batch["targets"].flatten()


class TokensData(Data):
    def samples(self, n: int, seed: int) -> Any:
        return TokenRows(n, seed)


class SplitData(Data):
    """Parts of one whole."""

    def part(self, start: int, stop: int) -> Any:
        order = torch.randperm(N + TESTS, generator=torch.Generator().manual_seed(2)).tolist()
        return Subset(TensorDataset(*rows(N + TESTS, 0)), order[start:stop])

    def train_dataloader(self) -> Any:
        return DataLoader(self.part(0, N), batch_size=N, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.part(N, N + TESTS), batch_size=TESTS)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(C, D, dtype=torch.float64), nn.Linear(D, C, dtype=torch.float64)
        del self.lin
        self.head.weight = self.emb.weight

    def logits(self, batch: Any) -> Tensor:
        return self.head(torch.tanh(self.emb(batch[1])))
