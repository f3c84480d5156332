"""One reader and writer of npz records: what it refuses, in whose words, and what files of it look like."""

import numpy as np
import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import StoredInfluences, StoredRemovals, StoredSelfInfluence, influences, removals, self_influence
from ifloo.store.npz_record import Column, Record, read_npy_head, write_npy_head

ROW = "row"
RECORD = Record(
    {
        "ids": Column(np.int64, (ROW,)),
        "values": Column(np.float32, (ROW, "class")),
        "weights": Column(None, ("class",), optional=True),
        "bound": Column(np.float64, optional=True),
        "name": Column(str),
    },
    keys={ROW: "ids"},
    refusal="{path} holds no table",
    remedy="Make it again.",
)
VALUES = {"ids": [3, 1], "values": np.ones((2, 4)), "name": "a table"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.npz"


def refusal(path):
    with pytest.raises(InputError) as caught:
        RECORD.read(path)
    start, remedy = str(caught.value).split("\n")
    assert start.startswith(f"{path} holds no table: ")
    assert remedy == "  Make it again."
    return start.removeprefix(f"{path} holds no table: ").removesuffix(".")


def test_a_record_comes_back_in_the_types_of_its_columns(path):
    RECORD.write(path, VALUES | {"weights": np.ones(4, np.float32), "bound": 1, "more": [7]})
    with np.load(path, allow_pickle=False) as raw:
        assert raw.files == ["ids", "values", "name", "weights", "bound", "more"]
        assert [raw[n].dtype.str for n in raw.files] == ["<i8", "<f4", "<U7", "<f4", "<f8", "<i8"]
    found = RECORD.read(path)
    np.testing.assert_array_equal(found["values"], np.ones((2, 4), np.float32), strict=True)
    assert (str(found["name"]), float(found["bound"]), found["more"].tolist()) == ("a table", 1.0, [7])


def test_what_another_program_wrote_in_other_widths_is_read(path):
    np.savez(path, ids=np.array([3, 1], np.uint8), values=np.ones((2, 4)), name=np.asarray(b"a table"), bound=2)
    found = RECORD.read(path)
    assert (found["ids"].dtype, found["values"].dtype) == (np.int64, np.float32)
    assert (str(found["name"]), found["bound"].dtype) == ("a table", np.float64)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"values": np.ones((3, 4))}, "values (3, 4) and ids (2,) are not one per row"),
        ({"values": np.ones(2)}, "values (2,) is not one entry per row and class"),
        ({"name": ["a", "b"]}, "name (2,) is not a single value"),
    ],
)
def test_faults_of_shape_are_neither_written_nor_read(path, change, fault):
    RECORD.write(path, VALUES)
    before = path.read_bytes()
    with pytest.raises(WorkError) as caught:
        RECORD.write(path, VALUES | change)
    assert str(caught.value) == f"{path} was not written: {fault}.\n  An old file there is unchanged."
    assert path.read_bytes() == before
    np.savez(path, **VALUES | change)
    assert refusal(path) == fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ids": np.ones(2)}, "ids are float64, values float64, not int64 and float32"),
        (
            {"weights": np.ones(4, int)},
            "ids are int64, values float64, weights int64, not int64 and float32 and a floating type",
        ),
        ({"bound": "none"}, "bound is <U4, not float64"),
        ({"name": 7}, "name is int64, not text"),
    ],
)
def test_other_types_are_refused(path, change, fault):
    np.savez(path, **VALUES | change)
    assert refusal(path) == fault


def test_a_missing_key(path):
    np.savez(path, values=VALUES["values"])
    assert refusal(path) == "it lacks ids, name"
    with pytest.raises(WorkError, match="was not written: it lacks name"):
        RECORD.write(path, {"ids": [1], "values": np.ones((1, 1))})


def _objects(path):
    with open(path, "wb") as file:
        np.savez(file, ids=np.array([{}]))


