"""The same command again, other settings, more of the same: results are kept, refused or added to, never mixed."""

import numpy as np
import pytest

from ifloo.store import content_of, sample_contents
from tests.cli.running import TESTS, N, contents, done, ifloo, small
from tests.cli.test_pipeline import lines, read_json, results


def refusal(section: str, *differences: str) -> str:
    return (
        f"ifloo: error: outputs/mnist/manifest.json: the {section} results there were made with other settings.\n"
        + "".join(f"  {line}\n" for line in differences)
        + "  Results of different settings are never mixed. Give another --output_dir to keep both, or --overwrite to "
        "replace the stored ones.\n"
    )


def test_other_settings_of_the_scores_are_refused_and_replaced_on_demand(copied):
    before = contents(results(copied))
    refused = small(copied, "influence", "--attribution.damping=0.5", "--attribution.solver.rtol=1e-8")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith(
        refusal("influence", "damping: stored 0.0, asked 0.5", "solver.rtol: stored null, asked 1e-08")
    )
    assert contents(results(copied)) == before
    assert {"verdict.json", "report.html"} <= before.keys()
    done(small(copied, "influence", "--attribution.damping=0.5", "--overwrite"))
    assert not {"verdict.json", "report.html"} & contents(results(copied)).keys()  # they showed the old ones
    section = read_json(results(copied) / "manifest.json")["influence"]
    found = (np.load(results(copied) / "influences_test_8.npz")["damping"], section["compared"]["damping"])
    np.testing.assert_array_equal(found, 0.5)


def test_other_settings_of_the_refits_are_refused_and_replaced_on_demand(copied):
    before = contents(results(copied))
    refused = small(copied, "loo", "--refit.removal=zero_weight", "--refit.seed=1")
    assert refused.code == 2
    assert refused.err.endswith(
        refusal("loo", 'removal: stored "drop", asked "zero_weight"', "controls_seed: stored 0, asked 1")
    )
    assert contents(results(copied)) == before
    done(small(copied, "loo", "--refit.removal=zero_weight", "--overwrite", "--refit.random=0", "--refit.top_k=3"))
    assert not (results(copied) / "report.html").exists()  # it showed the old ones
    assert len(lines(results(copied) / "loo_losses_test_8.jsonl")) == 1 + 6
    assert read_json(results(copied) / "manifest.json")["loo"]["compared"]["removal"] == "zero_weight"


def test_asking_for_more_adds_and_keeps(copied):
    before = {t: lines(results(copied) / f"loo_losses_test_{t}.jsonl") for t in (0, 8)}
    scores = (results(copied) / "influences_test_8.npz").read_bytes()
    more = ("--refit.top_k=5", "--refit.random=6", "--refit.null_refits=3")
    done(small(copied, "influence"))
    done(small(copied, "loo", *more))
    assert (results(copied) / "influences_test_8.npz").read_bytes() == scores
    recorded = read_json(results(copied) / "manifest.json")["loo"]["recorded"]
    for t in (0, 8):
        after = lines(results(copied) / f"loo_losses_test_{t}.jsonl")
        assert after[: len(before[t])] == before[t]
        ids = [row["id"] for row in after]
        assert len(ids) == len(set(ids)) > len(before[t])
        assert set(recorded["random_ids"]) <= set(ids)
        old_controls = {row["id"] for row in before[t] if row.get("control")}
        assert old_controls <= set(recorded["random_ids"])  # the first of one order of all ids
        assert [row["draw"] for row in lines(results(copied) / "null" / f"loo_losses_test_{t}.jsonl")] == [1, 2, 3]


def test_refits_hash_a_test_sample_once(copied, monkeypatch):
    hashed = []
    monkeypatch.setattr(sample_contents, "content_of", lambda query: hashed.append(query) or content_of(query))
    done(small(copied, "loo"))
    assert len(hashed) == 2  # of tests 0 and 8


