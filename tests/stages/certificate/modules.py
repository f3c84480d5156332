"""Modules whose training step differs from their evaluation-mode loss in one named way, and their data."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

D = torch.float64
N, BATCH = 90, 30
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=D)
L2 = 0.02


def rows(n=N, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=D)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=g, dtype=D)).argmax(1)


class Data(L.LightningDataModule):
    dataset = TensorDataset(*rows())
    collate = None
    shuffle = True

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=BATCH, shuffle=self.shuffle, collate_fn=self.collate)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*rows(9, seed=1)), batch_size=9)


class Net(L.LightningModule):
    """A linear classifier with the penalty ½ · 0.02 ‖θ‖² in its training step."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3, dtype=D)

    def l2(self):
        return 0.5 * L2 * sum(p.square().sum() for p in self.parameters())

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1]) + self.l2()

    def validation_step(self, batch, _):
        """Has nothing to measure; Lightning warns of validation data without it."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def losses(model, batch):
    return F.cross_entropy(model.lin(batch[0]), batch[1], reduction="none")


class ClassWeights(Net):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1], weight=CLASS_WEIGHTS) + self.l2()


class Moment(Net):
    """A strength that grows with the epoch and the step."""

    def training_step(self, batch, _):
        z = self.lin(batch[0])
        growing = min(1.0, self.current_epoch / 5) + self.global_step / 100
        return F.cross_entropy(z, batch[1]) + growing * z.square().mean() + self.l2()


class Transferred(Net):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        x, y = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return 3 * x + 1, y


class Smoothed(Net):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1], label_smoothing=0.2 if self.training else 0.0) + self.l2()


class HeadOnly(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4, dtype=D)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(torch.tanh(self.body(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.lin.parameters(), lr=0.1)


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=D)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(self.norm(batch[0])), batch[1])


class Dropped(Net):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(self.drop(batch[0])), batch[1])


class NormedDroppedWeighted(Normed):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(self.drop(self.norm(batch[0]))), batch[1], weight=CLASS_WEIGHTS)


class Masked(Net):
    def on_after_backward(self):
        self.lin.weight.grad[0] = 0


class MaskedBeforeStep(Net):
    def on_before_optimizer_step(self, optimizer):
        optimizer.param_groups[0]["params"][0].grad[0] = 0


class SharpnessAware(Net):
    """Steps along the gradient at weights a little up the loss (SAM)."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        closure()
        with torch.no_grad():
            moves = [0.5 * p.grad / p.grad.norm() for p in self.lin.parameters()]
            for p, move in zip(self.lin.parameters(), moves, strict=True):
                p.add_(move)
        closure()
        with torch.no_grad():
            for p, move in zip(self.lin.parameters(), moves, strict=True):
                p.sub_(move)
        optimizer.step()


class ClosureInTheStep(Net):
    """Takes the gradients again within the step, as the hook of Lightning does."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        optimizer.zero_grad()
        optimizer.step(closure=closure)


class HookedWhenBuilt(Net):
    def __init__(self):
        super().__init__()
        self.lin.weight.register_hook(lambda gradient: 0.5 * gradient)


class HookedAtTheStart(Net):
    def on_train_start(self):
        self.lin.weight.register_hook(lambda gradient: 0.5 * gradient)


class Summed(Net):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1], reduction="sum")


class Contrastive(Net):
    def training_step(self, batch, _):
        z = F.normalize(self.lin(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T / 0.5, torch.arange(len(z)))


class Decayed(Net):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.0005)


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        optimizer, loss = self.optimizers(), super().training_step(batch, _)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class NoisyOnDevice(Net):
    """Augmentation where Lightning's documentation puts it."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] + 0.5 * torch.randn_like(batch[0]), batch[1]) if self.trainer.training else batch


class AlwaysNoisy(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 0.5 * torch.randn_like(batch[0]), batch[1]


class WeightedRows(Data):
    dataset = TensorDataset(*rows(), torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=D) + 0.1)


class WeightedByRow(Net):
    def training_step(self, batch, _):
        own = F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")
        return (own * batch[2]).sum() / batch[2].sum()


class WeightedByInput(Net):
    """Weights that no number of the sample tells."""

    def training_step(self, batch, _):
        own, w = F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none"), batch[0].square().sum(1) + 0.1
        return (own * w).sum() / w.sum()


class Texts(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        return {"ids": torch.randint(1, 8, (int(torch.randint(2, 12, (1,), generator=g)),), generator=g)}


def padded(samples):
    ids = nn.utils.rnn.pad_sequence([one["ids"] for one in samples], batch_first=True)
    return {"ids": ids, "labels": torch.where(ids > 0, ids, -100)}


class TextData(Data):
    dataset = Texts()
    collate = staticmethod(padded)


class NextToken(L.LightningModule):
    """A language model with the mean over all valid tokens of the batch as its loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(8, 5, dtype=D), nn.LSTM(5, 5, batch_first=True, dtype=D)
        self.head = nn.Linear(5, 8, dtype=D)

    def training_step(self, batch, _):
        z = self.head(self.rnn(self.embedding(batch["ids"]))[0])
        return F.cross_entropy(z[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noise(Dataset):
    """Samples that are augmented at each read."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = rows()
        return x[i] + 0.1 * torch.randn(4, dtype=D), y[i]


class NoisyData(Data):
    dataset = Noise()
