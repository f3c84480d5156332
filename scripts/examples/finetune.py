"""A CNN fine-tuned near pre-trained weights: which samples of the fine-tuning helped, verified by refits.

python -m scripts.examples.finetune      two ordinary fits, which write pretrained.ckpt and finetuned.ckpt; then
ifloo pipeline --config scripts/examples/finetune.yaml
"""

import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Subset

from scripts.examples.plain import DigitCNN, Digits


class FineTuned(DigitCNN):
    """A CNN of 29,066 weights, kept near its start by ½ λ ‖θ − θ₀‖² (L2-SP: Li et al. 2018, arXiv:1802.01483)."""

    start: Tensor

    def __init__(self, pretrained: str = "pretrained.ckpt", decay: float = 0.1, iterations: int = 400) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.load_state_dict(torch.load(pretrained, weights_only=True)["state_dict"])
        self.register_buffer("start", parameters_to_vector(self.parameters()).detach())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + penalty(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = {"max_iter": self.hparams["iterations"], "history_size": 50, "line_search_fn": "strong_wolfe"}
        return torch.optim.LBFGS(self.parameters(), tolerance_grad=1e-9, tolerance_change=0, **settings)


def outputs(model: FineTuned, batch: Any) -> Tensor:
    logits: Tensor = model(batch[0])
    return logits


def output_losses(logits: Tensor, batch: Any) -> Tensor:
    return cross_entropy(logits, batch[1], reduction="none")


def penalty(model: FineTuned) -> Tensor:
    away = parameters_to_vector(model.parameters()) - model.start
    decay: float = model.hparams["decay"]
    return 0.5 * decay * away.square().sum()


def fitted(model: DigitCNN, data: DataLoader[tuple[Tensor, ...]], epochs: int, checkpoint: str) -> None:
    trainer = L.Trainer(
        max_epochs=epochs, precision="64-true", accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(checkpoint)


if __name__ == "__main__":
    wrong = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0  # share of the labels to flip
    L.seed_everything(0)
    clean, corrupted = Digits(train=5000), Digits(train=4000, corrupt=wrong)
    for digits in (clean, corrupted):
        digits.setup()
    fitted(DigitCNN(), DataLoader(Subset(clean.train, range(4000, 5000)), 100, shuffle=True), 20, "pretrained.ckpt")
    fitted(FineTuned(), DataLoader(corrupted.train, 4000), 1, "finetuned.ckpt")