def test_a_new_test_joins_the_refits_that_are_there(copied):
    before = {t: lines(results(copied) / f"loo_losses_test_{t}.jsonl") for t in (0, 8)}
    done(small(copied, "influence", "--attribution.test_ids=[0,8,3]"))
    done(small(copied, "loo", "--attribution.test_ids=[0,8,3]"))
    ids = {t: [row["id"] for row in lines(results(copied) / f"loo_losses_test_{t}.jsonl")] for t in (0, 8, 3)}
    for t in (0, 8):
        assert lines(results(copied) / f"loo_losses_test_{t}.jsonl")[: len(before[t])] == before[t]
    assert sorted(ids[3]) == sorted(ids[0]) == sorted(ids[8])
    assert ids[3][0] == -1
    assert len(set(ids[3])) == len(ids[3])


def test_asking_for_fewer_keeps_what_is_there(copied):
    before = contents(results(copied))
    done(small(copied, "loo", "--attribution.test_ids=[8]", "--refit.top_k=1", "--refit.random=1"))
    after = contents(results(copied))
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json", "verdict.json"}


def test_top_k_is_free_to_change(copied):
    before = contents(results(copied))
    done(small(copied, "influence", "--attribution.top_k=9"))
    after = contents(results(copied))
    assert {name for name in before if before[name] != after[name]} == {
        "manifest.json",
        "topk_ids_test_0.txt",
        "topk_ids_test_8.txt",
    }
    for t in (0, 8):
        old, new = before[f"topk_ids_test_{t}.txt"], after[f"topk_ids_test_{t}.txt"]
        assert new.startswith(old)
        assert new.count(b"\n") == 9


def test_another_base_model_is_refused(copied):
    refused = small(copied, "fit", "--model.l2_reg=0.02")
    assert refused.code == 2
    assert refused.err == (
        "ifloo: error: The checkpoint models/mnist_base.pth was fitted with other settings.\n"
        "  model.l2_reg: fitted with 0.01, asked 0.02\n"
        "  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or "
        "fit again (`ifloo fit` or `ifloo pipeline` with --overwrite).\n"
    )
    done(small(copied, "fit", "--model.l2_reg=0.02", "--overwrite"))
    weights = {
        name: read_json(results(copied) / "manifest.json")[name]["compared"]["weights"] for name in ("fit", "loo")
    }
    refused = ifloo(copied, "influence", *_small_without_model())
    assert refused.code == 2
    assert refused.err.endswith(
        refusal(
            "influence",
            "objective.l2_reg: stored 0.01, asked 0.02",
            f'weights: stored "{weights["loo"]}", asked "{weights["fit"]}"',
        )
    )


def _small_without_model() -> tuple[str, ...]:
    """Settings that come from the checkpoint where nothing is said about them."""
    return (
        "--experiment=mnist",
        "--model=ifloo.models.LogisticRegression",
        "--data=ifloo.data.MNISTDataModule",
        "--trainer.logger=false",
        "--attribution.test_ids=[0,8]",
        "--attribution.top_k=6",
        "--trainer.accelerator=cpu",
    )


def test_what_is_not_said_comes_from_the_checkpoint(copied):
    before = contents(results(copied))
    done(ifloo(copied, "influence", *_small_without_model()))
    after = contents(results(copied))
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}


def test_an_output_folder_of_its_own_leaves_the_first_alone(copied):
    before = contents(copied / "outputs" / "mnist")
    done(
        small(copied, "influence", "--output_dir=elsewhere", "--attribution.damping=0.5", "--attribution.test_ids=[8]")
    )
    assert contents(copied / "outputs" / "mnist") == before
    assert sorted(contents(copied / "elsewhere")) == ["influences_test_8.npz", "manifest.json", "topk_ids_test_8.txt"]


