"""What a reader of the table must know of the scores stands below it, and in the manifest."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ifloo.attribution import GradientDot, InfluenceFunction
from ifloo.curvature import Hessian
from ifloo.objective import sequential
from ifloo.objective.seeded_draws import SeededDraws
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest
from tests.stages.callback.fits import Augmented, Stated, fitted, loader, samples
from tests.stages.callback.test_moment import Net, close, gradient_dots, stored

QUERIES = samples(2, seed=1)[:]
DRAW = re.compile(
    r"training samples are augmented \(two reads of training sample \d+ differ, by up to [\d.e-]+\): the scores are of "
    r"(one draw|the mean over 3 draws) of each, (under seeds of their own|which no seed repeats: .*)\."
)


def notes(folder):
    return Manifest.at(folder / "influence" / "manifest.json").sections()["epoch_003"]["recorded"]["notes"]


def test_scores_away_from_a_minimum_are_named_a_ranking(tmp_path, capsys):
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES)], tmp_path)
    recorded = Manifest.at(tmp_path / "influence" / "manifest.json").sections()["epoch_003"]["recorded"]
    (note,) = notes(tmp_path)
    ratio = recorded["grad_norm"] / recorded["sample_share"]
    differs = re.search(r"differs by (.*) \(dropout\)", recorded["objective"]["text"])[1]  # type: ignore[index]
    assert ratio > 0.1
    assert note == (
        f"these weights are not at a minimum of J: |grad J| is {ratio:.2g} times one sample's share. The scores rank "
        "the training samples; they predict no refit. Ruled out: a branch on self.training or trainer.training, "
        f"parameters that no optimizer has. Not ruled out: dropout (a training step differs by {differs}), a fit that "
        "ended early (train longer; `ifloo fit` by LBFGS ends at 1e-10). The scores are a ranking at best."
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"Note: {note}"


class Converged(Net):
    """Ends at the minimum of its loss with a penalty."""

    def training_step(self, batch, batch_idx):
        penalty = 0.1 * sum(p.square().sum() for p in self.parameters())
        return nn.functional.cross_entropy(self.lin(batch[0]), batch[1]) + penalty

    def configure_optimizers(self):
        return torch.optim.LBFGS(
            self.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-11, tolerance_change=0
        )


def test_at_a_minimum_there_is_no_note(tmp_path, capsys):
    fitted(Converged(), loader(batch_size=37), [InfluenceCallback(QUERIES)], tmp_path)
    assert notes(tmp_path) == []
    assert "Note" not in capsys.readouterr().out


def test_gradient_dot_products_claim_no_refit(tmp_path):
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert notes(tmp_path) == []


class OnTuples(Net):
    """Reads dicts."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["labels"]) if isinstance(batch, dict) else batch, batch_idx)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_augmented_samples_are_scored_at_one_draw_each(tmp_path, capsys, scale):
    data, module = Augmented(), OnTuples()
    data.scale = scale
    fitted(module, loader(data), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    found = notes(tmp_path)
    assert len(found) == bool(scale)
    for note in found:
        assert DRAW.fullmatch(note)[2].startswith("which no seed repeats")  # type: ignore[index]
    assert ("Note: " in capsys.readouterr().out) == bool(scale)


class Noisy(TensorDataset):
    """Adds noise to each read."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.randn(x.shape, dtype=x.dtype), y


def test_the_draw_is_that_of_the_row(tmp_path):
    data, module = Noisy(*samples(37)[:]), Net()
    fitted(module, loader(data), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    (note,) = notes(tmp_path)
    assert DRAW.fullmatch(note)[1] == "one draw"  # type: ignore[index]
    torch.manual_seed(99)  # the draws of the scores do not depend on the present state
    (batch,) = sequential(loader(data), 37)
    assert close(stored(tmp_path), gradient_dots(module, loader(TensorDataset(*batch))))


def test_the_mean_over_several_draws(tmp_path):
    data, module = Noisy(*samples(37)[:]), Net()
    fitted(module, loader(data), [InfluenceCallback(QUERIES, method=GradientDot(), draws=3)], tmp_path)
    (note,) = notes(tmp_path)
    assert DRAW.fullmatch(note)[1] == "the mean over 3 draws"  # type: ignore[index]
    each = []
    for draw in range(3):
        rows = SeededDraws(data, draw)
        x, y = (torch.stack(part) for part in zip(*(rows[i] for i in range(37)), strict=True))
        each.append(gradient_dots(module, loader(TensorDataset(x, y))))
    assert close(stored(tmp_path), sum(each) / 3)


def test_several_draws_are_scored_through_the_last_layer(tmp_path, caplog):
    data, module = Noisy(*samples(37)[:]), Net()
    fitted(module, loader(data), [InfluenceCallback(QUERIES, draws=3)], tmp_path)
    recorded = Manifest.at(tmp_path / "influence" / "manifest.json").sections()["epoch_003"]["compared"]
    assert recorded["method"]["label"] == "last_layer"
    assert "not through the last layer" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {},
            "Damping: 0.001 nats per squared parameter is added to the curvature of head.*, so that it is positive "
            "definite without a penalty. By default `ifloo influence` adds none, and scores through all parameters.",
        ),
        (
            {"damping": 0.02},
            "Damping: 0.02 nats per squared parameter is added to the curvature of head.*. By default `ifloo "
            "influence` adds none, and scores through all parameters.",
        ),
        (
            {"method": InfluenceFunction("mine", Hessian, 0.5)},
            "Damping: 0.5 nats per squared parameter is added to the curvature.",
        ),
        ({"damping": 0.0}, None),
        ({"method": GradientDot()}, None),
    ],
)
def test_the_damping_is_said_in_words(tmp_path, capsys, settings, line):
    fitted(Stated(), loader(), [InfluenceCallback(samples(2, seed=1)[:], **settings)], tmp_path)
    found = [text for text in capsys.readouterr().out.splitlines() if text.startswith("Damping")]
    assert found == ([] if line is None else [line])
