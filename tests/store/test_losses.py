import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import NULL_ID, Layout, LossFile, LossRow, jsonl

BASE = LossRow(NULL_ID, 3.39, grad_norm=1e-12, seconds=0.5)
FIRST = LossRow(17, 3.42, 2e-11, 0.25, delta_error=1e-9, extra={"control": True})


@pytest.fixture
def path(tmp_path):
    return Layout(tmp_path / "mnist").loo_losses(8)


def test_rows_come_back_by_id(path):
    file = LossFile(path)
    assert file.done() == {}
    for row in (BASE, FIRST):
        file.add(row)
    assert file.done() == {NULL_ID: BASE, 17: FIRST}
    assert list(file.done()) == [NULL_ID, 17]
    assert jsonl.read(path)[0] == {"id": -1, "loss": 3.39, "grad_norm": 1e-12, "seconds": 0.5}


def test_files_with_id_and_loss_alone_are_read(path):
    jsonl.append(path, {"id": 3, "loss": 1})
    assert LossFile(path).done() == {3: LossRow(3, 1.0)}


def test_a_torn_last_row_is_computed_again(path):
    file = LossFile(path)
    file.add(BASE)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": 17, "loss": 3.4')
    assert list(file.rows()) == [NULL_ID]
    assert path.read_bytes() != whole
    assert list(file.done()) == [NULL_ID]
    assert path.read_bytes() == whole


def test_null_refits_are_told_by_draw(tmp_path):
    file = LossFile(Layout(tmp_path).null_losses(8), key="draw")
    draws = {k: LossRow(NULL_ID, 3.0 + k, extra={"draw": k}) for k in (0, 1)}
    for row in draws.values():
        file.add(row)
    assert file.done() == draws
    with pytest.raises(ValueError) as caught:
        file.add(LossRow(4, 3.0))
    assert str(caught.value) == "a null refit has id -1 and a whole number `draw`, not id 4 and None"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"loss": 1.0}, "id is None, not a whole number"),
        ({"id": True, "loss": 1.0}, "id is True, not a whole number"),
        ({"id": 2}, "loss is None, not a number"),
        ({"id": 2, "loss": 1.0, "grad_norm": "1e-9"}, "grad_norm is '1e-9', not a number"),
    ],
)
def test_rows_that_are_no_refit(path, row, reason):
    jsonl.append(path, {"id": 1, "loss": 1.0})
    jsonl.append(path, row)
    with pytest.raises(InputError) as caught:
        LossFile(path).done()
    assert str(caught.value) == (
        f"{path}, line 2: not a refit: {reason}.\n  Delete this line; the next run computes that refit again."
    )


def test_one_id_twice(path):
    for i in (1, 17, 17):
        jsonl.append(path, {"id": i, "loss": 1.0})
    with pytest.raises(InputError) as caught:
        LossFile(path).done()
    assert str(caught.value) == (
        f"{path}, line 3: id 17 is on line 2 already.\n"
        "  Two results for one refit cannot both hold. Delete both lines; the next run computes it again."
    )


def test_a_refit_that_diverged_is_not_stored(path):
    file = LossFile(path)
    file.add(BASE)
    with pytest.raises(WorkError) as caught:
        file.add(LossRow(17, float("nan")))
    assert str(caught.value) == (
        f"The refit with id 17 ended with test loss nan and was not added to {path}.\n"
        "  The refit diverged. Look at its log, lower the learning rate or raise the penalty, and run again: "
        "finished refits are kept."
    )
    assert file.done() == {NULL_ID: BASE}


def test_extra_may_not_hide_a_field(path):
    with pytest.raises(ValueError) as caught:
        LossFile(path).add(LossRow(1, 2.0, extra={"loss": 3.0}))
    assert str(caught.value) == "extra holds loss, which is a field of the row"
