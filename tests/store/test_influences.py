from dataclasses import fields, replace

import numpy as np
import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import StoredInfluences, influences, write_npy, write_npz

STORED = StoredInfluences(
    test_id=8,
    scores=np.array([-0.5, 0.25, 0.0], dtype=np.float32),
    train_ids=np.array([5, 2, 11]),
    score_mean=1e-5,
    residual=2e-11,
    undamped_residual=None,
    error_bound=3e-9,
    steps=17,
    status="CONVERGED",
    damping=0.25,
    method="Damped(Hessian(), 0.25) + CG(rtol=1e-10)",
    definitions="s[t, i] = ∂L_t(θ̂)/∂w_i, nats per unit weight",
    settings="0" * 64,
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "influences_test_8.npz"
    influences.save(path, STORED)
    return path


def test_all_fields_come_back(path):
    found = influences.load(path)
    for field in fields(STORED):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(STORED, field.name))
        assert type(getattr(found, field.name)) is type(getattr(STORED, field.name))
    with np.load(path) as raw:
        assert (raw["scores"].dtype, raw["train_ids"].dtype) == (np.float32, np.int64)
        assert "undamped_residual" not in raw


def test_a_method_that_solved_nothing_has_no_residual(path):
    influences.save(path, replace(STORED, residual=None))
    assert influences.load(path).residual is None
    with np.load(path) as raw:
        assert "residual" not in raw


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"scores": np.array([0, np.nan, np.inf], dtype=np.float32)},
            "2 of 3 scores are not finite (the first is that of training id 2)",
        ),
        ({"scores": np.zeros(2, dtype=np.float32)}, "scores (2,) and train_ids (3,) are not one per training sample"),
        ({"train_ids": np.array([5, 2, 5])}, "1 of 3 training ids are repeated"),
        ({"residual": float("nan")}, "residual is nan"),
        ({"error_bound": float("inf")}, "error_bound is inf"),
    ],
)
def test_faults_are_neither_written_nor_read(path, change, fault):
    before = path.read_bytes()
    with pytest.raises(WorkError) as caught:
        influences.save(path, replace(STORED, **change))
    assert str(caught.value) == (
        f"{path} was not written: {fault}.\n"
        "  An old file there is unchanged. The calculation that gave these scores went wrong; its log says more."
    )
    assert path.read_bytes() == before

    with np.load(path) as raw:
        write_npz(path, {**raw, **{name: np.asarray(value) for name, value in change.items()}})
    with pytest.raises(InputError) as caught:
        influences.load(path)
    assert str(caught.value) == no_scores(path, fault)


def no_scores(path, reason):
    return (
        f"{path} holds no influence scores of ifloo: {reason}.\n"
        "  Delete it and run `ifloo influence` for this test id again."
    )


def test_missing_file(tmp_path):
    path = tmp_path / "influences_test_8.npz"
    with pytest.raises(InputError) as caught:
        influences.load(path)
    assert str(caught.value) == (
        f"There are no influence scores at {path}.\n  Run `ifloo influence` for this test id first."
    )


def test_missing_or_misshapen_settings(path):
    with np.load(path) as raw:
        arrays = dict(raw)
    cases = {
        "it lacks damping, method": {k: v for k, v in arrays.items() if k not in ("damping", "method")},
        "scores are int64, train_ids int64, not float32 and int64": {**arrays, "scores": np.zeros(3, dtype=np.int64)},
        "damping (2,) is not a single value": {**arrays, "damping": np.zeros(2)},
        "damping is <U4, not float64": {**arrays, "damping": np.asarray("none")},
    }
    for reason, content in cases.items():
        write_npz(path, content)
        with pytest.raises(InputError) as caught:
            influences.load(path)
        assert str(caught.value) == no_scores(path, reason)


def test_damaged_at_any_place_is_never_taken_for_scores(path):
    """Cut off anywhere, or one byte changed in the arrays: an InputError, never other numbers."""
    content = path.read_bytes()
    for cut in range(0, len(content), 97):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"holds no influence scores of ifloo: not a readable npz \("):
            influences.load(path)
    place = content.index(STORED.scores.tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(InputError) as caught:
        influences.load(path)
    assert str(caught.value) == no_scores(path, "not a readable npz (Bad CRC-32 for file 'scores.npy')")
    write_npy(path, STORED.scores)
    with pytest.raises(InputError) as caught:
        influences.load(path)
    assert str(caught.value) == no_scores(path, "not a readable npz (it holds one bare array)")
