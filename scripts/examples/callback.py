"""An ordinary Lightning project, and the three lines that add influence to it, marked # +.

python scripts/examples/callback.py && tensorboard --logdir lightning_logs
"""

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import DigitSet, MNISTDataModule  # for the embedded digits; any data can be used
from ifloo.stages import InfluenceCallback  # +


class ConvNet(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.GELU(), nn.Conv2d(8, 16, 5, stride=2), nn.GELU(), nn.Flatten()
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.head(self.dropout(self.features(x))), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def digits(part: DigitSet) -> TensorDataset:
    return TensorDataset(part.x.view(-1, 1, 28, 28), part.labels)


L.seed_everything(0, verbose=False)
data = MNISTDataModule(source="embedded", train_limit=500, test_limit=20, dtype="float32")
data.setup()
influence = InfluenceCallback(queries=digits(data.test_set), num_queries=3, every_n_epochs=2, self_influence=True)  # +
trainer = L.Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=TensorBoardLogger("."),
    callbacks=[influence],  # +
)
trainer.fit(ConvNet(), DataLoader(digits(data.train_set), batch_size=50, shuffle=True))
