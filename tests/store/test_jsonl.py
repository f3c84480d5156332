import errno
import logging
import os

import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import jsonl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "rows.jsonl"


def test_rows_come_back_in_order(path):
    assert jsonl.read(path) == []
    assert jsonl.repair(path) is False
    rows = [{"id": -1, "loss": 0.1}, {"id": 3, "text": "é\n"}]
    for row in rows:
        jsonl.append(path, row)
    assert jsonl.read(path) == rows
    assert path.read_bytes().count(b"\n") == 2


def test_one_row_is_one_write(path, monkeypatch):
    writes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or real(fd, data))
    jsonl.append(path, {"id": 1})
    assert writes == [b'{"id": 1}\n']


def test_killed_at_any_byte_no_whole_row_is_lost(path, caplog):
    """Every prefix of a file is what a kill or a power cut may leave."""
    rows = [{"id": i, "loss": i / 7} for i in range(3)]
    for row in rows:
        jsonl.append(path, row)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        kept = sum(end <= cut for end in ends)
        caplog.clear()
        assert jsonl.read(path) == rows[:kept]
        assert path.stat().st_size == cut
        torn = cut not in (0, *ends)
        assert jsonl.repair(path) is torn
        assert len(caplog.records) == 2 * torn
        jsonl.append(path, {"id": 9})
        assert jsonl.read(path) == [*rows[:kept], {"id": 9}]


@pytest.mark.parametrize(
    "tail", [b'{"id": 2, "lo', b'{"id": 2, "lo\n', b"\0\0\0", b'{"loss": NaN}\n', b"\xff\n", b"7\n"]
)
def test_torn_tail_is_left_out_then_cut_off(path, caplog, tail):
    jsonl.append(path, {"id": 1})
    path.write_bytes(path.read_bytes() + tail)
    with caplog.at_level(logging.WARNING):
        assert jsonl.read(path) == [{"id": 1}]
        assert jsonl.repair(path) is True
    how = f"its last line ({len(tail)} bytes), which a killed run left unfinished."
    assert caplog.messages == [f"{path}: left out {how}", f"{path}: cut off {how}"]
    assert path.read_bytes() == b'{"id": 1}\n'


def test_append_mends_a_torn_tail_first(path):
    jsonl.append(path, {"id": 1})
    path.write_bytes(path.read_bytes() + b'{"id":')
    jsonl.append(path, {"id": 2})
    assert path.read_bytes() == b'{"id": 1}\n{"id": 2}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "it is a list"),
        ('{"loss": NaN}', "NaN is not valid JSON"),
    ],
)
def test_bad_line_in_the_middle_is_named(path, line, reason):
    path.parent.mkdir()
    path.write_text(f'{{"id": 1}}\n{line}\n{{"id": 2}}\n')
    for use in (jsonl.read, jsonl.repair):
        with pytest.raises(InputError) as caught:
            use(path)
        assert str(caught.value) == (
            f"{path}, line 2: not a JSON object ({reason}).\n"
            "  Only the last line may be unfinished (a killed run leaves one). Delete this line and run again."
        )


def test_unreadable_file(tmp_path):
    with pytest.raises(InputError) as caught:
        jsonl.read(tmp_path)
    assert str(caught.value) == f"Could not read {tmp_path}: Is a directory.\n  Give a readable file."


def disk_full(path):
    return (
        f"Could not write {path}: No space left on device.\n"
        "  The row was not added; the earlier rows are unchanged. Free some space on that disk, or choose another "
        "place for the output, and run the same command again."
    )


@pytest.mark.parametrize("step", ["fsync", "short write"])
def test_full_disk_takes_the_half_row_back(path, monkeypatch, step):
    jsonl.append(path, {"id": 1})
    real = os.write

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    with pytest.raises(WorkError) as caught:
        jsonl.append(path, {"id": 2})
    assert str(caught.value) == disk_full(path)
    assert path.read_bytes() == b'{"id": 1}\n'


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_that_is_full():
    with pytest.raises(WorkError) as caught:
        jsonl.append("/dev/full", {"id": 1})
    assert str(caught.value) == disk_full("/dev/full")


def test_repair_on_a_disk_that_fails(path, monkeypatch):
    path.parent.mkdir()
    path.write_bytes(b'{"id": 1}\n{"id')

    def fails(_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(WorkError) as caught:
        jsonl.repair(path)
    assert str(caught.value) == (
        f"Could not write {path}: Read-only file system.\n"
        "  Its whole rows are unchanged. Make the disk writable, or choose another place for the output, and run the "
        "same command again."
    )


def test_nan_is_never_appended(path):
    jsonl.append(path, {"id": 1})
    with pytest.raises(WorkError) as caught:
        jsonl.append(path, {"id": 2, "grad_norm": float("nan")})
    assert str(caught.value) == (
        f"{path} was not written: grad_norm is nan, and JSON has no such number.\n"
        "  The file is as it was before. The calculation that gave this value went wrong; its log says more."
    )
    assert jsonl.read(path) == [{"id": 1}]
