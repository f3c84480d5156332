"""How a solve went, step by step: what each solver tells of it, and what is stored beside the scores."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ifloo.curvature import Hessian
from ifloo.errors import InputError, WorkError
from ifloo.solvers import CG, Cholesky, LiSSA
from ifloo.solvers.progress import recording
from ifloo.store import influences, write_npz
from tests.problems import Logistic
from tests.stages.scores.test_influence_run import run
from tests.store.test_influences import STORED

CURVE = np.array([[1, 0.5], [2, 1e-3], [5, 2e-11]])


@functools.cache
def problem():
    return Logistic.make()


def textbook(H, b, rtol):
    """‖r_k‖/‖b‖ of conjugate gradients from zero (Hestenes & Stiefel 1952), k = 1, 2, ..., until it is below rtol."""
    x, r = torch.zeros_like(b), b.clone()
    p, rho, found = r.clone(), r @ r, []
    while not found or found[-1] > rtol:
        q = H @ p
        alpha = rho / (p @ q)
        x, r = x + alpha * p, r - alpha * q
        found.append(float(r.norm() / b.norm()))
        p, rho = r + (r @ r) / rho * p, r @ r
    return x, found


def test_the_curve_of_conjugate_gradients_is_that_of_its_recurrence():
    given = problem()
    engine = given.engine(CG(rtol=1e-6))
    one = {name: value[:1] for name, value in given.queries.items()}
    (curve,) = engine.directions(one).certificate.curves
    H = given.dense_hessian()
    b = given.gradients(given.theta, one["x"], one["labels"])[0]
    x, expected = textbook(H, b, 1e-6)
    assert len(expected) > 3
    assert curve[:, 0].tolist() == list(range(1, len(expected) + 1))
    # Residuals of two roundings of one recurrence: absolute, as those of a float64 product are.
    np.testing.assert_allclose(curve[:-1, 1], expected[:-1], rtol=0, atol=1e-10)
    # The last point is no recurrence: b − Hx, recomputed.
    assert float(curve[-1, 1]) == pytest.approx(float((b - H @ x).norm() / b.norm()), rel=0, abs=1e-10)


def test_queries_solved_together_share_the_curve_of_the_worst():
    certificate = problem().engine(CG(rtol=1e-8)).directions(problem().queries).certificate
    first, *others = certificate.curves
    assert len(others) + 1 == len(certificate.residual)
    assert all(torch.equal(first, other) for other in others)
    assert first[-1].tolist() == [float(certificate.steps.max()), float(certificate.residual.max())]
    assert (first[1:, 0] > first[:-1, 0]).all()


@pytest.mark.parametrize("solver", [Cholesky(), LiSSA(depth=100, repeats=2, batch=8)])
def test_a_solver_without_residuals_on_its_way_has_one_point(solver):
    certificate = problem().engine(solver).directions(problem().queries).certificate
    expected = [[float(certificate.steps.max()), float(certificate.residual.max())]]
    assert [curve.tolist() for curve in certificate.curves] == [expected] * len(certificate.residual)


def test_whoever_was_told_before_is_told_as_well_and_remains():
    given = problem()
    prepared = CG(rtol=1e-6).prepare(Hessian(given.objective(), given.theta))
    told = []
    prepared.progress = lambda step, residual: told.append((step, residual))
    mine = prepared.progress
    b = torch.arange(given.theta.numel(), dtype=torch.float64)[None]
    with recording(prepared) as curve:
        solution = prepared.solve(b)
    assert prepared.progress is mine
    found = [tuple(point) for point in curve.ended(solution).tolist()]
    assert len(told) > 3
    assert found[:-1] == told[:-1]


def test_the_stage_stores_it(tmp_path):
    stage = run(tmp_path, test_ids=[0, 4], solver=CG(rtol=1e-9))
    stored = stage.score_tests()
    with np.load(stage.layout.scores(4)) as raw:
        curve = raw["residual_curve"]
    assert (curve.dtype, curve.shape[1]) == (np.float64, 2)
    assert curve[-1].tolist() == [max(one.steps for one in stored), max(one.residual for one in stored)]
    assert curve[-1, 1] <= 1e-9 < curve[0, 1]
    for one in stored:
        np.testing.assert_array_equal(one.residual_curve, curve, strict=True)


def test_it_comes_back_and_older_files_have_none(tmp_path):
    path = tmp_path / "influences_test_8.npz"
    influences.save(path, replace(STORED, residual_curve=CURVE))
    np.testing.assert_array_equal(influences.load(path).residual_curve, CURVE, strict=True)
    influences.save(path, STORED)
    assert influences.load(path).residual_curve is None
    with np.load(path) as raw:
        assert "residual_curve" not in raw


FAULTS = [
    (CURVE.astype(np.float32), "residual_curve is float32, not float64"),
    (CURVE[:, 0], "residual_curve (3,) is not a step and a residual a row"),
    (CURVE[:0], "residual_curve (0, 2) is not a step and a residual a row"),
    (CURVE * [1, np.nan], "residual_curve holds numbers that are not finite"),
    (CURVE[::-1], "the steps of residual_curve do not increase"),
]


@pytest.mark.parametrize(("curve", "fault"), FAULTS)
def test_a_curve_that_is_none_is_neither_written_nor_read(tmp_path, curve, fault):
    path = tmp_path / "influences_test_8.npz"
    influences.save(path, STORED)
    before = path.read_bytes()
    message = (
        f"{path} was not written: {fault}.\n"
        "  An old file there is unchanged. The calculation that gave these scores went wrong; its log says more."
    )
    with pytest.raises(WorkError, match=f"^{re.escape(message)}$"):
        influences.save(path, replace(STORED, residual_curve=curve))
    assert path.read_bytes() == before
    with np.load(path) as raw:
        write_npz(path, {**raw, "residual_curve": curve})
    message = (
        f"{path} holds no influence scores of ifloo: {fault}.\n"
        "  Delete it and run `ifloo influence` for this test id again."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        influences.load(path)
