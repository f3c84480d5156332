"""Other fits of image-text rows than the default: decay, what no recording takes, rows of one's own."""

import json
import re

import numpy as np
import pytest

from tests.cli.image_text import TESTS, TINY, assert_derivative, results, scores
from tests.cli.running import done, ifloo
from tests.cli.test_pipeline import read_json
from tests.data.multimodal.rows import said, write_image, write_jsonl

ADAMW = ("--model.optimizer=adamw", "--model.weight_decay=0.1")
CURVATURE = (
    "--attribution.further=[{class_path: ifloo.attribution.CurvatureRoute, init_args: {label: gauss_newton, "
    "damping: 0.1}}]"
)


def test_a_decay_is_part_of_the_steps_and_of_no_curvature(tmp_path, image_text_rows):
    """Scores and refits of AdamW's run agree; what inverts a curvature says why it cannot."""
    fewer = ("--refit.seeds=0", "--refit.groups=[]", "--attribution.further=[]")
    done(ifloo(tmp_path, "pipeline", *TINY, *image_text_rows, *ADAMW, *fewer))
    rule = read_json(tmp_path / "models" / "multimodal_base.run" / "run.json")["update"]
    assert (rule["class"], rule["decay"]) == ("Adam", 0.1)
    for t in TESTS:
        assert_derivative(tmp_path, t)
        assert float(scores(tmp_path, t)["residual"]) <= 1e-12
    failed = ifloo(tmp_path, "influence", *TINY, *image_text_rows, *ADAMW, *fewer, CURVATURE)
    assert failed.code == 2
    assert failed.err.endswith(
        "ifloo: error: gauss_newton inverts the curvature of J, and this model was trained with a decoupled weight "
        "decay of 0.1: the decay is part of the optimizer's step and not of J, so that the curvature would be that of "
        "another function.\n  Use the unrolled method, which differentiates the steps themselves, or put the decay "
        "into `penalty`.\n"
    )


def test_decay_that_nobody_records_is_refused(tmp_path, image_text_rows):
    unrecorded = ("--attribution.method=null", "--attribution.further=[]")
    refused = ifloo(tmp_path, "fit", *TINY, *image_text_rows, *ADAMW, *unrecorded)
    assert refused.code == 2
    assert "The optimizer decays weights (weight_decay = 0.1), which J does not contain" in refused.err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "--trainer.gradient_clip_val=0.5",
            "gradient clipping (gradient_clip_val = 0.5): leave it out, and lower the learning rate if the fit "
            "diverges",
        ),
        ("--model.dropout=0.1", "dropout in transformer"),
        ("--finish.after=always", "finish.after = always moves the weights beyond its last step."),
    ],
)
def test_a_fit_that_cannot_be_recorded_is_refused(tmp_path, image_text_rows, change, message):
    refused = ifloo(tmp_path, "pipeline", *TINY, *image_text_rows, change)
    assert refused.code == 2
    assert "This fit is to be recorded for attribution, and" in refused.err
    assert message in refused.err
    assert not list(tmp_path.rglob("*_base.*"))


def test_rows_of_ones_own(tmp_path):
    """Text alone, pictures, and Chinese, in jsonl files beside the pictures."""
    pixels = np.random.default_rng(0).integers(0, 255, (28, 56))
    write_image(tmp_path / "rows" / "一.png", pixels)
    asked = ["一加一等于几？", "What is two and two?", "天空是什么颜色？", "Say yes."]
    answers = ["二", "four", "蓝色", "yes"]
    text = [said(q, a) for q, a in zip(asked, answers, strict=True)]
    shown = [said(f"<image>\n{q}", a, image="一.png") for q, a in zip(asked, answers, strict=True)]
    train = write_jsonl(tmp_path / "rows" / "train.jsonl", [*text, *shown, *text[::-1]])
    test = write_jsonl(tmp_path / "rows" / "test.jsonl", [text[0], shown[2]])
    own = (f"--data.train_jsonl={train}", f"--data.test_jsonl={test}", "--data.batch_size=5")
    fewer = ("--refit.seeds=0", "--refit.groups=[]", "--refit.weight_steps=0")
    outcome = done(ifloo(tmp_path, "pipeline", *TINY, *own, *fewer))
    assert "一加一等于几？ -> 二" in outcome.out
    same = [{0, 11}, {6}]  # ids of the very same row
    for t in TESTS:
        stored = scores(tmp_path, t)
        assert stored["train_ids"].tolist() == list(range(12))
        helpful = set(np.argsort(stored["scores"])[: len(same[t])].tolist())
        assert helpful == same[t]
    fit = read_json(results(tmp_path) / "manifest.json")["fit"]["recorded"]
    assert (fit["source"], fit["source_reason"]) == ("jsonl", "train_jsonl is given")
    content = (results(tmp_path) / "verdict.json").read_text()
    assert json.loads(content)["tests"].keys() == {"0", "1"}
    assert re.search(r"NaN|Infinity", content) is None
