"""The whole pipeline on a few image-text rows: a recorded fit, its derivative, refits, and what is kept of them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ifloo.agreement import agreement
from ifloo.stages.reverse import KeptReverse
from tests.cli.running import CHECKOUT, contents, done, ifloo
from tests.cli.test_pipeline import lines, read_json
from tests.data.multimodal.rows import said, write_image, write_jsonl

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
    "--attribution.further=[{class_path: ifloo.attribution.TracIn}, {class_path: ifloo.attribution.RandomScores}]",
    "--refit.top_k=3",
    "--refit.random=3",
    "--refit.weight_steps=2",
    "--refit.groups=[0.1]",
    "--refit.seeds=1",
    "--refit.null_refits=2",
)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Arguments for the embedded set, made once for all tests."""
    root = tmp_path_factory.mktemp("multimodal") / "data"
    return (f"--data.root={root}", f"--data.train_limit={N}", "--data.test_limit=6", "--data.batch_size=20")


@pytest.fixture(scope="session")
def made(rows, tmp_path_factory):
    """Folder of a finished pipeline. Do not write here."""
    folder = tmp_path_factory.mktemp("made")
    done(ifloo(folder, "pipeline", *TINY, *rows))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def results(folder):
    return folder / "outputs" / "multimodal"


def scores(folder, t, where=""):
    with np.load(results(folder) / where / f"influences_test_{t}.npz", allow_pickle=False) as npz:
        return dict(npz)


def losses(folder, t, where=""):
    return {row["id"]: row["loss"] for row in lines(results(folder) / where / f"loo_losses_test_{t}.jsonl")}


# What is there.


def test_every_file_is_there_and_no_other(made):
    per_test = (
        *("influences_test_{}.npz", "topk_ids_test_{}.txt", "group_losses_test_{}.jsonl", "loo_losses_test_{}.jsonl"),
        *(f"{kind}/loo_losses_test_{{}}.jsonl" for kind in ("null", "seeds", "weight_0.9", "weight_1.1")),
        *(f"methods/{name}/influences_test_{{}}.npz" for name in ("random", "tracin")),
        *(f"figs/{name}_test_{{}}.png" for name in ("influence_distribution", "influence_vs_loo", "gallery")),
        "figs/methods_comparison_test_{}.png",
    )
    states = [f"models/multimodal_base.run/state_{k:07d}.npz" for k in (0, 2, 4, 6)]
    expected = {"models/multimodal_base.pth", *states, *(f"models/multimodal_base.run/{n}" for n in RUN)}
    expected |= {f"outputs/multimodal/{name.format(t)}" for name in per_test for t in TESTS}
    expected |= {"outputs/multimodal/manifest.json", "outputs/multimodal/verdict.json"}
    assert {name for name in contents(made) if not name.startswith("lightning_logs/")} == expected


RUN = ("run.json", "steps.npz")


@pytest.mark.parametrize("t", TESTS)
def test_scores_and_top_ids_have_their_form(made, t):
    stored = scores(made, t)
    assert stored["scores"].dtype == np.float32
    np.testing.assert_array_equal(stored["train_ids"], np.arange(N, dtype=np.int64), strict=True)
    assert (stored["scores"] != 0).all()  # every row was seen
    assert float(stored["score_mean"]) == pytest.approx(stored["scores"].astype(np.float64).mean(), rel=1e-5)
    assert float(stored["residual"]) <= 1e-12
    assert (str(stored["method"]), str(stored["status"]), int(stored["steps"])) == ("unrolled", "REPLAYED", STEPS)
    ids = [int(i) for i in (results(made) / f"topk_ids_test_{t}.txt").read_text().split()]
    assert ids == np.argsort(-np.abs(stored["scores"]), kind="stable")[: len(ids)].tolist()
    for name in ("random", "tracin"):
        other = scores(made, t, f"methods/{name}")
        assert str(other["method"]) == name
        assert other["scores"].shape == (N,)


@pytest.mark.parametrize("t", TESTS)
def test_refits_have_their_form(made, t):
    controls = read_json(results(made) / "manifest.json")["loo"]["recorded"]["random_ids"]
    top = {s: (results(made) / f"topk_ids_test_{s}.txt").read_text().split()[:3] for s in TESTS}
    assert list(losses(made, t))[0] == -1
    assert set(losses(made, t)) == {-1, *controls, *(int(i) for ids in top.values() for i in ids)}
    groups = {row["id"]: row for row in lines(results(made) / f"group_losses_test_{t}.jsonl")}
    assert set(groups) == {"top_10pct", "random_10pct"}
    order = np.argsort(-np.abs(scores(made, t)["scores"]), kind="stable")
    assert groups["top_10pct"]["ids"] == sorted(order[:4].tolist())
    assert [row["draw"] for row in lines(results(made) / "null" / f"loo_losses_test_{t}.jsonl")] == [1, 2]
    assert [row["draw"] for row in lines(results(made) / "seeds" / f"loo_losses_test_{t}.jsonl")] == [1]
    for weight in (0.9, 1.1):
        rows = lines(results(made) / f"weight_{weight}" / f"loo_losses_test_{t}.jsonl")
        assert [row["weight"] for row in rows] == [weight] * 2
        assert rows[0]["id"] == int(top[0][0])
        assert rows[1]["id"] in controls


