"""A pipeline on a hundred digits: every file it leaves, in the form others rely on, and every number in them again."""

import json
from pathlib import Path

import numpy as np
import pytest

from ifloo.agreement import agreement
from tests.cli.dense import Dense
from tests.cli.running import TESTS, N, contents, done, small

STATISTICS = ("pearson", "spearman", "slope", "intercept", "median_rel_err")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def results(folder: Path) -> Path:
    return folder / "outputs" / "mnist"


def test_every_file_is_there_and_no_other(experiment):
    per_test = ("influences_test_{}.npz", "topk_ids_test_{}.txt", "loo_losses_test_{}.jsonl")
    figures = ("influence_distribution", "influence_vs_loo", "most_influential")
    expected = {"models/mnist_base.pth"}
    expected |= {f"outputs/mnist/{name}" for name in ("manifest.json", "verdict.json", "report.html")}
    for t in (0, 8):
        expected |= {f"outputs/mnist/{name.format(t)}" for name in (*per_test, "null/loo_losses_test_{}.jsonl")}
        expected |= {f"outputs/mnist/figs/{name}_test_{t}.png" for name in figures}
    found = {name for name in contents(experiment) if not name.startswith("lightning_logs/")}
    assert found == expected
    logs = [p.name for p in (experiment / "lightning_logs" / "mnist").iterdir()]
    assert sum(name.endswith(".report") for name in logs) == 1
    for png in (results(experiment) / "figs").iterdir():
        assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"), png


@pytest.mark.parametrize("t", [0, 8])
def test_scores_and_top_ids_have_their_form(experiment, t):
    with np.load(results(experiment) / f"influences_test_{t}.npz", allow_pickle=False) as npz:
        stored = dict(npz)
    assert stored["scores"].dtype == np.float32
    assert stored["scores"].shape == (N,)
    np.testing.assert_array_equal(stored["train_ids"], np.arange(N, dtype=np.int64), strict=True)
    assert {"score_mean", "residual", "undamped_residual", "error_bound", "method", "definitions"} <= stored.keys()
    # The mean is that of the scores before they were rounded to float32.
    assert float(stored["score_mean"]) == pytest.approx(stored["scores"].astype(np.float64).mean(), rel=1e-5)
    assert float(stored["residual"]) <= 1e-10
    text = (results(experiment) / f"topk_ids_test_{t}.txt").read_text()
    order = np.argsort(-np.abs(stored["scores"]), kind="stable")[:6]
    assert text == "".join(f"{i}\n" for i in order)


@pytest.mark.parametrize("t", [0, 8])
def test_rows_of_refits_have_their_form(experiment, t):
    rows = lines(results(experiment) / f"loo_losses_test_{t}.jsonl")
    assert rows[0]["id"] == -1
    assert rows[0].keys() == {"id", "loss", "grad_norm", "seconds", "steps", "objective"}
    top = {u: (results(experiment) / f"topk_ids_test_{u}.txt").read_text().split()[:4] for u in (0, 8)}
    in_turn = [int(i) for pair in zip(top[0], top[8], strict=True) for i in pair]
    controls = read_json(results(experiment) / "manifest.json")["loo"]["recorded"]["random_ids"]
    assert len(set(controls)) == 4
    assert [row["id"] for row in rows[1:]] == list(dict.fromkeys([*in_turn, *controls]))
    for row in rows[1:]:
        assert {"delta_error", "flagged", "control"} <= row.keys()
        assert row["control"] == (row["id"] in controls)
        assert row["grad_norm"] <= 1e-10
        assert row["seconds"] > 0


