"""The projector and what stays of older reports: points are projected gradients of the samples they name."""

import html
import io
import re

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from ifloo.errors import InputError
from ifloo.report.tensorboard.gradient_projection import Sketch
from ifloo.store import influences
from tests.report.boards import (
    OTHER,
    SANITISED,
    SELF,
    Board,
    add_self_influence,
    add_test,
    gradients,
    truth,
    write,
)
from tests.verdict.results import CURVE, IDS, SCORES, N, T, stored


def test_points_are_projected_gradients_with_their_scores(results, logs):
    add_self_influence(results)
    source = gradients(dimensions=8)
    one, columns, tensors = Board(results, logs, gradients=source).projector()
    G, S = truth(source)
    # Gradients by two ways, then sums of eight of them in two orders: a few dozen roundings of numbers up to 4.
    np.testing.assert_allclose(tensors, (G @ S).detach().numpy(), rtol=0, atol=1e-13)
    assert list(columns) == ["id", "caption", f"score_test_{T}", f"percentile_test_{T}", "last_layer", "loss"]
    assert columns["id"] == [str(i) for i in IDS]
    assert columns["caption"] == [SANITISED[:79] + "…" if i == IDS[3] else f"class {i % 3}" for i in IDS.tolist()]
    for name, values in ((f"score_test_{T}", SCORES), ("last_layer", SELF["last_layer"]), ("loss", SELF["loss"])):
        # Written with six digits.
        np.testing.assert_allclose(np.array(columns[name], float), values, rtol=1e-5, atol=0)
    order = np.argsort(np.array(columns[f"percentile_test_{T}"], float))
    np.testing.assert_array_equal(order, np.argsort(SCORES))
    sheet = Image.open(io.BytesIO((logs / one.sprite.image_path).read_bytes()))
    side = one.sprite.single_image_dim[0]
    assert list(one.sprite.single_image_dim) == [8, 8]
    assert sheet.width // side == 7  # the square above forty

    def middle(k):
        return sheet.getpixel((k % 7 * side + side // 2, k // 7 * side + side // 2))

    for k, i in enumerate(IDS.tolist()):
        expected = 255 if k == 5 else 255 - i % 256  # dark on light; blank where there is no picture
        assert all(abs(value - expected) <= 1 for value in middle(k))  # 255 times its 255th, cut


def test_only_some_parameters_are_projected_where_only_they_are_attributed():
    source = gradients(parameters=("*bias",))
    found = source.projected(torch.arange(N), torch.from_numpy(IDS))
    G, _ = truth(gradients())
    assert (source.size, found.shape) == (3, (N, 64))
    # Three parameters in 64 dimensions: nothing is lost.
    np.testing.assert_allclose(
        (found @ found.T).numpy(), (G[:, -3:] @ G[:, -3:].T).detach().numpy(), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("size", "dimensions"), [(100, 8), (5, 8), (8, 8), (64, 3)])
def test_the_projection_puts_each_parameter_with_a_sign_into_one_sum(size, dimensions):
    S = Sketch(size, dimensions, 0)(torch.eye(size, dtype=torch.float64))
    assert S.shape == (size, dimensions)
    assert ((S != 0).sum(1) == 1).all()
    assert (S.abs().sum(1) == 1).all()
    held = S.abs().sum(0)
    assert held.max() - held.min() <= 1
    assert torch.equal(S, Sketch(size, dimensions, 0)(torch.eye(size, dtype=torch.float64)))


def test_the_projection_keeps_inner_products_on_average():
    x, y = torch.randn(2, 1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = [Sketch(50, 5, seed) for seed in range(4000)]
    found = np.array([float((one(x) * one(y)).sum()) for one in made])
    bound = float(x.norm() ** 2 * y.norm() ** 2 + (x * y).sum() ** 2) / 5
    assert found.var() <= bound
    # Four standard errors of a mean of 4,000.
    assert abs(found.mean() - float((x * y).sum())) <= 4 * (found.var() / 4000) ** 0.5


def test_too_many_samples_are_the_largest_and_others_at_random(results, logs, monkeypatch):
    monkeypatch.setattr("ifloo.report.tensorboard.projector.MOST_POINTS", 20)
    monkeypatch.setattr("ifloo.report.tensorboard.projector.LEAST_POINTS", 10)
    add_test(results)
    read = Board(results, logs, (T, OTHER), gradients=gradients())
    _, columns, tensors = read.projector()
    ids = [int(i) for i in columns["id"]]
    assert len(ids) == len(set(ids)) == len(tensors) == 20
    assert ids == sorted(ids)
    for scores in (SCORES, SCORES[::-1]):
        assert set(IDS[np.argsort(-np.abs(scores))[:5]].tolist()) <= set(ids)
    places = [IDS.tolist().index(i) for i in ids]
    np.testing.assert_allclose(np.array(columns[f"score_test_{T}"], float), SCORES[places], rtol=1e-5, atol=0)
    note = "20 of 40 training samples: the 5 of largest |s| of each test, and others drawn at random (seed 0)."
    assert note in html.unescape(read.text("0 guide"))


def test_data_that_carry_other_ids_are_refused_and_the_old_report_stays(results, logs):
    Board(results, logs, gradients=gradients())
    before = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    message = (
        "The training data hold ids [1, 8, 15, 22, 29] where the scores are of [0, 7, 14, 21, 28].\n"
        "  Give the data that were scored, or run `ifloo influence` again with --overwrite."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        write(results, logs, gradients=gradients(IDS + 1))
    assert {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()} == before


# One run folder.


def test_a_second_report_replaces_the_first_and_nothing_else(results, logs):
    with SummaryWriter(str(logs)) as theirs:
        theirs.add_scalar("loss", 1.0)
        theirs.add_embedding(torch.eye(3), tag="theirs")
    kept = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file() and path.suffix != ".pbtxt"}
    Board(results, logs, gradients=gradients())
    influences.save(results.layout.scores(T), stored(2 * SCORES, results.influence, residual_curve=CURVE))
    read = Board(results, logs, gradients=gradients())  # of the one event file there is
    assert read.histogram(f"3 scores/test {T}").max == 2 * SCORES.max()
    _, columns, _ = read.projector()
    np.testing.assert_allclose(np.array(columns[f"score_test_{T}"], float), 2 * SCORES, rtol=1e-5, atol=0)
    config = text_format.Parse((logs / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert sorted(one.tensor_name for one in config.embeddings) == ["sample_gradients:00000", "theirs:00000"]
    files = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    (events,) = logs.glob("*.report")
    ours = {f"00000/sample_gradients/{name}" for name in ("metadata.tsv", "tensors.tsv", "sprite.png")}
    assert files == {str(path.relative_to(logs)) for path in kept} | ours | {events.name, "projector_config.pbtxt"}
    assert {path: path.read_bytes() for path in kept} == kept
