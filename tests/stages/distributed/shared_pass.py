"""Program started by the tests: scores in float64 by several processes, which it starts itself.

Arguments: number of processes, number of training samples, `head` or `general`, file for the scores.
"""

import sys
import warnings

import lightning as L
import numpy as np
import torch

from ifloo.curvature import Hessian
from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression
from ifloo.objective import sequential
from ifloo.solvers import CG
from ifloo.stages import AttributionSettings, InfluencePredictor, InfluenceWriter
from ifloo.stages.distributed.process_group import ProcessGroup

QUERIES = 35  # more than two blocks of queries solved together, the last block not full


def main(devices: int, n: int, kind: str, path: str) -> None:
    warnings.simplefilter("ignore")
    data = MNISTDataModule(source="embedded", train_limit=n, test_limit=QUERIES)
    data.setup("fit")
    torch.manual_seed(0)
    more = {"curvature": Hessian} if kind == "general" else {}
    settings = AttributionSettings(
        solver=CG(rtol=1e-12) if more else AttributionSettings().solver, batch_size=4, **more
    )
    module = LogisticRegression(l2_reg=1.0)
    predictor = InfluencePredictor(module, sequential(data.train_dataloader(), 4), settings, QUERIES)

    def deliver(block):
        scores = block.scores
        np.savez(path, value=scores.value, ids=scores.train_ids, residual=scores.certificate.residual, mean=block.mean)

    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[InfluenceWriter(deliver)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,
    )
    predictor.share_runs(ProcessGroup.connect(trainer), QUERIES)
    predictor.explain(data.test_batch(range(QUERIES)), trainer)
    assert torch.distributed.is_initialized() == (devices > 1)
    ProcessGroup.close_leftover()
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
