"""Flipped labels through the command line: found, counted, drawn, and never taken for the labels as they were."""

import numpy as np
import pytest

from ifloo.data import MNISTDataModule
from tests.cli.running import N, contents, done, small
from tests.cli.test_pipeline import read_json, results

FLIPPED = ("--data.corrupt=0.1", "--attribution.self_influence=true", "--attribution.test_ids=[8]")


@pytest.mark.slow
def test_one_command_says_how_many_each_ranking_finds(tmp_path):
    said = done(small(tmp_path, "pipeline", *FLIPPED)).out
    data = MNISTDataModule(source="embedded", train_limit=N, corrupt=0.1)
    data.setup()
    found = read_json(results(tmp_path) / "verdict.json")["mislabels"]
    with np.load(results(tmp_path) / "self_influence.npz", allow_pickle=False) as stored:
        for name in ("self_influence", "last_layer", "left_out_loss", "loss"):
            first = stored["train_ids"][np.argsort(-stored[name], kind="stable")[:10]]
            assert found.pop(name) == len(set(first.tolist()) & set(data.corrupted_ids))
        np.testing.assert_array_equal(found.pop("residual"), stored["residual"])
    assert found == {"corrupted": 10, "looked_at": 10, "chance": 1.0}
    assert "\n10 training answers are wrong on purpose; among the 10 rows (10 %) of largest\n  self-influence  " in said
    assert (results(tmp_path) / "figs" / "label_errors.png").read_bytes().startswith(b"\x89PNG")
    loader = read_json(results(tmp_path) / "manifest.json")["influence"]["compared"]["loader"]
    assert (loader["corrupt"], loader["corrupt_seed"]) == (0.1, 0)


def test_a_model_of_other_labels_is_refused(copied):
    before = contents(copied)
    outcome = small(copied, "influence", *FLIPPED)
    assert outcome.code == 2
    assert "  data.corrupt: fitted with 0.0, asked 0.1\n" in outcome.err
    assert contents(copied) == before