def test_one_refit_serves_every_test(experiment):
    first, second = (lines(results(experiment) / f"loo_losses_test_{t}.jsonl") for t in (0, 8))
    shared = ("id", "grad_norm", "seconds", "steps", "objective")  # of the refit, not of the test
    assert [[row[k] for k in shared] for row in first] == [[row[k] for k in shared] for row in second]
    assert all(a["loss"] != b["loss"] for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("t", [0, 8])
def test_the_verdict_is_what_the_files_say(experiment, t):
    stored = np.load(results(experiment) / f"influences_test_{t}.npz")
    base, *rows = lines(results(experiment) / f"loo_losses_test_{t}.jsonl")
    nulls = lines(results(experiment) / "null" / f"loo_losses_test_{t}.jsonl")
    ids = np.array([row["id"] for row in rows])
    predicted = -(stored["scores"][ids].astype(np.float64) - float(stored["score_mean"]))
    actual = np.array([row["loss"] - base["loss"] for row in rows])
    verdict = read_json(results(experiment) / "verdict.json")
    said = verdict["tests"][str(t)]
    assert verdict["definitions"].keys() >= {"predicted", "actual", "slope", "median_rel_err", "noise_floor"}

    slope, intercept = np.polyfit(predicted, actual, 1)
    floor = np.ptp([base["loss"], *(row["loss"] for row in nulls)])
    heard = np.abs(actual) > floor
    relative = np.median(np.abs(predicted - actual)[heard] / np.abs(actual)[heard])
    by_hand = {
        "n_refits": len(rows),
        "pearson": np.corrcoef(predicted, actual)[0, 1],
        "slope": slope,
        "intercept": intercept,
        "median_rel_err": relative,
        "noise_floor": floor,
        "worst_grad_norm": max(row["grad_norm"] for row in (base, *rows)),
        "worst_residual": float(stored["residual"]),
    }
    # The same formulas in another order of additions: 1e-9 of each is far above rounding, far below any mistake.
    assert {name: said[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-9, abs=1e-15)
    top = {int(i) for i in (results(experiment) / f"topk_ids_test_{t}.txt").read_text().split()[:4]}
    for name, chosen in (("top_k", [i in top for i in ids]), ("random", [row["control"] for row in rows])):
        expected = agreement(predicted[chosen], actual[chosen], noise_floor=floor)
        assert said[name]["n_refits"] == expected.n >= 4
        assert said[name]["slope"] == pytest.approx(expected.slope, rel=1e-9)
    for statistic in STATISTICS:
        low, high = said[f"{statistic}_ci"]
        assert low <= said[statistic] <= high
    assert said["removal"] == "drop"
    assert said["methods"] == {}


@pytest.mark.parametrize("t", [0, 8])
def test_refits_are_those_of_an_independent_solver(experiment, t):
    dense = Dense.of_digits(N, TESTS, l2=0.01)
    base, *rows = lines(results(experiment) / f"loo_losses_test_{t}.jsonl")
    W = dense.fit()
    assert base["loss"] == pytest.approx(dense.test_loss(W, t), abs=1e-8)
    for row in rows[:3] + rows[-2:]:
        truth = dense.test_loss(dense.fit(row["id"], "drop", W), t) - dense.test_loss(W, t)
        error = abs(row["loss"] - base["loss"] - truth)
        # The row's own certificate: ‖∇L_t‖ < 17 (‖x‖ < 12), two ‖∇J‖ <= 1e-10, over λ. Tighter in test_removal.py.
        assert error <= row["delta_error"] < 17 * 2e-10 / 0.01


def test_null_refits_really_move_and_agree(experiment):
    for t in (0, 8):
        base = lines(results(experiment) / f"loo_losses_test_{t}.jsonl")[0]
        nulls = lines(results(experiment) / "null" / f"loo_losses_test_{t}.jsonl")
        assert [(row["id"], row["draw"]) for row in nulls] == [(-1, 1), (-1, 2)]
        for row in nulls:
            assert row["displacement"] > 1e-3  # a removal moves the weights by about 0.1 here
            assert row["steps"] > 0
            assert row["grad_norm"] <= 1e-10
            assert row["loss"] == pytest.approx(base["loss"], abs=1e-8)


def test_the_manifest_says_what_everything_was_made_with(experiment):
    sections = read_json(results(experiment) / "manifest.json")
    assert sections.keys() == {"fit", "influence", "loo"}
    fit, influence, loo = (sections[name] for name in ("fit", "influence", "loo"))
    for section in (fit, influence, loo):
        assert section["compared"]["weights"] == fit["compared"]["weights"]
        assert section["compared"]["data"] == fit["compared"]["data"]
        assert section["compared"]["objective"].items() >= {"l2_reg": 0.01, "dtype": "float64"}.items()
        assert section["recorded"]["versions"].keys() == {"ifloo", "torch", "lightning", "numpy", "python"}
    assert fit["compared"]["seed"] == 0
    assert fit["recorded"]["source"] == "embedded"
    assert fit["recorded"]["source_reason"] == "asked for"
    assert fit["recorded"]["grad_norm"] <= 1e-10
    assert influence["compared"]["solver"].items() >= {"class": "Auto", "rtol": None}.items()
    assert influence["compared"]["queries"].keys() == {"0", "8"}
    assert influence["recorded"]["top_k"] == 6
    assert loo["compared"]["removal"] == "drop"
    assert loo["compared"]["init"] == "warm"
    assert loo["compared"]["seed"] == loo["compared"]["controls_seed"] == 0
    assert loo["recorded"]["test_ids"] == [0, 8]


def test_the_same_command_again_computes_nothing(copied):
    before = contents(copied)
    again = done(small(copied, "pipeline"))
    after = contents(copied)
    kept = [name for name in before if name.endswith((".npz", ".txt", ".jsonl", ".pth", ".png", "verdict.json"))]
    assert {name for name in kept if before[name] != after[name]} == set()
    assert "fit: J" not in again.out
    assert "test 8: predicted against actual change of its loss, removal drop" in again.out
