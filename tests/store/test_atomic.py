import errno
import json
import os
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import replacing, write_json, write_npy, write_npz, write_text


@contextmanager
def file_size_limit(size):
    """Make the kernel refuse to write past `size` bytes (EFBIG): a full disk that needs no rights to arrange."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "new" / "verdict.json"
    write_json(path, {"b": 1, "a": "θ̂"})
    assert path.read_text(encoding="utf-8") == '{\n "b": 1,\n "a": "θ̂"\n}\n'
    write_text(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["verdict.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "scores": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "allow_pickle": np.asarray("λ = 0.01"),
        "none": np.zeros((0, 3)),
    }
    write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == list(arrays)
        for name in arrays:
            np.testing.assert_array_equal(found[name], arrays[name], strict=True)
    for i, array in enumerate(arrays.values()):
        write_npy(tmp_path / f"{i}.npy", array)
        np.testing.assert_array_equal(np.load(tmp_path / f"{i}.npy"), array, strict=True)
    with pytest.raises(ValueError, match=r"^an array of Python objects cannot be stored without pickle$"):
        write_npy(tmp_path / "o.npy", np.asarray([{}]))


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("real/there.txt")
    write_text(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "real" / "there.txt").read_text() == "x"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(WorkError) as caught:
        write_json(path, {"old": False})
    assert str(caught.value) == (
        f"Could not write {path}: No space left on device.\n"
        "  The old file is unchanged. Free some space on that disk, or choose another place for the output, "
        "and run the same command again."
    )
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("write", [write_npy, lambda path, array: write_npz(path, {"a": array})], ids=["npy", "npz"])
def test_the_kernel_refuses_to_write_on(tmp_path, write):
    path = tmp_path / "a.bin"
    with file_size_limit(100_000), pytest.raises(WorkError) as caught:
        write(path, np.zeros(50_000))
    assert str(caught.value) == (
        f"Could not write {path}: File too large.\n"
        "  No file was left behind. Raise the limit on the size of a file (ulimit -f), or choose another place for the "
        "output, and run the same command again."
    )
    assert os.listdir(tmp_path) == []


def test_folder_flush_that_fails_says_the_new_file_is_there(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a.txt"
    with pytest.raises(WorkError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"Wrote {path}, but its folder could not be flushed to disk: Input/output error.\n"
        "  The new content is in place but may not survive a power cut. Check the disk and run the command again."
    )
    assert path.read_text() == "new"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_changes_nothing(tmp_path, stop):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half():
        with replacing(path) as file:
            file.write(b"half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("kind", "path"), [("a folder", "."), ("a device or a pipe", "/dev/null")])
def test_what_is_no_file_is_never_replaced(tmp_path, kind, path):
    path = tmp_path / path
    with pytest.raises(InputError) as caught:
        write_text(path, "x")
    assert str(caught.value) == (
        f"{path} is {kind}, and a file was to be written there.\n  Nothing was changed. Give the name of a file."
    )
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"tests": {"8": [0.5, {"slope": float("nan")}]}}, "tests.8.1.slope is nan"),
        ([np.float64("inf")], "0 is inf"),
        (float("-inf"), "the value is -inf"),
    ],
)
def test_json_never_holds_a_number_that_is_none(tmp_path, value, what):
    path = tmp_path / "verdict.json"
    with pytest.raises(WorkError) as caught:
        write_json(path, value)
    assert str(caught.value) == (
        f"{path} was not written: {what}, and JSON has no such number.\n"
        "  The file is as it was before. The calculation that gave this value went wrong; its log says more."
    )
    assert os.listdir(tmp_path) == []


def test_file_names_that_are_not_utf8_survive_json(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}
