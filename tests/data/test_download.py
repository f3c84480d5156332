"""Downloading from mirrors on loopback: every way a transfer fails, then success; and giving up in time."""

import gzip
import re
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ifloo.data.download import download
from ifloo.data.idx import read_idx
from ifloo.data.source import FourFiles
from ifloo.errors import WorkError

ADVICE = "  Check the network, or put the file, gzip or plain, into {root} yourself."


def test_broken_transfer_wrong_checksum_404_then_success(
    tmp_path: Path, mirror, tiny: FourFiles, contents: dict[str, bytes]
):
    images, labels = tiny.train_images, tiny.train_labels
    body = gzip.compress(contents[images.name])
    wrong = gzip.compress(contents[tiny.test_images.name])
    mirror.set(f"a/{images.name}.gz", mirror.good(body, sent=1000), mirror.not_found)
    mirror.set(f"b/{images.name}.gz", mirror.good(wrong), mirror.good(body))
    mirror.set(f"b/{labels.name}.gz", mirror.good(gzip.compress(contents[labels.name])))
    root = tmp_path / "new" / "root"
    download([images, labels], root, [f"{mirror.url}a/", f"{mirror.url}b/"])
    assert sorted(path.name for path in root.iterdir()) == [f"{images.name}.gz", f"{labels.name}.gz"]
    assert read_idx(root / f"{images.name}.gz", 3, images.md5).shape == (12, 28, 28)
    # the mirror that answered is asked first for the next file
    assert [path[1] for path in mirror.asked] == ["a", "b", "a", "b", "b"]


def test_every_failure_is_named_and_nothing_is_left(
    tmp_path: Path, mirror, closed_port: str, tiny: FourFiles, contents: dict[str, bytes]
):
    file = tiny.test_labels
    body = gzip.compress(contents[file.name], mtime=0)
    mirror.set(f"cut/{file.name}.gz", mirror.good(body, sent=10))
    mirror.set(f"gzip/{file.name}.gz", mirror.good(body[:-4]))
    mirror.set(f"html/{file.name}.gz", mirror.good(b"<html>log in first</html>"))
    mirrors = [f"{mirror.url}{kind}/" for kind in ("cut", "gzip", "html", "none")] + [closed_port]
    with pytest.raises(WorkError) as caught:
        download([file], tmp_path / "root", mirrors, rounds=1)
    url = f"{file.name}.gz"
    assert str(caught.value) == (
        f"{file.name} could not be downloaded ("
        f"{mirrors[0]}{url}: the connection broke after 10 of {len(body)} bytes; "
        f"{mirrors[1]}{url}: broken gzip (Compressed file ended before the end-of-stream marker was reached); "
        f"{mirrors[2]}{url}: wrong content, expected MD5 {file.md5}, found c92b6325b3943a5d71e351992b3033ad; "
        f"{mirrors[3]}{url}: HTTP 404 Not Found; "
        f"{mirrors[4]}{url}: [Errno 111] Connection refused).\n" + ADVICE.format(root=tmp_path / "root")
    )
    assert not (tmp_path / "root").exists()


def test_silent_mirrors_are_given_up_in_time(tmp_path: Path, tiny: FourFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/{name}/" for name in ("a", "b")]
        started = time.monotonic()
        with pytest.raises(WorkError) as caught:
            download(list(tiny), tmp_path / "root", mirrors, patience=0.4)
        assert time.monotonic() - started < 2  # one wait per mirror, round and file would be 4.8
    name = tiny.train_images.name
    silence = [f"{mirror}{name}.gz: _" for mirror in mirrors]
    # Whichever of the two clocks, of the connection or of the whole wait, is read first on a busy machine.
    assert re.sub(r"no answer within 0\.\d s|timed out", "_", str(caught.value)) == (
        f"{name} could not be downloaded ({'; '.join(silence)}).\n" + ADVICE.format(root=tmp_path / "root")
    )


def test_a_name_lookup_that_hangs_is_given_up_in_time(tmp_path: Path, tiny: FourFiles, monkeypatch: pytest.MonkeyPatch):
    """No socket timeout covers the resolver, which without a network may take half a minute."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    started = time.monotonic()
    with pytest.raises(WorkError, match=r"no answer within 0\.1 s"):
        download([tiny.train_labels], tmp_path, ["http://mirror.invalid/"], patience=0.2)
    assert time.monotonic() - started < 2


def test_a_slow_transfer_that_moves_is_not_cut(tmp_path: Path, mirror, tiny: FourFiles, contents: dict[str, bytes]):
    file = tiny.test_labels
    body = gzip.compress(contents[file.name])

    def slow(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.end_headers()
        for byte in range(0, len(body), 4):
            to.wfile.write(body[byte : byte + 4])
            time.sleep(0.08)

    mirror.set(f"{file.name}.gz", slow)
    started = time.monotonic()
    download([file], tmp_path, [mirror.url], patience=0.5, rounds=1)
    assert time.monotonic() - started > 0.5
    assert read_idx(tmp_path / f"{file.name}.gz", 1, file.md5).shape == (5,)


def test_a_folder_that_cannot_be_written(tmp_path: Path, mirror, tiny: FourFiles, contents: dict[str, bytes]):
    file = tiny.test_labels
    mirror.set(f"{file.name}.gz", mirror.good(contents[file.name]))
    (tmp_path / "root").write_text("a file, not a folder")
    with pytest.raises(WorkError) as caught:
        download([file], tmp_path / "root", [mirror.url])
    assert str(caught.value) == (
        f"{tmp_path}/root/{file.name}.gz cannot be written: File exists.\n"
        "  Free some space, or choose another root that can be written to."
    )


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, mirror, tiny: FourFiles, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    file = tiny.test_labels
    mirror.set(f"{file.name}.gz", mirror.good(contents[file.name]))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkError, match="cannot be written: No space left on device"):
        download([file], tmp_path, [mirror.url])
    assert list(tmp_path.iterdir()) == []