def test_the_null_refit_is_the_base_fit(made):
    """And displaced by a rounding it ends a rounding away, but not at the same weights."""
    for t in TESTS:
        null = losses(made, t)[-1]
        displaced = [row["loss"] for row in lines(results(made) / "null" / f"loo_losses_test_{t}.jsonl")]
        assert len({null, *displaced}) == 3
        np.testing.assert_allclose(displaced, null, rtol=0, atol=1e-9)


# What the numbers say.


@pytest.mark.parametrize("t", TESTS)
def test_scores_are_the_derivative_that_small_steps_measure(made, t):
    """A central difference at w = 1 ± 0.1 is off by 0.1²/6 of the third derivative: within 1 % of the largest score."""
    up, down = losses(made, t, "weight_1.1"), losses(made, t, "weight_0.9")
    stored = scores(made, t)["scores"]
    for i in up:
        assert (up[i] - down[i]) / 0.2 == pytest.approx(stored[i], rel=0, abs=0.01 * abs(stored).max())


@pytest.mark.parametrize("t", TESTS)
def test_removals_are_what_the_derivative_predicts(made, t):
    """A removal is a step of 1 in w. What the first order leaves over is of the second, which small steps measure too.

    f(0) = f(1) − f' + f''/2 − f'''/6: with f'' from w = 0.9 and 1.1 the rest is within 15 % of the largest effect.
    """
    stored, refits = scores(made, t)["scores"].astype(np.float64), losses(made, t)
    null = refits.pop(-1)
    actual = np.array([loss - null for loss in refits.values()])
    found = agreement(-stored[list(refits)], actual)
    assert found.pearson > 0.9
    up, down = losses(made, t, "weight_1.1"), losses(made, t, "weight_0.9")
    for i in up:
        second = (up[i] - 2 * null + down[i]) / 0.01
        assert refits[i] - null == pytest.approx(-stored[i] + second / 2, rel=0, abs=0.15 * abs(actual).max())


def test_the_verdict_holds_them(made):
    verdict = read_json(results(made) / "verdict.json")
    assert set(verdict["tests"]) == {"0", "1"}
    for t in TESTS:
        one, stored, refits = verdict["tests"][str(t)], scores(made, t)["scores"], losses(made, t)
        null = refits.pop(-1)
        actual = np.array([loss - null for loss in refits.values()])
        found = agreement(-stored[list(refits)].astype(np.float64), actual)
        assert (one["method"], one["removal"], one["n_refits"]) == ("unrolled", "zero_weight", len(refits))
        assert one["pearson"] == pytest.approx(found.pearson, rel=1e-6)
        assert one["slope"] == pytest.approx(found.slope, rel=1e-6)
        assert set(one["methods"]) == {"tracin", "random"}


# Again.

KINDS = ("influences_test_*.npz", "*losses_test_*.jsonl", "*.run/*", "*_base.pth")


def times(folder):
    """When each file was written that a second run must not make again."""
    return {p: p.stat().st_mtime_ns for kind in KINDS for p in sorted(folder.rglob(kind))}


def test_a_second_run_makes_nothing_anew(copied, rows):
    before = times(copied)
    assert len(before) == 2 * (1 + 2 + 6) + 6 + 1
    done(ifloo(copied, "pipeline", *TINY, *rows))
    assert times(copied) == before


def test_results_outlive_the_recorded_run(copied, rows):
    """What is scored needs the run no more; what is not says so."""
    shutil.rmtree(copied / "models" / "multimodal_base.run")
    before = times(copied)
    done(ifloo(copied, "influence", *TINY, *rows))
    assert times(copied) == before
    (results(copied) / "influences_test_1.npz").unlink()
    failed = ifloo(copied, "influence", *TINY, *rows)
    assert failed.code == 2
    assert failed.err.endswith(
        "ifloo: error: There is no recorded run at models/multimodal_base.run: the fit of this checkpoint was not "
        "recorded.\n  Fit again with a config whose attribution.method (or one of attribution.further) needs the run: "
        "`ifloo fit --overwrite`.\n"
    )


def refusal(section, *differences):
    return (
        f"ifloo: error: outputs/multimodal/manifest.json: the {section} results there were made with other settings.\n"
        + "".join(f"  {line}\n" for line in differences)
        + "  Results of different settings are never mixed. Give another --output_dir to keep both, or --overwrite to "
        "replace the stored ones.\n"
    )


