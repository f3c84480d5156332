"""Program started by the tests: `trainer.predict` in several processes, each of which writes its scores.

Arguments: number of processes, folder for the scores.
"""

import sys
import warnings

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from ifloo.data import MNISTDataModule
from ifloo.data.loading import loader_of
from ifloo.models import LogisticRegression
from ifloo.stages import InfluencePredictor

N = 31


class Keeper(BasePredictionWriter):
    """Writes the scores of its process and the ids of the scored samples."""

    def __init__(self, folder: str) -> None:
        super().__init__("epoch")
        self.folder = folder

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        ids = [i for batch in batch_indices[0] for i in batch]
        path = f"{self.folder}/{trainer.world_size}_{trainer.global_rank}.npz"
        np.savez(path, ids=np.array(ids), scores=torch.cat(predictions, 1).numpy())


def main(devices: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    data = MNISTDataModule(source="embedded", train_limit=N, test_limit=3)
    data.setup("fit")
    predictor = InfluencePredictor(
        LogisticRegression(l2_reg=1.0), data.train_dataloader(), queries=data.test_batch(range(3))
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[Keeper(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.predict(predictor, loader_of(data.train_set, 4, 0), return_predictions=False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
