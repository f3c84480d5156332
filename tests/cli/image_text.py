"""The smallest image-text experiment: its command line, and its files read back."""

import numpy as np
import pytest

from tests.cli.running import CHECKOUT
from tests.cli.test_pipeline import lines

N, STEPS = 40, 6
TESTS = (0, 1)
TINY = (
    f"--config={CHECKOUT / 'configs' / 'multimodal.yaml'}",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--model.embed_dim=16",
    "--model.num_heads=2",
    # Adam with an epsilon above its √v steps along the gradient: six steps are a smooth function of the weights.
    "--model.epsilon=0.1",
    "--model.lr=0.02",
    "--attribution.test_ids=[0, 1]",
    "--attribution.compare_with=[{class_path: ifloo.attribution.TracIn}, {class_path: ifloo.attribution.RandomScores}]",
    "--refit.top_k=3",
    "--refit.random=3",
    "--refit.weight_steps=2",
    "--refit.groups=[0.1]",
    "--refit.seeds=1",
    "--refit.null_refits=2",
)


def results(folder):
    return folder / "outputs" / "multimodal"


def scores(folder, t, where=""):
    with np.load(results(folder) / where / f"influences_test_{t}.npz", allow_pickle=False) as npz:
        return dict(npz)


def losses(folder, t, where=""):
    return {row["id"]: row["loss"] for row in lines(results(folder) / where / f"loo_losses_test_{t}.jsonl")}


def assert_derivative(folder, t):
    """Checks scores against central differences at w = 1 ± 0.1, to 1 % of the largest score.

    The error of such a difference is 0.1²/6 of the third derivative.
    """
    up, down = losses(folder, t, "weight_1.1"), losses(folder, t, "weight_0.9")
    stored = scores(folder, t)["scores"].astype(np.float64)
    for i in up:
        assert (up[i] - down[i]) / 0.2 == pytest.approx(stored[i], rel=0, abs=0.01 * abs(stored).max())
