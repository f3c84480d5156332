"""Projects whose training step does more than compute a loss of its batch, or whose fit trains less than it seems."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from tests.practice.base import D, Rows, Softmax, rows
from tests.practice.further import Broken


class Layers(Softmax):
    """Two layers, trained by gradient descent."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Linear(4, 5, dtype=D), nn.Linear(5, 3, dtype=D)

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.body(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.logits(batch[0]), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def plain(model: Layers, batch: Any) -> Tensor:
    return F.cross_entropy(model.logits(batch[0]), batch[1]) + model.l2()


def stated(model: Layers, batch: Any) -> Tensor:
    """Losses of a batch as their author may state them."""
    return F.cross_entropy(model.logits(batch[0]), batch[1], reduction="none")


class FourBatches(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=30)


class ChangesItsBatch(Layers):
    """Centres its inputs in place."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x -= 1.0
        x *= 0.5
        return F.cross_entropy(self.logits(x), y) + self.l2()


def centred(model: Layers, batch: Any) -> Tensor:
    return plain(model, ((batch[0] - 1.0) * 0.5, batch[1]))


class Penalised(Layers):
    """Penalises the gradient of its outputs with respect to its inputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].clone().requires_grad_()
        z = self.logits(x)
        (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
        return F.cross_entropy(z, batch[1]) + 0.1 * slope.square().sum(1).mean() + self.l2()


class Checkpointed(Layers):
    """Computes its activations again in the backward pass."""

    reentrant = False

    def logits(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_() if self.reentrant else x
        return self.lin(checkpoint(lambda x: torch.tanh(self.body(x)), x, use_reentrant=self.reentrant))


class CheckpointedReentrantly(Checkpointed):
    reentrant = True


class OfDirections(Layers):
    """Normalises the weights of its head by torch's fused operation."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.utils.parametrizations.weight_norm(self.lin)


def of_directions(model: Any, batch: Any) -> Tensor:
    """The same loss by elementary operations."""
    held = model.lin.parametrizations.weight
    weight = held.original0 * held.original1 / held.original1.norm(dim=1, keepdim=True)
    return F.cross_entropy(F.linear(torch.tanh(model.body(batch[0])), weight, model.lin.bias), batch[1]) + model.l2()


class SqueezesAll(Softmax):
    """Fails in the backward pass of a batch of one, by a squeeze that takes the dimension of the samples too."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]).unsqueeze(1).squeeze(), batch[1]) + self.l2()


class StepsItself(Layers):
    """Takes the gradients of one layer away where the optimizer steps."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        for p in self.body.parameters():
            p.grad = None
        optimizer.step()


class WarmsUp(Layers):
    """Sets the learning rate where the optimizer steps."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * min(1.0, (self.trainer.global_step + 1) / 5)
        optimizer.step(closure=optimizer_closure)


class RateOfZero(Layers):
    def configure_optimizers(self) -> Any:
        groups = [{"params": self.body.parameters(), "lr": 0.0}, {"params": self.lin.parameters()}]
        return torch.optim.SGD(groups, lr=0.5)


class FreezesAtTheStart(Layers):
    def on_fit_start(self) -> None:
        self.body.requires_grad_(False)


class FreezesForItsOptimizer(Layers):
    def configure_optimizers(self) -> Any:
        self.body.requires_grad_(False)
        return torch.optim.SGD(self.lin.parameters(), lr=0.5)


class Finetuned(Layers):
    """Has a backbone that a callback freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.body
        del self.body

    def l2(self) -> Tensor:
        return 0.01 * self.lin.weight.square().sum()

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.backbone(x)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)


class Alternating(Softmax):
    """Has another loss for every second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]) * (1 + batch_idx % 2), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Mixing(Layers):
    """Mixes samples of a batch at random, in any mode."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        order, share = torch.randperm(len(batch[0])), float(torch.rand(()))
        z = self.logits(share * batch[0] + (1 - share) * batch[0][order])
        mixed = share * F.cross_entropy(z, batch[1]) + (1 - share) * F.cross_entropy(z, batch[1][order])
        return mixed + self.l2()


class SumByAConstant(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]), batch[1], reduction="sum") / 120 + self.l2()


class ByHand(Layers):
    """Accumulates the gradients of four batches by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(plain(self, batch) / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


class TwoLossesByHand(ByHand):
    """Trains each of its layers on a loss of its own."""

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.5) for layer in (self.body, self.lin)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, smoothing in zip(self.optimizers(), (0.0, 0.3), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.logits(batch[0]), batch[1], label_smoothing=smoothing))
            optimizer.step()
            self.untoggle_optimizer(optimizer)


