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
    w = WEIGHTS[data.tensors[1]]
    expected = gradient_dots(module, loader(data)) * (len(w) * w / w.sum()).numpy()
    assert close(stored(tmp_path), expected)
    assert objective(tmp_path)["outcome"] == "weighted"
    for t in (0, 1):
        one = influences.load(tmp_path / f"influence/epoch_003/influences_test_{t}.npz")
        np.testing.assert_allclose(one.factors, (len(w) * w / w.sum()).numpy(), rtol=1e-9)
        assert "J = sum_i c_i l_i + R weighs its samples as a training step does, by the value of item 1" in (
            one.definitions
        )
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
