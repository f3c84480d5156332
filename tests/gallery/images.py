"""Networks of images: a U-Net whose void pixels count for nothing, and a residual network with augmentation."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

VOID = 250


def twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(L.LightningModule):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.down, self.deep = twice(1, features), twice(features, 2 * features)
        self.up = nn.ConvTranspose2d(2 * features, features, 2, stride=2)
        self.joined, self.out = twice(2 * features, features), nn.Conv2d(features, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        back = self.up(self.deep(F.max_pool2d(first, 2)))
        return self.out(self.joined(torch.cat([first, back], 1)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, mask = batch
        loss = F.cross_entropy(self(image), mask.long(), ignore_index=VOID)
        return {"loss": loss, "log": {"train_loss": loss.detach()}}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, mask = batch
        self.log("val_loss", F.cross_entropy(self(image), mask.long(), ignore_index=VOID))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)]


def shapes(n: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 1, 6, 6, generator=draw)
    mask = (image[:, 0] > 0).byte()
    mask[torch.rand(n, 6, 6, generator=draw) < torch.rand(n, 1, 1, generator=draw) / 2] = VOID
    return TensorDataset(image, mask)


class ShapesData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(shapes(20, 0), batch_size=20, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(shapes(4, 1), batch_size=4)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """The network of 18 layers for small images: a stem of 3x3 and no pooling after it."""

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        layers, channels = [], width
        for stage, count in enumerate(blocks):
            for block in range(count):
                wide = width * 2**stage
                layers.append(Block(channels, wide, 2 if stage and not block else 1))
                channels = wide
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(self.maxpool(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(out.mean((2, 3)))


class LitResNet(L.LightningModule):
    def __init__(self, lr: float = 0.05, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ResNet(width, tuple(blocks))

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.model(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.nll_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        lr = self.hparams.lr  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Pictures(Dataset[Any]):
    """Images in ten classes; `augment` crops and mirrors each at random whenever it is read."""

    def __init__(self, n: int, seed: int, augment: bool, side: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.y = torch.randint(10, (n,), generator=draw)
        self.x = torch.randn(n, 3, side, side, generator=draw) + self.y[:, None, None, None] / 5
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.x[i]
        if self.augment:
            top, left = (int(torch.randint(3, (1,))) for _ in range(2))
            x = F.pad(x, (1, 1, 1, 1))[:, top : top + x.shape[1], left : left + x.shape[2]]
            x = x.flip(2) if torch.rand(()) < 0.5 else x
        return x, self.y[i]


class PicturesData(L.LightningDataModule):
    def __init__(self, augment: bool = True, n: int = 24, side: int = 8) -> None:
        super().__init__()
        self.augment, self.n, self.side = augment, n, side

    def train_dataloader(self) -> Any:
        return DataLoader(Pictures(self.n, 0, self.augment, self.side), batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(4, 1, False, self.side), batch_size=4)
