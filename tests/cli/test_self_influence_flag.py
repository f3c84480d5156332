"""Self-influence through the command line: one file more, and nothing else changes."""

import numpy as np
import pytest

from tests.cli.running import N, contents, done, small
from tests.cli.test_pipeline import read_json, results


@pytest.mark.slow
def test_a_flag_writes_one_more_file(copied):
    before = contents(results(copied))
    said = done(small(copied, "influence", "--attribution.self_influence=true"))
    after = contents(results(copied))
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json", "self_influence.npz"}
    with np.load(results(copied) / "self_influence.npz", allow_pickle=False) as found:
        of_before = {"train_ids", "loss", "last_layer", "damping", "definitions", "settings"}
        exact = {"self_influence", "left_out_loss", "residual", "undamped_residual", "error_bound"}
        assert set(found.files) == of_before | exact
        np.testing.assert_array_equal(found["train_ids"], np.arange(N))
        assert (found["last_layer"] > 0).all()
        assert found["residual"] <= 1e-10  # the tolerance of the solver
        # Logistic regression is its last layer: what is apart is its damping, a tenth of λ, and 32 bits.
        ratio = found["last_layer"] / found["self_influence"]
        assert 1 / 1.1 - 1e-4 < ratio.min() < ratio.max() < 1 + 1e-4
    assert read_json(results(copied) / "manifest.json").keys() == {"fit", "influence", "loo", "self_influence"}
    assert said.out == done(small(copied, "influence")).out
    done(small(copied, "report"))
    assert "mislabels" not in read_json(results(copied) / "verdict.json")  # nobody knows which labels are wrong
