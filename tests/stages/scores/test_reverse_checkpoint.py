"""A reverse pass on disk: goes on where it stood, and only for what it is of."""

import dataclasses

import numpy as np
import pytest
import torch

from ifloo.attribution import ReverseState, Unrolled
from ifloo.stages.scores.reverse_checkpoint import ReverseCheckpointFile
from ifloo.store.atomic import write_npy, write_npz
from tests.attribution.runs import STEPS, Training
from tests.attribution.test_unrolled import RUNS, schedule

CPU = torch.device("cpu")


def reverse(moments=2, dtype=torch.float64):
    def draw(seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return ReverseState(7, draw(0, 2, 5), tuple(draw(k, 2, 5) for k in range(1, 1 + moments)), draw(9, 2, 12), 3e-16)


@pytest.fixture
def kept(tmp_path):
    return ReverseCheckpointFile(tmp_path / "out" / "reverse.npz.part", "stamp [0, 8]", CPU)


@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_comes_back_as_it_was(kept, moments, dtype):
    assert kept.load() is None
    stored = reverse(moments, dtype)
    kept.keep(stored)
    found = kept.load()
    assert (found.step, found.distance) == (stored.step, stored.distance)
    for name in ("theta", "scores"):
        assert torch.equal(getattr(found, name), getattr(stored, name))
        assert getattr(found, name).dtype == dtype
    assert len(found.moments) == moments
    assert all(torch.equal(a, b) for a, b in zip(found.moments, stored.moments, strict=True))


def test_the_last_one_counts(kept):
    kept.keep(reverse())
    kept.keep(dataclasses.replace(reverse(), step=4))
    assert kept.load().step == 4
    kept.forget()
    assert kept.load() is None
    assert not list(kept.path.parent.iterdir())
    kept.forget()


@pytest.mark.parametrize("stamp", ["stamp [0]", "other [0, 8]", ""])
def test_of_other_settings_or_tests_it_is_not_there(kept, stamp):
    kept.keep(reverse())
    assert dataclasses.replace(kept, stamp=stamp).load() is None
    assert kept.load() is not None


def _objects(path):
    with open(path, "wb") as file:
        np.savez(file, stamp=np.array([{}]))


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "text": lambda path: path.write_text("no archive"),
    "one bare array": lambda path: write_npy(path, np.ones(3)),
    "without scores": lambda path: write_npz(path, {"stamp": np.asarray("stamp [0, 8]"), "theta": np.ones((2, 5))}),
    "objects": _objects,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_not_there(kept, damage):
    kept.keep(reverse())
    damage(kept.path)
    assert kept.load() is None
    kept.keep(reverse())
    assert kept.load() is not None


class KilledError(Exception):
    pass


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_a_killed_pass_goes_on_from_disk(kept, monkeypatch, segments):
    """The same scores bit by bit, and the segments that were done are not done again."""
    training = Training(*RUNS["adamw"], schedule)
    trained, queries = training.trained(), training.queries
    whole = Unrolled().scores(trained, queries)
    plain, done = ReverseCheckpointFile.keep, []

    def dying(self, found):
        plain(self, found)
        done.append(found.step)
        if len(done) == segments:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(ReverseCheckpointFile, "keep", dying)
        with pytest.raises(KilledError):
            Unrolled().resumed(trained, queries, kept)
    assert kept.load().step == done[-1]
    ticks = []
    resumed = Unrolled().resumed(trained, queries, kept, lambda now, total: ticks.append((now, total)))
    assert torch.equal(resumed.value, whole.value)
    assert torch.equal(resumed.certificate.residual, whole.certificate.residual)
    assert ticks[0] == (STEPS - done[-1] + 1, STEPS)
