"""Recorded runs on disk: whole or not there, of the weights they say, and read without executing anything."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from ifloo.attribution.recorded import State
from ifloo.attribution.updates import SGD, Adam
from ifloo.errors import InputError
from ifloo.store import RunFolder, write_npz
from ifloo.store.atomic import write_npy

P, STEPS = 4, 5
SAVED = [0, 2, 5]
BATCHES = [torch.tensor(ids) for ids in ([7, 3, 100], [5], [3, 7], [100, 5], [7])]
RATES = [0.1, 0.2, 0.3, 0.2, 0.1]
UPDATES = {
    "sgd": (SGD(), 0),
    "momentum": (SGD(0.9, 0.1), 1),
    "nesterov": (SGD(0.9, nesterov=True), 1),
    "adamw": (Adam(0.8, 0.95, 1e-6, 0.1), 2),
}


def state(k, moments=2):
    rows = torch.randn(1 + moments, P, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return State(rows[0], tuple(rows[1:]))


THETA = state(STEPS).theta


@pytest.fixture
def folder(tmp_path):
    return RunFolder.of(tmp_path / "models" / "small_base.pth")


def write(folder, update=UPDATES["adamw"][0], moments=2, seed=0, steps=STEPS):
    """A run that ends at state(seed + steps)."""
    saved = [k for k in SAVED if k <= steps]
    folder.begin()
    for k in saved:
        folder.keep(k, state(seed + k, moments))
    folder.finish(update, BATCHES[:steps], RATES[:steps], saved)
    return folder


def refusal(folder, theta=THETA):
    with pytest.raises(InputError) as caught:
        folder.read(theta)
    return str(caught.value)


@pytest.mark.parametrize(("update", "moments"), UPDATES.values(), ids=UPDATES)
def test_a_run_comes_back_as_it_was(folder, update, moments):
    run = write(folder, update, moments).read(state(STEPS, moments).theta)
    assert run.update == update
    assert run.saved == SAVED
    assert run.steps == STEPS
    assert [ids.tolist() for ids in run.batch_ids] == [ids.tolist() for ids in BATCHES]
    assert run.rates.tolist() == RATES
    assert run.rates.dtype == torch.float64
    for k in SAVED:
        found, kept = run.state(k), state(k, moments)
        assert torch.equal(found.theta, kept.theta)
        assert len(found.moments) == moments
        assert all(torch.equal(a, b) for a, b in zip(found.moments, kept.moments, strict=True))


def test_states_come_in_the_precision_of_the_weights(folder):
    folder.begin()
    folder.keep(0, State(THETA.float(), ()))
    folder.keep(1, State(THETA.float() / 2, ()))
    folder.finish(SGD(), BATCHES[:1], RATES[:1], [0, 1])
    found = folder.read(THETA.float() / 2).state(0).theta
    assert found.dtype == torch.float32
    assert torch.equal(found, THETA.float())


def test_it_stands_beside_the_checkpoint(folder, tmp_path):
    write(folder)
    assert folder.path == tmp_path / "models" / "small_base.run"
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "run.json",
        *(f"state_{k:07d}.npz" for k in SAVED),
        "steps.npz",
    ]
    content = json.loads((folder.path / "run.json").read_text())
    rule = {"class": "Adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "decay": 0.1}
    assert content == {"update": rule, "saved": SAVED, "end": content["end"]}
    assert re.fullmatch(r"[0-9a-f]{64}", content["end"])


def test_nothing_in_it_is_executed(folder):
    """All arrays load without pickle, and one that would need it is refused."""
    write(folder)
    for path in folder.path.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "fi" for name in arrays.files)
    run = folder.read(THETA)
    for name, ask in (("steps.npz", lambda: folder.read(THETA)), ("state_0000002.npz", lambda: run.state(2))):
        np.savez(folder.path / name, **dict.fromkeys(("ids", "lengths", "rates", "theta"), np.array([{}])))
        with pytest.raises(InputError, match="Object arrays cannot be loaded when allow_pickle=False"):
            ask()


# Interrupted fits.


def test_an_interrupted_fit_is_not_taken_and_cleaned_away(folder):
    folder.begin()
    folder.keep(0, state(0))
    folder.keep(4, state(4))
    assert folder.part.is_dir()
    assert refusal(folder).startswith(f"There is no recorded run at {folder.path}: ")
    run = write(folder).read(THETA)
    assert not folder.part.exists()
    assert not (folder.path / "state_0000004.npz").exists()
    assert run.saved == SAVED


def test_an_old_run_stays_until_a_new_one_is_whole(folder):
    write(folder)
    before = {p.name: p.read_bytes() for p in folder.path.iterdir()}
    folder.begin()
    for k in (0, 2):
        folder.keep(k, state(50 + k))
    assert {p.name: p.read_bytes() for p in folder.path.iterdir()} == before
    assert folder.read(THETA).steps == STEPS
    write(folder, seed=50, steps=2)
    assert folder.read(state(52).theta).steps == 2
    assert sorted(p.name for p in folder.path.glob("state_*")) == ["state_0000000.npz", "state_0000002.npz"]


# What cannot be read.


def test_no_run(folder):
    assert refusal(folder) == (
        f"There is no recorded run at {folder.path}: the fit of this checkpoint was not recorded.\n"
        "  Fit again with a config whose attribution.method (or one of attribution.compare_with) needs the "
        "run: `ifloo fit --overwrite`."
    )


def test_a_run_of_other_weights(folder):
    write(folder)
    assert refusal(folder, THETA + 1e-12) == (
        f"The recorded run at {folder.path} ended at other weights than those of the checkpoint.\n"
        "  One of the two was replaced. Fit again (`ifloo fit --overwrite`)."
    )


def _content(folder, **changes):
    content = json.loads((folder.path / "run.json").read_text()) | changes
    (folder.path / "run.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def _steps(folder, **arrays):
    with np.load(folder.path / "steps.npz") as kept:
        write_npz(folder.path / "steps.npz", dict(kept) | arrays)


DAMAGES = {
    "an empty run.json": (lambda f: (f.path / "run.json").write_text(""), "Expecting value: line 1 column 1 (char 0)"),
    "no object": (lambda f: (f.path / "run.json").write_text("[]"), "list indices must be integers or slices, not str"),
    "no end": (lambda f: _content(f, end=None), "'end'"),
    "an unknown rule": (lambda f: _content(f, update={"class": "Lion"}), "'Lion'"),
    "no steps": (
        lambda f: (f.path / "steps.npz").unlink(),
        "steps.npz: not a readable npz ([Errno 2] No such file or directory: '{path}/steps.npz')",
    ),
    "empty steps": (
        lambda f: (f.path / "steps.npz").write_bytes(b""),
        "steps.npz: not a readable npz (No data left in file)",
    ),
    "torn steps": (
        lambda f: (f.path / "steps.npz").write_bytes((f.path / "steps.npz").read_bytes()[:-40]),
        "steps.npz: not a readable npz (File is not a zip file)",
    ),
    "ids that are too few": (
        lambda f: _steps(f, ids=np.arange(3)),
        "steps.npz: 3 ids of 5 steps, which hold 9 ids",
    ),
    "rates that are too few": (
        lambda f: _steps(f, rates=np.ones(4)),
        "steps.npz: rates (4,) and lengths (5,) are not one per step",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run(folder, damage, reason):
    damage(write(folder))
    assert refusal(folder) == (
        f"The recorded run at {folder.path} cannot be read: {reason.format(path=folder.path)}.\n"
        "  It is damaged. Fit again (`ifloo fit --overwrite`)."
    )


STATE_DAMAGES = {
    "missing": (lambda path: path.unlink(), "not a readable npz ([Errno 2] No such file or directory: '{path}')"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable npz (No data left in file)"),
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not a readable npz (File is not a zip file)"),
    "of something else": (lambda path: write_npz(path, {"x": np.ones(2)}), "it lacks theta"),
}


@pytest.mark.parametrize(("damage", "reason"), STATE_DAMAGES.values(), ids=STATE_DAMAGES)
def test_a_damaged_state(folder, damage, reason):
    """Said when it is asked for; the others are whole."""
    path = write(folder).path / "state_0000002.npz"
    run = folder.read(THETA)
    damage(path)
    with pytest.raises(InputError) as caught:
        run.state(2)
    assert str(caught.value) == (
        f"The recorded state {path} cannot be read: {reason.format(path=path)}.\n"
        "  It is damaged. Fit again (`ifloo fit --overwrite`)."
    )
    assert torch.equal(run.state(0).theta, state(0).theta)


def test_an_array_where_a_state_should_be(folder):
    path = write(folder).path / "state_0000002.npz"
    write_npy(path, np.ones(2))
    with pytest.raises(InputError) as caught:
        folder.read(THETA).state(2)
    assert str(caught.value).startswith(
        f"The recorded state {path} cannot be read: not a readable npz (it holds one bare array).\n"
    )


def test_a_run_may_move_with_its_checkpoint(folder, tmp_path):
    write(folder)
    elsewhere = RunFolder.of(tmp_path / "elsewhere" / "base.pth")
    shutil.copytree(folder.path, elsewhere.path)
    assert elsewhere.read(THETA).steps == STEPS
