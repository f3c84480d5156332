"""Refits against an independent solver, from either start; each kind of removal is predicted by its own formula."""

import numpy as np
import pytest

from tests.cli.dense import Dense
from tests.cli.running import TESTS, N, done, small
from tests.cli.test_pipeline import lines, read_json

# With λ = 100 a sample has a leverage of about 0.3 %, so that a wrong formula shows over the second order.
STRONG = (
    "--model.l2_reg=100.0",
    "--attribution.test_ids=[8]",
    "--refit.top_k=0",
    "--refit.random=6",
    "--refit.null_refits=0",
)


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strong")
    done(small(folder, "fit", *STRONG))
    for removal in ("drop", "zero_weight"):
        how = (*STRONG, f"--output_dir={removal}", f"--refit.removal={removal}", "--finish.tolerance=1e-12")
        done(small(folder, "influence", *how))
        done(small(folder, "loo", *how))
    return folder


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_a_refit_is_predicted_by_its_own_formula(strong, removal):
    npz = np.load(strong / removal / "influences_test_8.npz")
    base, *rows = lines(strong / removal / "loo_losses_test_8.jsonl")
    actual = np.array([row["loss"] - base["loss"] for row in rows])
    scores = npz["scores"][[row["id"] for row in rows]].astype(np.float64)
    predicted = {"zero_weight": -scores, "drop": -(scores - float(npz["score_mean"]))}
    error = {name: np.median(np.abs(p - actual)) for name, p in predicted.items()}
    other = {"drop": "zero_weight", "zero_weight": "drop"}[removal]
    assert error[removal] < 0.1 * error[other]


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_a_refit_is_that_of_an_independent_solver(strong, removal):
    dense = Dense.of_digits(N, TESTS, l2=100.0)
    base, *rows = lines(strong / removal / "loo_losses_test_8.jsonl")
    W = dense.fit()
    for row in rows[:3]:
        truth = dense.test_loss(dense.fit(row["id"], removal, W), 8) - dense.test_loss(W, 8)
        assert row["loss"] - base["loss"] == pytest.approx(truth, abs=1e-12)  # ‖∇L_t‖ (1e-12 + 1e-12) / μ is 2e-13


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    """Refits under the λ of the config, ended at 1e-12, from the base weights and from scratch."""
    folder = tmp_path_factory.mktemp("precise")
    few = ("--attribution.test_ids=[8]", "--refit.top_k=2", "--refit.random=2", "--refit.null_refits=0")
    done(small(folder, "fit"))
    for init in ("warm", "cold"):
        how = (*few, f"--output_dir={init}", f"--refit.init={init}", "--finish.tolerance=1e-12")
        done(small(folder, "influence", *how))
        done(small(folder, "loo", *how))
    return folder


@pytest.mark.parametrize("init", ["warm", "cold"])
def test_a_precise_refit_is_that_of_an_independent_solver_from_either_start(precise, init):
    dense = Dense.of_digits(N, TESTS, l2=0.01)
    base, *rows = lines(precise / init / "loo_losses_test_8.jsonl")
    W = dense.fit()
    assert base["loss"] == pytest.approx(dense.test_loss(W, 8), abs=1e-9)
    assert len(rows) == 4
    for row in rows:
        truth = dense.test_loss(dense.fit(row["id"], "drop", W), 8) - dense.test_loss(W, 8)
        # ‖∇L_t‖ (1e-12 + 1e-12) / μ bounds it by 1e-9; J is convex, so that nothing depends on the start.
        assert row["loss"] - base["loss"] == pytest.approx(truth, abs=1e-9)
    assert read_json(precise / init / "manifest.json")["loo"]["compared"]["init"] == init
