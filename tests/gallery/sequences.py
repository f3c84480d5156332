"""Recurrent networks: a tagger of padded sentences, and a forecaster of dicts with lengths."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

NO_TAG = -1


class Sentences(Dataset[Any]):
    def __init__(self, n: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 7, (n,), generator=draw)
        self.words = [torch.randint(1, 12, (int(k),), generator=draw) for k in lengths]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        words = self.words[i]
        return words, (words + words.roll(1)) % 3


def tagged(samples: Any) -> tuple[Tensor, Tensor, Tensor]:
    words = pad_sequence([w for w, _ in samples], batch_first=True)
    tags = pad_sequence([t for _, t in samples], batch_first=True, padding_value=NO_TAG)
    return words, tags, torch.tensor([len(w) for w, _ in samples])


class Tagger(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(12, 4, padding_idx=0), nn.LSTM(4, 5, batch_first=True)
        self.hidden2tag = nn.Linear(5, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        words, tags, lengths = batch
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        scores = self.hidden2tag(out)
        return F.cross_entropy(scores.flatten(0, 1), tags.flatten(), ignore_index=NO_TAG)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class TaggerData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Sentences(30, 0), batch_size=30, shuffle=True, collate_fn=tagged)

    def val_dataloader(self) -> Any:
        return DataLoader(Sentences(4, 1), batch_size=4, collate_fn=tagged)


class Series(Dataset[Any]):
    """Series of 3 to 6 past values and two future ones, of one of four groups."""

    def __init__(self, n: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(3, 7, (n,), generator=draw)
        self.groups = torch.randint(4, (n,), generator=draw)
        self.values = torch.randn(n, 8, generator=draw).cumsum(1)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], Tensor]:
        past = int(self.lengths[i])
        x = {
            "encoder_cont": self.values[i, :past, None],
            "encoder_lengths": self.lengths[i],
            "groups": self.groups[i, None],
        }
        return x, self.values[i, past : past + 2]


def of_series(samples: Any) -> tuple[dict[str, Tensor], tuple[Tensor, None]]:
    """Joins series as forecasting packages do: inputs by name, then target and weight."""
    x = {
        "encoder_cont": pad_sequence([one["encoder_cont"] for one, _ in samples], batch_first=True),
        "encoder_lengths": torch.stack([one["encoder_lengths"] for one, _ in samples]),
        "groups": torch.stack([one["groups"] for one, _ in samples]),
    }
    return x, (torch.stack([y for _, y in samples]), None)


class Forecaster(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.group, self.encoder = nn.Embedding(4, 2), nn.GRU(3, 5, batch_first=True)
        self.output_layer = nn.Linear(5, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        steps = x["encoder_cont"].shape[1]
        static = self.group(x["groups"]).expand(-1, steps, -1)
        packed = pack_padded_sequence(
            torch.cat([x["encoder_cont"], static], 2), x["encoder_lengths"], batch_first=True, enforce_sorted=False
        )
        return self.output_layer(self.encoder(packed)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, (y, _) = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss, batch_size=len(y))
        return {"loss": loss, "n_samples": x["encoder_lengths"].size(0)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx)["loss"], batch_size=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class ForecasterData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Series(30, 0), batch_size=10, shuffle=True, collate_fn=of_series)

    def val_dataloader(self) -> Any:
        return DataLoader(Series(4, 1), batch_size=4, collate_fn=of_series)