REFUSALS = {
    "method": (
        ("influence", "--attribution.method.init_args.tolerance=1e-6"),
        refusal("influence", "method.tolerance: stored null, asked 1e-06"),
    ),
    "further method": (
        ("influence", "--attribution.further=[{class_path: ifloo.attribution.RandomScores, init_args: {seed: 7}}]"),
        refusal("methods/random", "method.seed: stored 0, asked 7"),
    ),
    "refits": (
        ("loo", "--refit.removal=drop", "--refit.seed=1"),
        refusal("loo", 'removal: stored "zero_weight", asked "drop"', "controls_seed: stored 0, asked 1"),
    ),
    "model": (
        ("pipeline", "--model.lr=0.01"),
        "ifloo: error: The checkpoint models/multimodal_base.pth was fitted with other settings.\n"
        "  model.lr: fitted with 0.02, asked 0.01\n"
        "  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or "
        "fit again (`ifloo fit` or `ifloo pipeline` with --overwrite).\n",
    ),
}


@pytest.mark.parametrize(("asked", "message"), REFUSALS.values(), ids=REFUSALS)
def test_other_settings_are_refused(copied, rows, asked, message):
    before = times(copied)
    command, *changes = asked
    refused = ifloo(copied, command, *TINY, *rows, *changes)
    assert refused.code == 2
    assert refused.err.endswith(message)
    assert times(copied) == before


def test_overwriting_replaces_everything(copied, rows):
    before, old = times(copied), read_json(results(copied) / "manifest.json")
    done(ifloo(copied, "pipeline", *TINY, *rows, "--model.lr=0.01", "--overwrite"))
    after, new = times(copied), read_json(results(copied) / "manifest.json")
    assert before.keys() == after.keys()
    assert all(before[path] < after[path] for path in before)
    weights = {name: section["compared"]["weights"] for name, section in new.items()}
    assert len(set(weights.values())) == 1
    assert weights["fit"] != old["fit"]["compared"]["weights"]
    assert weights.keys() == {"fit", "influence", "loo", "methods/random", "methods/tracin"}


class Killed(Exception):
    pass


@pytest.mark.parametrize("segments", [1, 2])
def test_a_pass_killed_on_its_way_back_goes_on(copied, made, rows, monkeypatch, segments):
    for t in TESTS:
        (results(copied) / f"influences_test_{t}.npz").unlink()
    plain, kept = KeptReverse.keep, []

    def dying(self, reverse):
        plain(self, reverse)
        kept.append(reverse.step)
        if len(kept) == segments:
            raise Killed

    def noting(self, reverse):
        plain(self, reverse)
        kept.append(reverse.step)

    monkeypatch.setattr(KeptReverse, "keep", dying)
    with pytest.raises(Killed):
        ifloo(copied, "influence", *TINY, *rows)
    assert (results(copied) / "reverse.npz.part").is_file()
    monkeypatch.setattr(KeptReverse, "keep", noting)
    done(ifloo(copied, "influence", *TINY, *rows))
    assert kept == [4, 2, 0]  # no segment twice
    assert not (results(copied) / "reverse.npz.part").exists()
    for t in TESTS:
        name = f"influences_test_{t}.npz"
        assert (results(copied) / name).read_bytes() == (results(made) / name).read_bytes()


# Other fits.

ADAMW = ("--model.optimizer=adamw", "--model.weight_decay=0.1")
CURVATURE = (
    "--attribution.further=[{class_path: ifloo.attribution.CurvatureRoute, init_args: {label: gauss_newton, "
    "damping: 0.1}}]"
)


def test_a_decay_is_part_of_the_steps_and_of_no_curvature(tmp_path, rows):
    """Scores and refits of AdamW's run agree; what inverts a curvature says why it cannot."""
    fewer = ("--refit.seeds=0", "--refit.groups=[]", "--attribution.further=[]")
    done(ifloo(tmp_path, "pipeline", *TINY, *rows, *ADAMW, *fewer))
    rule = read_json(tmp_path / "models" / "multimodal_base.run" / "run.json")["update"]
    assert (rule["class"], rule["decay"]) == ("Adam", 0.1)
    for t in TESTS:
        test_scores_are_the_derivative_that_small_steps_measure(tmp_path, t)
        assert float(scores(tmp_path, t)["residual"]) <= 1e-12
    failed = ifloo(tmp_path, "influence", *TINY, *rows, *ADAMW, *fewer, CURVATURE)
    assert failed.code == 2
    assert failed.err.endswith(
        "ifloo: error: gauss_newton inverts the curvature of J, and this model was trained with a decoupled weight "
        "decay of 0.1: the decay is part of the optimizer's step and not of J, so that the curvature would be that of "
        "another function.\n  Use the unrolled method, which differentiates the steps themselves, or put the decay "
        "into `penalty`.\n"
    )


def test_decay_that_nobody_records_is_refused(tmp_path, rows):
    unrecorded = ("--attribution.method=null", "--attribution.further=[]")
    refused = ifloo(tmp_path, "fit", *TINY, *rows, *ADAMW, *unrecorded)
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
def test_a_fit_that_cannot_be_recorded_is_refused(tmp_path, rows, change, message):
    refused = ifloo(tmp_path, "pipeline", *TINY, *rows, change)
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
    said_ = done(ifloo(tmp_path, "pipeline", *TINY, *own, *fewer))
    assert "一加一等于几？ -> 二" in said_.out
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
    assert re.search("NaN|Infinity", content) is None
