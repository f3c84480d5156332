"""The example of a fine-tuned CNN, small: two ordinary fits, then scores and refits of the checkpoint."""

import json
import sys

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from tests.cli.running import CHECKOUT, ifloo

CONFIG = CHECKOUT / "scripts" / "examples" / "finetune.yaml"
SMALL = ("--data.train=150", "--data.test=20", "--attribution.test_ids=[0, 8]", "--refit.top_k=3", "--refit.random=4")
SKETCH = "preconditioner.init_args.rank=20"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """finetuned.ckpt, of 150 digits around weights of 100 others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(CHECKOUT), *sys.path])
    from scripts.examples import finetune, plain

    L.seed_everything(0)
    digits = plain.Digits(train=250)
    digits.setup()
    pretraining = DataLoader(Subset(digits.train, range(150, 250)), 50, shuffle=True)
    finetune.fitted(plain.DigitCNN(), pretraining, 10, "pretrained.ckpt")
    finetune.fitted(finetune.FineTuned(), DataLoader(Subset(digits.train, range(150)), 150), 1, "finetuned.ckpt")
    return tmp_path / "finetuned.ckpt"


def test_the_penalty_is_the_distance_from_the_pretrained_weights(checkpoint):
    from scripts.examples import finetune

    model = finetune.FineTuned(decay=0.5)
    assert not finetune.penalty(model).item()
    with torch.no_grad():
        model.head.bias += 2.0
    assert finetune.penalty(model).item() == pytest.approx(0.5 * 0.5 * 10 * 4, rel=1e-6)  # ten entries, in 32 bits


@pytest.mark.slow
def test_scores_and_refits_of_a_fine_tuned_network(checkpoint):
    said = ifloo(
        checkpoint.parent,
        "pipeline",
        *(f"--config={CONFIG}", *SMALL, f"--attribution.solver.init_args.{SKETCH}", f"--finish.{SKETCH}"),
        *("--refit.null_refits=2", "--trainer.logger=false", "--attribution.compare_with=[]"),
    )
    assert said.code == 0, said.err
    verdict = json.loads((checkpoint.parent / "outputs" / "finetune" / "verdict.json").read_text())
    for test in ("0", "8"):
        found = verdict["tests"][test]
        assert found["n_refits"] >= 6
        assert found["worst_grad_norm"] <= 1e-10
        assert found["pearson"] > 0.9  # of 150 digits each is 0.7 % of J: the second order in the weight is seen
    assert np.isfinite([verdict["tests"]["0"]["slope"]]).all()
