"""The stage by itself: blocks of queries through one Trainer after the other, whatever fits, and the same scores."""

import functools
import logging

import lightning as L
import numpy as np
import pytest
import torch

from ifloo.attribution import ForwardProducts
from ifloo.curvature import Hessian
from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression
from ifloo.solvers import CG
from ifloo.stages import AttributionSettings, InfluenceStage
from ifloo.stages.scores import predictor as predictor_module
from ifloo.store import Layout, jsonl

N, TESTS = 31, 9
# Two float64 scores from solves to 1e-12 lie within 2e-12 ‖∇ℓ‖ ‖∇L‖ / (n λ) < 1e-11 of each other (norms up to 12,
# n = 31, λ = 1); stored, they may be two neighbouring numbers of float32, 2⁻²³ of their size apart.
close = functools.partial(np.testing.assert_allclose, rtol=2**-23, atol=1e-11)


def trainer(writer, bar):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[writer],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        inference_mode=False,
    )


@functools.cache
def digits():
    data = MNISTDataModule(source="embedded", train_limit=N, test_limit=TESTS)
    data.setup("fit")
    return data


def run(folder, **settings) -> InfluenceStage:
    """On a model that needs no fit: λ is so large that H is all but λI."""
    torch.manual_seed(0)
    module = LogisticRegression(l2_reg=1.0)
    chosen = {"test_ids": "all", "batch_size": 7, "solver": CG(rtol=1e-12), "curvature": Hessian, **settings}
    attribution = AttributionSettings(parameters=["*"], **chosen)
    return InfluenceStage(module, digits(), attribution, Layout(folder), {}, trainer)


def matrix(folder) -> np.ndarray:
    return np.load(Layout(folder).all_scores_matrix)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("expected")
    assert run(folder, matrix=True).all_tests() == TESTS
    return matrix(folder)


@pytest.mark.parametrize("query_block", [1, 2, 4, TESTS, 100])
def test_blocks_do_not_show(tmp_path, expected, query_block):
    run(tmp_path, matrix=True, query_block=query_block).all_tests()
    close(matrix(tmp_path), expected)


def test_forms_hold_the_same_scores(tmp_path, expected):
    run(tmp_path / "files").all_tests()
    run(tmp_path / "top", topk_only=True, top_k=5).all_tests()
    listed: list = []
    run(tmp_path, test_ids=list(range(TESTS))).score(range(TESTS), listed.append)
    with np.load(Layout(tmp_path / "top").all_topk) as top:
        for t in range(TESTS):
            close(np.load(Layout(tmp_path / "files").all_scores(t)), expected[t])
            close(listed[t].scores, expected[t])
            close(top["scores"][t], expected[t][top["ids"][t]])
            assert top["mean"][t] == pytest.approx(listed[t].score_mean, rel=1e-9)
    for row in jsonl.read(Layout(tmp_path / "top").index):
        assert row["residual"] <= 1e-12
        assert row["status"] == "CONVERGED"
        assert {"undamped_residual", "error_bound", "method", "content", "steps"} <= row.keys()


class Greedy(ForwardProducts):
    """Products that want more memory than there is for more than two directions."""

    def of(self, chunk, directions):
        if len(directions) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return super().of(chunk, directions)


def test_a_block_that_does_not_fit_is_halved(tmp_path, expected, monkeypatch, caplog):
    made = predictor_module.engine_for

    def greedy(objective, theta, *rest):
        engine = made(objective, theta, *rest)
        engine.__dict__["products"] = Greedy(objective, theta, 7)
        return engine

    monkeypatch.setattr(predictor_module, "engine_for", greedy)
    with caplog.at_level(logging.WARNING, logger="ifloo.objective.out_of_memory"):
        run(tmp_path, matrix=True, query_block=8).all_tests()
    close(matrix(tmp_path), expected)
    said = [record.getMessage() for record in caplog.records if record.name == "ifloo.objective.out_of_memory"]
    assert [text.split(" (")[0] for text in said] == [f"out of memory with {m} tests at once" for m in (8, 4)]
    assert said[-1].endswith("going on with 2.")