DAMAGES = {
    "missing": (lambda path: None, "[Errno 2] No such file or directory: 'PATH'"),
    "empty": (lambda path: path.write_bytes(b""), "No data left in file"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "File is not a zip file"),
    "objects": (_objects, "Object arrays cannot be loaded when allow_pickle=False"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(path, damage, reason):
    if damage is not DAMAGES["missing"][0]:
        RECORD.write(path, VALUES)
    damage(path)
    assert refusal(path) == f"not a readable npz ({reason.replace('PATH', str(path))})"


def test_one_bare_array(path):
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    assert refusal(path) == "not a readable npz (it holds one bare array)"


# The files of version 0.1: keys in this order, in these types.

TEXTS = {"definitions": "d", "settings": "0" * 64}
IDS, NUMBERS = np.array([5, 2]), np.array([0.5, 0.25])
STORED = {
    "influences": (
        influences,
        StoredInfluences(8, np.float32([1, 2]), IDS, 0.0, 1e-9, 0.5, None, 3, "CONVERGED", 0, "m", **TEXTS),
        "score_mean <f8, damping <f8, test_id <i8, steps <i8, status <U9, method <U1, definitions <U1, settings <U64, "
        "residual <f8, undamped_residual <f8, scores <f4, train_ids <i8",
    ),
    "removals": (
        removals,
        StoredRemovals(8, IDS, NUMBERS, NUMBERS, 1e-9, 0.25, **TEXTS),
        "test_id <i8, ids <i8, effects <f8, leverages <f8, residual <f8, damping <f8, definitions <U1, settings <U64",
    ),
    "self_influence": (
        self_influence,
        StoredSelfInfluence(IDS, NUMBERS, None, NUMBERS, 1e-3, **TEXTS, residual=1e-9),
        "train_ids <i8, loss <f8, tracin <f8, damping <f8, definitions <U1, settings <U64, residual <f8",
    ),
}


@pytest.mark.parametrize(("room", "stored", "expected"), STORED.values(), ids=STORED)
def test_the_files_are_those_of_version_0_1(path, room, stored, expected):
    room.save(path, stored)
    with np.load(path, allow_pickle=False) as raw:
        assert ", ".join(f"{name} {raw[name].dtype.str}" for name in raw.files) == expected
    found = room.load(path)
    for name, value in vars(stored).items():
        np.testing.assert_array_equal(getattr(found, name), value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leverages": np.ones(3)}, "leverages (3,) and ids (2,) are not one per removed sample"),
        ({"effects": np.array([1.0, np.nan])}, "an effect is not finite"),
        ({"ids": np.ones(2)}, "ids are float64, effects float64, leverages float64, not int64 and float64 and float64"),
    ],
)
def test_removals_that_are_none(path, change, reason):
    content = vars(STORED["removals"][1]) | change
    np.savez(path, **{name: np.asarray(value) for name, value in content.items()})
    with pytest.raises(InputError) as caught:
        removals.load(path)
    assert str(caught.value) == (
        f"{path} holds no predicted removals of ifloo: {reason}.\n"
        "  Delete it and run `ifloo influence` with --attribution.corrected true again."
    )


# Heads of npy files.


def test_the_head_of_an_npy_comes_back(tmp_path):
    path = tmp_path / "scores.npy"
    with open(path, "wb") as file:
        write_npy_head(file, (3, 2))
        file.write(np.zeros((3, 2), np.float32).data)
    np.testing.assert_array_equal(np.load(path), np.zeros((3, 2), np.float32), strict=True)
    with open(path, "rb") as file:
        shape, start = read_npy_head(file, path)
    assert (shape, start) == ((3, 2), path.stat().st_size - 24)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not a readable npy (EOF: reading magic string, expected 8 bytes got 0)"),
        (lambda path: np.save(path, np.zeros(3)), "its numbers are float64 in C order, not float32 in C order"),
        (
            lambda path: np.save(path, np.zeros((3, 2), np.float32, order="F")),
            "its numbers are float32 in Fortran order, not float32 in C order",
        ),
    ],
)
def test_the_head_of_something_else(tmp_path, write, reason):
    path = tmp_path / "if_scores.npy"
    write(path)
    with open(path, "rb") as file, pytest.raises(InputError) as caught:
        read_npy_head(file, path)
    assert str(caught.value) == (
        f"{path} holds no matrix of scores of ifloo: {reason}.\n"
        "  Run the same command again with --overwrite to replace it."
    )
