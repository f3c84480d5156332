"""Projects in the style of public ones, unchanged: their scores are those of plain autograd in 64 bits."""

import pytest
import torch

from ifloo.stages import AttributionSettings, InfluencePredictor
from ifloo.store import influences
from tests.gallery.dense import off
from tests.gallery.doubles import doubled_model
from tests.gallery.exhibits import EXHIBITS, IN_32_BITS, QUERIES, Exhibit


def stored(project):
    """Returns the callback's scores, `[m, n]`, their damping, and the text of its manifest."""
    folder = project.folder / "influence"
    files = [path for t in project.test_ids for path in folder.rglob(f"influences_test_{t}.npz")]
    assert len(files) == QUERIES, f"{len(files)} files of scores"
    parts = [influences.load(path) for path in files]
    manifest = next(folder.rglob("manifest.json")).read_text()
    return torch.stack([torch.as_tensor(one.scores).double() for one in parts]), parts[0].damping, manifest


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_callback_scores_by_its_defaults(name, trained):
    project = trained(name, scored=True)
    scores, damping, manifest = stored(project)
    assert torch.isfinite(scores).all()
    assert scores.abs().max() > 0
    if project.exhibit.clean is not None:
        return  # scores of augmented samples: `test_the_predictor...` holds them against truth without augmentation
    if project.exhibit.logits is not None:
        assert f'"{project.exhibit.logits}.' in manifest
        dense = project.dense([f"{project.exhibit.logits}.*"])
        truth = dense.scores(project.tests(), damping)
    else:
        truth = project.dense(["*"]).dots(project.tests())
    assert off(scores, truth) <= IN_32_BITS


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_predictor_gives_what_plain_autograd_gives(name, trained):
    project = trained(name)
    exhibit = project.exhibit
    settings = AttributionSettings(damping=exhibit.damping, parameters=list(exhibit.parameters))
    truth = project.dense(exhibit.parameters).scores(project.tests(), exhibit.damping)
    for k, query in enumerate(project.tests()):
        predictor = InfluencePredictor(doubled_model(project.model), project.loader(), settings, queries=query)
        predictor.build_engine()
        assert off(predictor.engine.scores(query).value, truth[k : k + 1]) <= exhibit.rounding


@pytest.mark.slow
def test_the_whole_residual_network_is_scored_by_the_callback(tmp_path):
    """Eleven million weights, images of 32 by 32, augmentation: scores through the last layer, by the defaults."""
    whole = Exhibit("images", lambda p: (p.LitResNet(), p.PicturesData(n=24, side=32)), "model.fc")
    project = whole.trained(tmp_path, scored=True, max_epochs=1)
    scores, _, manifest = stored(project)
    assert '"model.fc.' in manifest
    assert scores.shape == (QUERIES, 24)
    assert torch.isfinite(scores).all()
