"""Three forms of the scores of all tests: whole or not at all, resumed, never mixed."""

import errno
import os

import numpy as np
import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import Layout, ScoredTest, ScoreFiles, ScoreMatrix, ScoreTopK, jsonl

M, N, K = 7, 11, 3
IDS = [3, 5, 8, 13, 21, 34, 55]
TRAIN = np.arange(N)[::-1] * 2
SCORES = np.random.default_rng(0).normal(size=(M, N)).astype(np.float32)


def files(layout, ids=IDS):
    return ScoreFiles(layout, ids, TRAIN)


def matrix(layout, ids=IDS):
    return ScoreMatrix(layout, ids, TRAIN)


def topk(layout, ids=IDS):
    return ScoreTopK(layout, ids, TRAIN, K)


FORMS = pytest.mark.parametrize("form", [files, matrix, topk])


def block(*places):
    tests = [ScoredTest(IDS[p], float(SCORES[p].mean()), {"residual": 1e-11, "content": f"c{p}"}) for p in places]
    return tests, SCORES[list(places)]


def check_whole(layout, form):
    """Everything of all tests is there, each once."""
    rows = {row["test_id"]: row for row in jsonl.read(layout.index)}
    assert len(jsonl.read(layout.index)) == len(rows) == M
    assert [rows[t]["content"] for t in IDS] == [f"c{p}" for p in range(M)]
    if form is files:
        for p, t in enumerate(IDS):
            np.testing.assert_array_equal(np.load(layout.all_tests / rows[t]["path"]), SCORES[p])
    elif form is matrix:
        found = np.load(layout.all_scores_matrix, mmap_mode="r")
        assert (found.dtype, found.shape) == (np.float32, (M, N))
        for p, t in enumerate(IDS):
            np.testing.assert_array_equal(found[rows[t]["row"]], SCORES[p])
    else:
        order = np.argsort(-np.abs(SCORES), axis=1)[:, :K]
        with np.load(layout.all_topk) as found:
            assert found["test_ids"].tolist() == IDS
            np.testing.assert_array_equal(found["ids"], TRAIN[order])
            np.testing.assert_array_equal(found["scores"], np.take_along_axis(SCORES, order, 1))
            np.testing.assert_array_equal(found["mean"], [float(row.mean()) for row in SCORES])
    assert not [p.name for p in layout.all_tests.iterdir() if p.suffix in (".tmp", ".part")]


@FORMS
def test_block_by_block_and_resumed(form, tmp_path):
    layout = Layout(tmp_path)
    first = form(layout)
    assert first.missing == IDS
    first.add(*block(0, 1, 2))
    first.finish()
    assert layout.all_scores_begun.exists() == (form is matrix)
    assert not layout.all_scores_matrix.exists()
    second = form(layout)
    assert second.missing == IDS[3:]
    second.add(*block(6, 4))
    second.add(*block(3, 5))
    second.finish()
    check_whole(layout, form)
    assert form(layout).missing == []


@FORMS
def test_what_has_no_line_is_made_again(form, tmp_path):
    """Killed between the scores and their lines, or within the write of the lines."""
    layout = Layout(tmp_path)
    form(layout).add(*block(*range(M)))
    content = layout.index.read_bytes()
    end_of_three = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")][2]
    layout.index.write_bytes(content[: end_of_three + 20])
    again = form(layout)
    assert again.missing == IDS[3:]
    again.add(*block(3, 4, 5, 6))
    again.finish()
    check_whole(layout, form)


@FORMS
def test_lines_of_scores_that_are_gone_do_not_count(form, tmp_path):
    layout = Layout(tmp_path)
    first = form(layout)
    first.add(*block(*range(M)))
    first.finish()
    for path in layout.existing_all_scores()[1:]:
        path.unlink(missing_ok=True)
    again = form(layout)
    assert again.missing == IDS
    again.add(*block(*range(M)))
    again.finish()
    check_whole(layout, form)


def test_a_whole_matrix_that_lost_a_line_goes_on_under_its_partial_name(tmp_path):
    layout = Layout(tmp_path)
    first = matrix(layout)
    first.add(*block(*range(M)))
    first.finish()
    layout.index.write_bytes(layout.index.read_bytes()[:-10])
    again = matrix(layout)
    assert again.missing == IDS[-1:]
    again.add(*block(M - 1))
    assert not layout.all_scores_matrix.exists()
    again.finish()
    check_whole(layout, matrix)


