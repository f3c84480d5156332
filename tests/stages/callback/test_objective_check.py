"""The callback scores what was trained, or says in the table by how much a training step differs, or is off."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ifloo.attribution import GradientDot
from ifloo.errors import InputError
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest, influences
from tests.objective.expected_shares import of_shuffles
from tests.stages.callback.fits import Stated, fitted, loader, samples
from tests.stages.callback.test_moment import Net, close, gradient_dots, stored

QUERIES = samples(2, seed=1)[:]
WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)


def objective(folder):
    return Manifest.at(folder / "influence" / "manifest.json").sections()["epoch_003"]["recorded"]["objective"]


def sorted_samples():
    x, y = samples(37)[:]
    order = y.argsort(stable=True)
    return TensorDataset(x[order], y[order])


class ByClass(Net):
    """Weighs its classes."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.lin(batch[0]), batch[1], weight=WEIGHTS)


@pytest.mark.parametrize("epochs", [None, 1])
def test_class_weights_are_found_in_sorted_data(tmp_path, capsys, epochs):
    module, data = ByClass(), sorted_samples()
    callback = InfluenceCallback(QUERIES, method=GradientDot(), every_n_epochs=epochs)
    fitted(module, loader(data), [callback], tmp_path)
    c = of_shuffles(WEIGHTS[data.tensors[1]], 8)
    expected = gradient_dots(module, loader(data)) * (len(c) * c).numpy()
    assert close(stored(tmp_path), expected)
    found = objective(tmp_path)
    assert found["outcome"] == "weighted"
    assert found["shares"]["batches"] == "in expectation over shuffled batches of 8"
    assert found["shares"]["largest_n_c"] == pytest.approx(float(37 * c.max()), rel=1e-10)
    for t in (0, 1):
        one = influences.load(tmp_path / f"influence/epoch_003/influences_test_{t}.npz")
        np.testing.assert_allclose(one.factors, (37 * c).numpy(), rtol=1e-9)
        assert "J = sum_i c_i l_i + R weighs its samples by the value of item 1" in one.definitions
    assert "Objective: a training step weighs its samples by " in capsys.readouterr().out


def test_an_equal_step_is_one_line(tmp_path, capsys):
    fitted(Net(), loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert objective(tmp_path)["outcome"] == "equal"
    assert "Objective: a training step has the gradient of J (relative difference " in capsys.readouterr().out


def test_dropout_is_the_difference_of_the_evaluation_mode(tmp_path, capsys):
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    found = objective(tmp_path)
    assert (found["outcome"], found["causes"]) == ("evaluation objective", ["dropout"])
    line = f"Objective: {found['text']}."
    assert line.startswith("Objective: scores are of the evaluation-mode objective; the gradient of a training step ")
    assert line in capsys.readouterr().out


class Random(Net):
    """Draws noise in every mode."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + torch.randn_like(batch[0]), batch[1]), batch_idx)


def test_a_random_loss_is_named_as_such(tmp_path, caplog):
    fitted(Random(), loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    (text,) = [text for text in caplog.messages if text.startswith("InfluenceCallback is off for this fit: ")]
    assert "The loss of a sample differs at two calls on the same batch" in text


class Mixed(Net):
    """Adds a loss across the batch."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.lin(batch[0]).mean(0).square().sum()


def test_an_unexplained_difference_turns_the_callback_off_before_the_first_step(tmp_path, caplog):
    fitted(Mixed(), loader(), [InfluenceCallback(QUERIES, method=GradientDot(), every_n_epochs=1)], tmp_path)
    (text,) = [text for text in caplog.messages if text.startswith("InfluenceCallback is off for this fit: ")]
    assert "J is not what was trained" in text
    assert text.endswith("Scores of J as it is: accept_objective=True; every output then carries this difference.")
    assert not (tmp_path / "influence").exists()
    with pytest.raises(InputError, match="J is not what was trained"):
        fitted(Mixed(), loader(), [InfluenceCallback(QUERIES, strict=True)], tmp_path)


def test_an_accepted_difference_stands_in_table_and_manifest(tmp_path, capsys):
    callback = InfluenceCallback(QUERIES, method=GradientDot(), accept_objective=True)
    module = Mixed()
    fitted(module, loader(), [callback], tmp_path)
    found = objective(tmp_path)
    assert (found["outcome"], found["accepted"]) == ("unexplained", True)
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("Objective: "))
    assert line.startswith("Objective: J is not what was trained: the gradient of a training step differs by ")
    assert "accepted by `accept_objective`" in line
    assert close(stored(tmp_path), gradient_dots(module, loader()))


def test_hooks_on_gradients_of_the_users_weights_are_seen(tmp_path, caplog):
    module = Net()
    module.lin.weight.register_hook(lambda g: g * torch.tensor([[1.0], [0.0], [1.0]], dtype=g.dtype))
    before = module.lin.weight[1].clone()
    fitted(module, loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert torch.equal(module.lin.weight[1], before)  # the hooks of the fit stay
    (text,) = [text for text in caplog.messages if text.startswith("InfluenceCallback is off for this fit: ")]
    assert "gradient masks (hooks on weights)" in text
    assert "--" not in text


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_fit_in_order_weighs_its_last_batch_as_the_others_and_no_row_that_it_left_out(tmp_path, drop_last, capsys):
    """37 rows in batches of 8: the last one has 5 rows, whose weight is 8/5 of others; or it is not trained on."""
    module = Net()
    data = loader(shuffle=False, drop_last=drop_last)
    fitted(module, data, [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    c = torch.tensor([1 / 4 / 8] * 32 + [0.0] * 5 if drop_last else [1 / 5 / 8] * 32 + [1 / 5 / 5] * 5)
    found = stored(tmp_path)
    assert close(found, gradient_dots(module, data) * (37 * c).numpy())
    text = objective(tmp_path)["text"]
    definitions = influences.load(tmp_path / "influence/epoch_003/influences_test_0.npz").definitions
    assert "J = sum_i c_i l_i + R weighs its samples as does the mean over the same " in definitions
    if drop_last:
        assert not found[:, 32:].any()
        assert "the same 4 batches of 8 in each epoch" in text
        assert "5 of 37 samples have c_i = 0 and the score 0" in text
    else:
        assert "the same 5 batches of 8 in each epoch, the smallest of 5, n c_i from 0.925 to 1.48" in text
    assert text in capsys.readouterr().out
