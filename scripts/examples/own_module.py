"""Your own model, which states its loss per sample and its penalty: trained to its minimum, scored, certified.

python scripts/examples/own_module.py
"""

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from ifloo.attribution import InfluenceEngine, predicted_change
from ifloo.curvature import LinearHead
from ifloo.data import MNISTDataModule
from ifloo.models import SampleLossModule
from ifloo.objective import Objective
from ifloo.refit import NewtonFinish
from ifloo.solvers import Cholesky


class Softmax(SampleLossModule):
    """Softmax regression with two methods instead of a training_step, used by training, scores and refits."""

    def __init__(self, l2: float = 0.05) -> None:
        super().__init__()
        self.l2, self.linear = l2, nn.Linear(784, 10, bias=False, dtype=torch.float64)

    def sample_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Computes one loss per sample, nats, without the penalty."""
        return nn.functional.cross_entropy(self.linear(batch["x"]), batch["labels"], reduction="none")

    def penalty(self) -> Tensor:
        """Computes the penalty; it must not be weight_decay, because the curvature is that of the whole objective."""
        return 0.5 * self.l2 * self.linear.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), max_iter=200, line_search_fn="strong_wolfe")


L.seed_everything(0, verbose=False)
digits = MNISTDataModule(source="embedded", train_limit=500)  # batches {"x", "labels", "idx"}; idx is a sample's id
model = Softmax()
# L-BFGS gets close to the minimum, then a few Newton steps reach |grad J| <= 1e-10.
trainer = L.Trainer(
    max_epochs=1, callbacks=[NewtonFinish()], accelerator="cpu", logger=False, enable_checkpointing=False
)
trainer.fit(model, datamodule=digits)

objective = Objective.of(model, digits.train_dataloader())
theta = objective.losses.theta()
engine = InfluenceEngine(objective, theta, LinearHead(objective, theta), Cholesky(), strong_convexity=model.l2)
scores = engine.scores(digits.test_batch([8]))  # [1, 500], nats per unit weight

change = predicted_change(scores.value[0], float(scores.mean[0]), "drop")
print(f"test 8 (a {digits.test_set.caption(8)}), loss without training sample i, predicted:")
for i in scores.value[0].argsort(descending=True)[:5].tolist():
    print(f"  {i:4d} (a {digits.train_set.caption(i)}): {float(change[i]):+.4f} nats")
print(f"relative residual of the solve: {scores.worst_residual:.0e}")
np.savez("scores_test_8.npz", scores=scores.value[0], train_ids=scores.train_ids)
