"""The engine as a predict stage: which of a hundred new samples would help a test sample most if trained on.

python scripts/examples/predict.py
"""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression
from ifloo.refit import NewtonFinish
from ifloo.stages import InfluencePredictor


def trainer(**settings: Any) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)


digits = MNISTDataModule(source="embedded", train_limit=500)
model = LogisticRegression(l2_reg=0.05)
trainer(max_epochs=1, callbacks=[NewtonFinish()]).fit(model, datamodule=digits)

# Any loader whose batches the model accepts can be scored: here a hundred test images that were not trained on.
candidates = Subset(digits.test_set, range(100, 200))
loader = DataLoader(candidates, batch_size=32, collate_fn=lambda batch: batch)  # DigitSet returns whole batches

predictor = InfluencePredictor(model, digits.train_dataloader(), queries=digits.test_batch([0, 8]))
parts: Any = trainer().predict(predictor, loader)  # [2, b] of each batch, in order
scores = torch.cat(parts, 1)  # [2, 100], nats per unit weight; negative = helpful

for t, row in zip([0, 8], scores, strict=True):
    best = 100 + int(row.argmin())
    print(
        f"test {t} (a {digits.test_set.caption(t)}): its loss would change most by adding test image {best} "
        f"(a {digits.test_set.caption(best)}): by {float(row.min()):+.5f} nats"
    )
np.save("scores.npy", scores)
