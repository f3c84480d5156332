"""Samples that a training step passes over have c_i = 0 and the score 0, though their own loss is 0/0."""

import pytest
import torch
from torch import Tensor

from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.gallery.dense import Dense, off, singles
from tests.practice import passed_over
from tests.practice.base import IN_FILES, Project

PROJECTS = {
    "class": (passed_over.ClassLeftOut, passed_over.AllClasses),
    "rare class": (passed_over.ClassLeftOut, passed_over.RareClass),
    "class, one by one": (passed_over.TensorsOfValues, passed_over.AllClasses),
    "texts": (passed_over.Masked, passed_over.Texts),
}


def weights(project: Project) -> Tensor:
    y = project.data.train_dataloader().dataset.tensors[1]
    return passed_over.WEIGHTS[y] if y.ndim == 1 else (y != -100).sum(1).double()


def truth(project: Project, damping: float = 0.0) -> Tensor:
    """Returns the scores of J over the samples that have a weight, and 0 for the others."""
    a = weights(project)
    every = singles(project.data.train_dataloader())
    dense = Dense(
        project.model, [one for one, w in zip(every, a, strict=True) if w], factors=a[a > 0] * (a > 0).sum() / a.sum()
    )
    found = torch.zeros(1, len(a), dtype=torch.float64)
    found[:, a > 0] = dense.scores(project.tests(), damping)
    return found


@pytest.mark.parametrize(("net", "data"), PROJECTS.values(), ids=PROJECTS)
def test_samples_that_are_passed_over_score_zero(net, data, tmp_path):
    project = Project.trained(tmp_path, net, data)
    done = project.influence()
    assert off(project.scores(done), truth(project)) <= IN_FILES
    assert bool((project.scores(done)[:, weights(project) == 0] == 0).all())
    none, n = int((weights(project) == 0).sum()), len(weights(project))
    assert f"{none} of {n} samples have c_i = 0 and the score 0" in done.err


@pytest.mark.parametrize(("net", "data"), PROJECTS.values(), ids=PROJECTS)
def test_the_callback_passes_them_over_too(net, data, tmp_path):
    callback = InfluenceCallback(data().val_dataloader(), num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, net, data, callbacks=[callback])
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    assert off(torch.as_tensor(stored.scores)[None], truth(project, stored.damping)) <= IN_FILES