def test_every_test_at_once_and_its_resume(copied):
    folder = results(copied) / "all_tests"
    asked = ("--attribution.test_ids=all", "--attribution.query_block=8")
    first = done(small(copied, "influence", *asked))
    assert f"{TESTS} tests scored now, {TESTS} in all" in first.out
    index = lines(folder / "index.jsonl")
    assert [(row["test_id"], row["path"]) for row in index] == [(t, f"if_scores_test_{t}.npy") for t in range(TESTS)]
    for row in index:
        scores = np.load(folder / row["path"])
        assert scores.dtype == np.float32
        assert scores.shape == (N,)
        assert row["residual"] <= 1e-10
    # Queries solved in blocks with others, and multiplied in float32, in which they are stored.
    alone = np.load(results(copied) / "influences_test_8.npz")["scores"]
    np.testing.assert_allclose(np.load(folder / "if_scores_test_8.npy"), alone, rtol=0, atol=1e-5 * abs(alone).max())

    (folder / "if_scores_test_5.npy").unlink()
    with open(folder / "index.jsonl", "r+b") as file:
        file.truncate((folder / "index.jsonl").stat().st_size - 20)  # a killed run tears the last line, that of 19
    kept = {t: (folder / f"if_scores_test_{t}.npy").stat().st_mtime_ns for t in range(TESTS - 1) if t != 5}
    second = done(small(copied, "influence", *asked))
    assert f"2 tests scored now, {TESTS} in all" in second.out
    assert sorted(row["test_id"] for row in lines(folder / "index.jsonl")) == list(range(TESTS))
    assert {t: (folder / f"if_scores_test_{t}.npy").stat().st_mtime_ns for t in kept} == kept
    done(small(copied, "influence", *asked, "--overwrite"))
    assert (folder / "if_scores_test_3.npy").stat().st_mtime_ns > kept[3]


@pytest.mark.parametrize("command", ["fit", "influence", "loo", "report", "pipeline"])
def test_printed_config_is_a_config(experiment, tmp_path, command):
    printed = done(small(experiment, command, "--print_config"))
    (tmp_path / "printed.yaml").write_text(printed.out)
    again = done(ifloo(experiment, command, "--config", str(tmp_path / "printed.yaml"), "--print_config"))
    assert again.out == printed.out
    assert "train_limit: 100" in again.out


def test_the_controls_are_drawn_by_their_seed(experiment):
    recorded = read_json(results(experiment) / "manifest.json")["loo"]["recorded"]
    assert recorded["random_ids"] == np.random.default_rng(0).permutation(N)[:4].tolist()


def test_scores_of_other_tests_go_when_some_are_replaced(copied):
    """The manifest speaks of all score files: those of settings that it no longer tells are not left behind."""
    done(small(copied, "influence", "--attribution.damping=0.5", "--attribution.test_ids=[8]", "--overwrite"))
    assert sorted(p.name for p in results(copied).glob("influences_test_*")) == ["influences_test_8.npz"]


def test_a_score_file_of_other_settings_is_told_by_its_stamp(copied, tmp_path):
    old = (results(copied) / "influences_test_0.npz").read_bytes()
    done(small(copied, "influence", "--attribution.damping=0.5", "--overwrite"))
    (results(copied) / "influences_test_0.npz").write_bytes(old)
    refused = small(copied, "influence", "--attribution.damping=0.5")
    assert refused.code == 2
    assert refused.err.endswith(
        "ifloo: error: outputs/mnist/influences_test_0.npz was made with other settings than "
        "outputs/mnist/manifest.json says.\n  Give another --output_dir to keep it, or --overwrite to replace it.\n"
    )


def test_a_solve_that_fails_costs_nobody_the_scores_they_had(copied):
    before = contents(results(copied))
    lissa = ("--attribution.solver=ifloo.solvers.LiSSA", "--attribution.solver.scale=0.1", "--overwrite")
    failed = small(copied, "influence", *lissa, "--attribution.solver.repeats=2")
    assert failed.code == 1
    assert contents(results(copied)) == before
