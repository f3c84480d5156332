import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import GroupFile, GroupRow, Layout, jsonl

TOP = GroupRow("top_10pct", [3, 17, 40], 3.39, 1e-2, 0.5)
RANDOM = GroupRow("random_10pct", [1, 5, 9], 3.42, 2e-2, 0.25)


@pytest.fixture
def path(tmp_path):
    return Layout(tmp_path / "small").group_losses(8)


def test_rows_come_back_by_name(path):
    assert path.name == "group_losses_test_8.jsonl"
    file = GroupFile(path)
    assert file.done() == {}
    for row in (TOP, RANDOM):
        file.add(row)
    assert file.done() == {"top_10pct": TOP, "random_10pct": RANDOM}
    assert list(file.done()) == ["top_10pct", "random_10pct"]
    row = {"id": "top_10pct", "ids": [3, 17, 40], "loss": 3.39, "grad_norm": 0.01, "seconds": 0.5}
    assert jsonl.read(path)[0] == row


def test_ids_may_be_any_sequence(path):
    file = GroupFile(path)
    file.add(GroupRow("top_1pct", (4,), 1.0, 0.0, 0.0))
    assert file.done() == {"top_1pct": GroupRow("top_1pct", [4], 1.0, 0.0, 0.0)}


def test_a_torn_last_row_is_computed_again(path):
    file = GroupFile(path)
    file.add(TOP)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "random_10pct", "ids": [1, 5')
    assert list(file.rows()) == ["top_10pct"]
    assert path.read_bytes() != whole
    assert list(file.done()) == ["top_10pct"]
    assert path.read_bytes() == whole


WHOLE = {"id": "top_1pct", "ids": [1], "loss": 1.0, "grad_norm": 0.0, "seconds": 0.0}


@pytest.mark.parametrize(
    "row",
    [
        *({k: v for k, v in WHOLE.items() if k != name} for name in WHOLE),
        WHOLE | {"ids": 3},
        WHOLE | {"ids": ["a"]},
        WHOLE | {"loss": None},
        WHOLE | {"grad_norm": "small"},
    ],
)
def test_rows_that_are_no_group(path, row):
    jsonl.append(path, WHOLE | {"id": "random_1pct"})
    jsonl.append(path, row)
    with pytest.raises(InputError) as caught:
        GroupFile(path).done()
    assert str(caught.value) == (
        f"{path}, line 2: not a refit without a group.\n  Delete this line; the next run computes it again."
    )


def test_one_name_twice(path):
    for name in ("top_1pct", "top_10pct", "top_10pct"):
        jsonl.append(path, WHOLE | {"id": name})
    with pytest.raises(InputError) as caught:
        GroupFile(path).done()
    assert str(caught.value) == (
        f"{path}, line 3: group top_10pct occurs twice.\n  Delete this line; the next run computes it again."
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_refit_that_diverged_is_not_stored(path, loss):
    file = GroupFile(path)
    file.add(TOP)
    with pytest.raises(WorkError) as caught:
        file.add(GroupRow("random_10pct", [1], loss, 1.0, 0.5))
    assert str(caught.value) == (
        f"The refit without group random_10pct ended with test loss {loss} and was not added to {path}.\n"
        "  The refit diverged. Lower the learning rate, or remove smaller groups (refit.groups)."
    )
    assert file.done() == {"top_10pct": TOP}