def test_killed_before_the_last_rename(tmp_path):
    layout = Layout(tmp_path)
    matrix(layout).add(*block(*range(M)))
    again = matrix(layout)
    assert again.missing == []
    again.finish()
    check_whole(layout, matrix)


@pytest.mark.parametrize("stored", [files, matrix, topk])
@pytest.mark.parametrize("asked", [files, matrix, topk])
def test_forms_are_not_mixed(stored, asked, tmp_path):
    layout = Layout(tmp_path)
    stored(layout).add(*block(0))
    if stored is asked:
        assert asked(layout).missing == IDS[1:]
        return
    names = {files: "one file per test", matrix: "one matrix", topk: "the top k of each test"}
    settings = {files: "neither matrix nor topk_only", matrix: "matrix", topk: "topk_only"}
    with pytest.raises(InputError) as error:
        asked(layout)
    assert str(error.value) == (
        f"{layout.all_tests} holds scores of all tests as {names[stored]} (attribution: {settings[stored]}); asked "
        f"for {names[asked]}.\n  The forms are not mixed in one folder. Ask for the stored form, give another "
        "--output_dir, or --overwrite to replace the stored scores."
    )


def test_a_matrix_does_not_grow(tmp_path):
    layout = Layout(tmp_path)
    begun = matrix(layout, IDS[:3])
    begun.add(*block(0, 1))
    with pytest.raises(InputError) as error:
        _ = matrix(layout).missing
    assert str(error.value) == (
        f"{layout.all_scores_begun} is a matrix of 3 tests x 11 training samples for 2 tests; asked for 7 x 11, other "
        "tests or another order.\n  A matrix does not grow. Ask for the same tests, give another --output_dir, or "
        "--overwrite to replace it."
    )
    begun.add(*block(2))
    begun.finish()
    assert matrix(layout, IDS[:2]).missing == []


def test_another_k_is_refused(tmp_path):
    layout = Layout(tmp_path)
    topk(layout).add(*block(0))
    with pytest.raises(InputError) as error:
        ScoreTopK(layout, IDS, TRAIN, 5)
    assert str(error.value) == (
        f"{layout.all_topk} holds 3 ids of each test; attribution.top_k asks for 5.\n"
        "  Ask for as many, give another --output_dir, or --overwrite to replace the file."
    )


def test_equal_scores_are_ordered_by_id(tmp_path):
    layout = Layout(tmp_path)
    tied = np.array([[1, -2, 2, 0, 2, -1, 2, 1, 0, 0, 0]], dtype=np.float32)
    topk(layout).add([ScoredTest(3, 0.0, {})], tied)
    with np.load(layout.all_topk) as found:
        assert found["ids"].tolist() == [sorted(TRAIN[[1, 2, 4, 6]])[:K]]


@FORMS
def test_scores_that_are_not_finite_are_not_written(form, tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(WorkError) as error:
        form(layout).add([ScoredTest(3, float("nan"), {})], SCORES[:1])
    assert str(error.value).startswith("The scores of test 3 are not finite (their mean is nan)")
    assert not layout.all_tests.exists()


@FORMS
def test_a_full_disk_leaves_no_line(form, tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    form(layout).add(*block(0))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match="No space left on device"):
            form(layout).add(*block(1, 2))
    again = form(layout)
    assert again.missing == IDS[1:]
    again.add(*block(*range(1, M)))
    again.finish()
    check_whole(layout, form)


def test_lines_of_a_block_are_one_write(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    writes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or real(fd, data))
    files(layout).add(*block(*range(M)))
    assert [data.count(b"\n") for data in writes] == [M]


def test_a_damaged_top_k_file(tmp_path):
    layout = Layout(tmp_path)
    topk(layout).add(*block(0))
    layout.all_topk.write_bytes(b"")
    with pytest.raises(InputError) as error:
        topk(layout)
    assert str(error.value) == (
        f"{layout.all_topk} holds no top-k scores of ifloo: not a readable npz (No data left in file).\n"
        "  Delete it and run the same command again."
    )


def test_a_damaged_matrix(tmp_path):
    layout = Layout(tmp_path)
    matrix(layout).add(*block(0))
    layout.all_scores_begun.write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"holds no matrix of scores of ifloo: not a readable npy \(EOF"):
        matrix(layout).add(*block(1))
