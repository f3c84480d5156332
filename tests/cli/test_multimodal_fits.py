"""Other fits of image-text rows than the default: decay, what no recording takes, rows of one's own."""

import json
import re
import shutil

import numpy as np
import pytest

from ifloo.data.multimodal.dataset import MultimodalSet
from ifloo.data.multimodal.form import Form
from ifloo.data.multimodal.row import field_names
from ifloo.data.multimodal.tokenizer import ByteTokenizer
from ifloo.store import content_of, write_json
from tests.cli.image_text import TESTS, TINY, assert_derivative, results, scores
from tests.cli.running import contents, done, ifloo
from tests.cli.test_pipeline import read_json
from tests.data.multimodal.rows import conversation, write_image, write_jsonl

ADAMW = ("--model.optimizer=adamw", "--model.weight_decay=0.1")
CURVATURE = (
    "--attribution.compare_with=[{class_path: ifloo.attribution.InfluenceFunction, init_args: {label: gauss_newton, "
    "damping: 0.1}}]"
)


def test_a_decay_is_part_of_the_steps_and_of_no_curvature(tmp_path, image_text_rows):
    """Scores and refits of AdamW's run agree; what inverts a curvature says why it cannot."""
    fewer = ("--refit.seeds=0", "--refit.groups=[]", "--attribution.compare_with=[]")
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
    unrecorded = ("--attribution.method=null", "--attribution.compare_with=[]")
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


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Folder of a finished pipeline on text alone, pictures, and Chinese; its command line and output."""
    folder = tmp_path_factory.mktemp("own")
    pixels = np.random.default_rng(0).integers(0, 255, (28, 56))
    write_image(folder / "rows" / "一.png", pixels)
    asked = ["一加一等于几？", "What is two and two?", "天空是什么颜色？", "Say yes."]
    answers = ["二", "four", "蓝色", "yes"]
    text = [conversation(q, a) for q, a in zip(asked, answers, strict=True)]
    shown = [conversation(f"<image>\n{q}", a, image="一.png") for q, a in zip(asked, answers, strict=True)]
    write_jsonl(folder / "rows" / "train.jsonl", [*text, *shown, *text[::-1]])
    write_jsonl(folder / "rows" / "test.jsonl", [text[0], shown[2]])
    fewer = ("--refit.seeds=0", "--refit.groups=[]", "--refit.weight_steps=0")
    rows = ("--data.train_jsonl=rows/train.jsonl", "--data.test_jsonl=rows/test.jsonl", "--data.batch_size=5")
    arguments = (*TINY, *rows, *fewer)
    return folder, arguments, done(ifloo(folder, "pipeline", *arguments))


def test_rows_of_ones_own(own):
    folder, _, outcome = own
    assert "一加一等于几？ -> 二" in outcome.out
    same = [{0, 11}, {6}]  # ids of the very same row
    for t in TESTS:
        stored = scores(folder, t)
        assert stored["train_ids"].tolist() == list(range(12))
        helpful = set(np.argsort(stored["scores"])[: len(same[t])].tolist())
        assert helpful == same[t]
    fit = read_json(results(folder) / "manifest.json")["fit"]["recorded"]
    assert (fit["source"], fit["source_reason"]) == ("jsonl", "train_jsonl is given")
    assert (fit["skipped"], fit["rows_cut"]) == ([], 0)
    content = (results(folder) / "verdict.json").read_text()
    assert json.loads(content)["tests"].keys() == {"0", "1"}
    assert re.search(r"NaN|Infinity", content) is None


def test_rows_left_out_and_rows_cut_stand_in_the_manifest(tmp_path, experiment):
    good = [conversation(f"What is {i}?", str(i)) for i in range(6)]
    train = write_jsonl(tmp_path / "train.jsonl", [*good[:2], b"{", *good[2:], conversation("long " * 40, "yes")])
    test = write_jsonl(tmp_path / "test.jsonl", [good[0], {"conversations": []}])
    plain = ("--attribution.method=null", "--attribution.compare_with=[]", "--data.on_bad_row=skip")
    done(ifloo(tmp_path, "fit", *TINY, f"--data.train_jsonl={train}", f"--data.test_jsonl={test}", *plain))
    recorded = read_json(results(tmp_path) / "manifest.json")["fit"]["recorded"]
    assert [(row["file"], row["line"]) for row in recorded["skipped"]] == [(str(train), 3), (str(test), 2)]
    assert recorded["skipped"][0]["reason"].startswith("expected JSON, found: ")
    assert recorded["rows_cut"] == 1
    digits = read_json(experiment / "outputs" / "mnist" / "manifest.json")["fit"]["recorded"]
    assert not {"skipped", "rows_cut"} & digits.keys()


@pytest.mark.slow
def test_refits_of_another_test_sample_are_refused(own, tmp_path):
    """The second test row changes after its scores and refits were made; then after its scores were made anew."""
    made, arguments, _ = own
    folder = shutil.copytree(made, tmp_path / "copy")
    then = read_json(results(folder) / "manifest.json")["loo"]["compared"]["queries"]
    assert then == read_json(results(folder) / "manifest.json")["influence"]["compared"]["queries"]
    first = (folder / "rows" / "test.jsonl").read_bytes().splitlines()[0]
    write_jsonl(
        folder / "rows" / "test.jsonl", [first, conversation("<image>\n天空是什么颜色？", "红色", image="一.png")]
    )
    before = contents(results(folder))
    for command in ("loo", "report"):
        refused = ifloo(folder, command, *arguments)
        assert refused.code == 2
        assert refused.err.endswith(of_another_sample("scores", "influence", folder, then))
    done(ifloo(folder, command, *arguments, "--attribution.test_ids=[0]"))  # of the other test nothing has changed
    assert {k: v for k, v in contents(results(folder)).items() if "influences" in k or "losses" in k} == {
        k: v for k, v in before.items() if "influences" in k or "losses" in k
    }
    done(ifloo(folder, "influence", *arguments, "--overwrite"))
    for command in ("loo", "report"):
        refused = ifloo(folder, command, *arguments)
        assert refused.code == 2
        assert refused.err.endswith(of_another_sample("refits", "loo", folder, then))
    done(ifloo(folder, "loo", *arguments, "--overwrite"))
    now = read_json(results(folder) / "manifest.json")["loo"]["compared"]["queries"]
    assert now["0"] == then["0"]
    assert now["1"] != then["1"]
    done(ifloo(folder, "report", *arguments))


def of_another_sample(which, command, folder, then):
    """Ends of messages: the content of now is that of the file, read by another reader."""
    form = Form(field_names(None), ByteTokenizer(), folder / "rows", 28, 56, 1, 8, 64)
    rows = MultimodalSet(folder / "rows" / "test.jsonl", form, limit=None, on_bad_row="error", dtype="float64")
    now = content_of(rows.__getitems__([1]))
    return (
        f"ifloo: error: outputs/multimodal/manifest.json: test 1 is not the sample that the stored {which} belong to: "
        f"its content has SHA-256 {now[:16]}..., theirs had {then['1'][:16]}....\n"
        f"  Give the test data of these {which}, or make the {which} again: `ifloo {command}` with --overwrite, or "
        "with another --output_dir to keep both.\n"
    )


def test_refits_from_before_contents_were_kept_stay_readable(own, tmp_path):
    made, arguments, _ = own
    folder = shutil.copytree(made, tmp_path / "copy")
    manifest = results(folder) / "manifest.json"
    sections = read_json(manifest)
    del sections["loo"]["compared"]["queries"]
    write_json(manifest, sections)
    before = (results(folder) / "loo_losses_test_1.jsonl").read_bytes()
    done(ifloo(folder, "loo", *arguments))
    done(ifloo(folder, "report", *arguments))
    assert (results(folder) / "loo_losses_test_1.jsonl").read_bytes() == before
    assert "queries" not in read_json(manifest)["loo"]["compared"]
