from dataclasses import fields, replace

import numpy as np
import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import StoredSelfInfluence, self_influence, write_npz

STORED = StoredSelfInfluence(
    train_ids=np.array([5, 2, 11]),
    loss=np.array([0.5, 0.25, 4.0]),
    last_layer=np.array([1e-3, 2e-3, 0.0]),
    tracin=np.array([0.0, 7.0, 1.0]),
    damping=1e-3,
    definitions="loss[i]: l_i, nats",
    settings="0" * 64,
    self_influence=np.array([1e-3, 3e-3, 0.0]),
    left_out_loss=np.array([0.5, 0.5, 4.5]),
    residual=1e-12,
    undamped_residual=1e-3,
    error_bound=1e-9,
)
NEW = {"self_influence", "left_out_loss", "residual", "undamped_residual", "error_bound"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "self_influence.npz"
    self_influence.save(path, STORED)
    return path


def test_all_fields_come_back(path):
    found = self_influence.load(path)
    for field in fields(STORED):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(STORED, field.name))
    assert list(found.rankings) == ["self_influence", "tracin", "last_layer", "left_out_loss", "loss"]


def test_a_ranking_that_is_none_is_left_out(path):
    self_influence.save(path, replace(STORED, tracin=None, last_layer=None, **dict.fromkeys(NEW)))
    with np.load(path) as raw:
        assert set(raw.files) == {"train_ids", "loss", "damping", "definitions", "settings"}
    found = self_influence.load(path)
    assert (found.tracin, found.last_layer) == (None, None)
    assert all(getattr(found, name) is None for name in NEW)  # a file of before they were made is as good
    assert list(found.rankings) == ["loss"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"tracin": np.array([0.0, np.nan, np.inf])}, "2 of 3 numbers of tracin are not finite"),
        (
            {"left_out_loss": np.array([0.0, -np.inf, 1.0])},
            "1 of 3 numbers of left_out_loss are not finite",
        ),
        ({"self_influence": np.zeros(4)}, "self_influence (4,) and train_ids (3,) are not one per training sample"),
        ({"loss": np.zeros(2)}, "loss (2,) and train_ids (3,) are not one per training sample"),
    ],
)
def test_what_cannot_be_is_neither_written_nor_read(path, change, fault):
    before = path.read_bytes()
    with pytest.raises(WorkError) as caught:
        self_influence.save(path, replace(STORED, **change))
    assert str(caught.value) == (
        f"{path} was not written: {fault}.\n"
        "  An old file there is unchanged. The calculation that gave these numbers went wrong; its log says more."
    )
    assert path.read_bytes() == before
    write_npz(path, {name: np.asarray(value) for name, value in {**vars(STORED), **change}.items()})
    with pytest.raises(InputError) as refused:
        self_influence.load(path)
    assert str(refused.value) == (
        f"{path} holds no self-influence of ifloo: {fault}.\n"
        "  Delete it and run `ifloo influence` with --attribution.self_influence true again."
    )


def test_a_damaged_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="holds no self-influence of ifloo: "):
        self_influence.load(path)
