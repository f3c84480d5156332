"""Projects that have no loss of one sample: an adversarial pair, a contrastive loss, random losses, a stream."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from tests.gallery.classifier import Backbone, Data, Net, samples


class GAN(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))

    def adversarial_loss(self, x: Tensor, real: float) -> Tensor:
        judged = self.discriminator(x)
        return F.binary_cross_entropy_with_logits(judged, torch.full_like(judged, real))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images = batch[0].flatten(1)
        first, second = self.optimizers()  # type: ignore[misc]
        made = self.generator(torch.randn(len(images), 3))
        for optimizer, loss in (
            (first, self.adversarial_loss(made, 1.0)),
            (second, self.adversarial_loss(images, 1.0) + self.adversarial_loss(made.detach(), 0.0)),
        ):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in parts], []


class SimCLR(L.LightningModule):
    """Draws two views of each sample together and pushes the others of its batch away."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.backbone = temperature, Backbone()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = torch.cat([batch[0], batch[0].flip(2)])
        z = F.normalize(self.backbone(views), dim=1)
        likeness = z @ z.T / self.temperature
        likeness = likeness.masked_fill(torch.eye(len(z), dtype=torch.bool), -9e15)
        positive = torch.arange(len(z)).roll(len(z) // 2)
        return F.cross_entropy(likeness, positive)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class VAE(L.LightningModule):
    """Draws its latent variables in every step, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(2, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].flatten(1)
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return F.mse_loss(self.decoder(z), x, reduction="none").sum(1).mean() + divergence

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(samples(40))


class StreamData(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=10)


Classifier = Net  # a net like any other, on a stream
