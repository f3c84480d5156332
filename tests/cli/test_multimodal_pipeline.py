"""The whole pipeline on a few image-text rows: a recorded fit, its derivative, refits, and what is kept of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ifloo.agreement import agreement
from ifloo.stages.scores.reverse_checkpoint import ReverseCheckpointFile
from tests.cli.image_text import STEPS, TESTS, TINY, N, assert_derivative, losses, results, scores
from tests.cli.running import contents, done, ifloo
from tests.cli.test_pipeline import lines, read_json


@pytest.fixture
def made(image_text):
    return image_text


@pytest.fixture
def rows(image_text_rows):
    return image_text_rows


@pytest.fixture
def copied(image_text, tmp_path):
    return Path(shutil.copytree(image_text, tmp_path / "copy"))


# What is there.


def test_every_file_is_there_and_no_other(made):
    per_test = (
        *("influences_test_{}.npz", "topk_ids_test_{}.txt", "group_losses_test_{}.jsonl", "loo_losses_test_{}.jsonl"),
        *(f"{kind}/loo_losses_test_{{}}.jsonl" for kind in ("null", "seeds", "weight_0.9", "weight_1.1")),
        *(f"methods/{name}/influences_test_{{}}.npz" for name in ("random", "tracin")),
        *(f"figs/{name}_test_{{}}.png" for name in ("influence_distribution", "influence_vs_loo", "gallery")),
        "figs/methods_comparison_test_{}.png",
    )
    run = ("run.json", "steps.npz", *(f"state_{k:07d}.npz" for k in (0, 2, 4, 6)))
    expected = {"models/multimodal_base.pth", *(f"models/multimodal_base.run/{name}" for name in run)}
    expected |= {f"outputs/multimodal/{name.format(t)}" for name in per_test for t in TESTS}
    expected |= {f"outputs/multimodal/{name}" for name in ("manifest.json", "verdict.json", "report.html")}
    assert {name for name in contents(made) if not name.startswith("lightning_logs/")} == expected


@pytest.mark.parametrize("t", TESTS)
def test_scores_and_top_ids_have_their_form(made, t):
    stored = scores(made, t)
    assert stored["scores"].dtype == np.float32
    np.testing.assert_array_equal(stored["train_ids"], np.arange(N, dtype=np.int64), strict=True)
    assert (np.abs(stored["scores"]) > 1e-9 * np.abs(stored["scores"]).max()).all()  # every row was seen
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
    assert next(iter(losses(made, t))) == -1
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
    assert_derivative(made, t)


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
        "recorded.\n  Fit again with a config whose attribution.method (or one of attribution.compare_with) needs the "
        "run: `ifloo fit --overwrite`.\n"
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
        (
            "influence",
            "--attribution.compare_with=[{class_path: ifloo.attribution.RandomScores, init_args: {seed: 7}}]",
        ),
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


class KilledError(BaseException):  # as a signal is: no error of any code
    pass


@pytest.mark.parametrize("segments", [1, 2])
def test_a_pass_killed_on_its_way_back_goes_on(copied, made, rows, monkeypatch, segments):
    for t in TESTS:
        (results(copied) / f"influences_test_{t}.npz").unlink()
    plain, kept = ReverseCheckpointFile.keep, []

    def dying(self, reverse):
        plain(self, reverse)
        kept.append(reverse.step)
        if len(kept) == segments:
            raise KilledError

    def noting(self, reverse):
        plain(self, reverse)
        kept.append(reverse.step)

    monkeypatch.setattr(ReverseCheckpointFile, "keep", dying)
    with pytest.raises(KilledError):
        ifloo(copied, "influence", *TINY, *rows)
    assert (results(copied) / "reverse.npz.part").is_file()
    monkeypatch.setattr(ReverseCheckpointFile, "keep", noting)
    done(ifloo(copied, "influence", *TINY, *rows))
    assert kept == [4, 2, 0]  # no segment twice
    assert not (results(copied) / "reverse.npz.part").exists()
    for t in TESTS:
        name = f"influences_test_{t}.npz"
        assert (results(copied) / name).read_bytes() == (results(made) / name).read_bytes()