class DecaysWeightsAlone(Layers):
    """Decays no bias."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": [p for p in self.parameters() if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in self.parameters() if p.ndim < 2]},
        ]
        return torch.optim.SGD(groups, lr=0.5)


def decay_of_weights(model: Any) -> Tensor:
    return 0.01 * torch.stack([p.square().sum() for p in model.parameters() if p.ndim > 1]).sum()


class TouchesABuffer(Softmax):
    """Changes a tensor in place that its loss is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3, dtype=D))
        self.sums = [torch.zeros(3, dtype=D)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.scale.mul_(1.0)  # type: ignore[operator]  # a buffer
        self.sums[0].add_(1.0)
        return F.cross_entropy(self.lin(batch[0]) * self.scale, batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def untouched(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model.lin(batch[0]), batch[1]) + model.l2()


class Bags(Softmax):
    """Computes the mean of its words by an operation of torch that has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.EmbeddingBag(7, 4, mode="mean", dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(torch.tanh(self.emb(batch[0]))), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Words(Rows):
    def _loader(self, n: int, seed: int) -> Any:
        x = torch.randint(7, (n, 5), generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(x, x.sum(1) % 3), batch_size=n)

    def train_dataloader(self) -> Any:
        return self._loader(60, 0)

    def val_dataloader(self) -> Any:
        return self._loader(9, 1)


class RemembersTheStart(Layers):
    """Is held to its first weights, which no checkpoint has."""

    def on_train_start(self) -> None:
        self.start = [p.detach().clone() for p in self.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        distance = torch.stack([(p - q).square().sum() for p, q in zip(self.parameters(), self.start, strict=True)])
        return F.cross_entropy(self.logits(batch[0]), batch[1]) + 0.1 * distance.sum()


class MissingTargets(Rows):
    """Has targets of which some are missing."""

    def train_dataloader(self) -> Any:
        x, _ = rows(120, 0)
        y = x.sum(1, keepdim=True).repeat(1, 3)
        y[torch.rand(120, 3, generator=torch.Generator().manual_seed(3)) < 0.3] = float("nan")
        return DataLoader(TensorDataset(x, y), batch_size=120)

    def val_dataloader(self) -> Any:
        x, _ = rows(9, 1)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).repeat(1, 3)), batch_size=9)


class LeavesOutTheMissing(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        errors = self.lin(batch[0]) - batch[1].nan_to_num()
        return (errors.square() * ~batch[1].isnan()).sum(1).mean() + self.l2()


class MeanOfTheRest(Softmax):
    """Takes the mean over the targets that are there; a sample may have none."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        there = ~batch[1].isnan()
        return (self.lin(batch[0])[there] - batch[1][there]).square().mean() + self.l2()


class SomeRows(Dataset[Any]):
    def __len__(self) -> int:
        return 120

    def __getitem__(self, i: int) -> Any:
        x, y = rows(120, 0)
        return None if i in (17, 90) else (x[i], y[i])


def without_none(samples: Any) -> Any:
    return default_collate([one for one in samples if one is not None])


class DropsRows(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(SomeRows(), batch_size=120, collate_fn=without_none)


class SplitWithoutSeed(Rows):
    """Splits its rows by a generator that no seed reaches."""

    def setup(self, stage: str) -> None:
        self.order = torch.as_tensor(np.random.default_rng().permutation(130))

    def train_dataloader(self) -> Any:
        x, y = rows(130, 0)
        return DataLoader(TensorDataset(x[self.order[:100]], y[self.order[:100]]), batch_size=100)


class NoisyRows(Dataset[Any]):
    """Adds noise of a generator of its own to each row that is read."""

    def __init__(self) -> None:
        self.x, self.y = rows(120, 0)

    def __len__(self) -> int:
        return 120

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + 0.1 * torch.as_tensor(np.random.default_rng().normal(size=4)), self.y[i]


class KeptGenerator(NoisyRows):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng()

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + 0.1 * torch.as_tensor(self.generator.normal(size=4)), self.y[i]


class Noisy(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(NoisyRows(), batch_size=120)


class NoisyByAGenerator(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(KeptGenerator(), batch_size=120)


class FailsInAWorker(Broken):
    """Fails at another late row, by another error."""

    over = False

    def __getitem__(self, i: int) -> Any:
        if type(self).over and i == 101:
            raise KeyError("image_101")  # the line that fails
        return self.x[i], self.y[i]


class InWorkers(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(FailsInAWorker(), batch_size=30, num_workers=1)
