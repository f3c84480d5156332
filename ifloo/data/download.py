"""Download of published IDX files over HTTP with mirrors, retries, checksums and atomic writes."""

import os
import queue
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from ifloo.data.idx import GZIP_ERRORS, IdxFile, content_md5, uncompressed
from ifloo.errors import WorkError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CHUNK = 1 << 16


class _TransferError(Exception):
    """Failure of one attempt at one mirror; the message gives the reason."""


class _StallTimeout:
    """A deadline that every received byte renews; it is shared by all files, mirrors and retries.

    A slow transfer is never interrupted, and without a network the download ends after `seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    def left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def one_wait(self) -> float:
        """Returns the wait for one silent mirror: at most half of `seconds`, so that the next mirror is tried too."""
        return min(self.seconds / 2, self.left())


def download(
    files: Sequence[IdxFile], root: Path, mirrors: Sequence[str] = MIRRORS, *, patience: float = 8.0, rounds: int = 3
) -> None:
    """Downloads each file to `<root>/<name>.gz`, complete and verified.

    Args:
        files: Files to fetch, each from `<mirror><name>.gz`.
        root: Target folder; it is created when the first file has arrived.
        mirrors: URLs that end in a slash, tried in turn; the mirror that answered is tried first for the next file.
        patience: Total time without one new byte after which the download gives up, seconds.
        rounds: Number of attempts at each mirror for one file.

    Raises:
        WorkError: If no mirror delivers a file with the right content, or a file cannot be written.
    """
    clock = _StallTimeout(patience)
    order = list(mirrors)
    for file in files:
        body, mirror = _from_any(file, order, clock, rounds, root)
        _write_atomically(root / f"{file.name}.gz", body)
        order = [mirror, *(other for other in order if other != mirror)]


def _from_any(
    file: IdxFile, mirrors: Sequence[str], clock: _StallTimeout, rounds: int, root: Path
) -> tuple[bytes, str]:
    failures: dict[str, str] = {}
    for attempt in range(rounds):
        time.sleep(min(0.25 * attempt, clock.left()))  # time for a server that is restarting
        for mirror in mirrors:
            url = f"{mirror}{file.name}.gz"
            if clock.left() <= 0:
                raise WorkError(_gave_up(file, root, failures))
            try:
                return _verified(_body(url, clock), file), mirror
            except _TransferError as error:
                failures[url] = str(error)
    raise WorkError(_gave_up(file, root, failures))


def _body(url: str, clock: _StallTimeout) -> bytes:
    try:
        with _open(url, clock.one_wait()) as response:
            return _received(response, url.rpartition("/")[2], clock)
    except urllib.error.HTTPError as error:
        error.close()
        raise _TransferError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _TransferError(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _TransferError(str(error) or type(error).__name__) from error


def _open(url: str, seconds: float) -> HTTPResponse:
    """Opens a URL within a total time limit; the timeout of `urlopen` does not cover name resolution, which may hang.

    Raises:
        TimeoutError: If no answer arrives within `seconds`.
    """
    answers: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()
    given_up = threading.Event()

    def request() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=seconds)
        except Exception as error:
            answers.put(error)
            return
        if given_up.is_set():
            response.close()
        else:
            answers.put(response)

    threading.Thread(target=request, daemon=True, name="ifloo-download").start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        given_up.set()
        raise TimeoutError(f"no answer within {seconds:.1f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _received(response: HTTPResponse, name: str, clock: _StallTimeout) -> bytes:
    content_length = response.headers.get("Content-Length")
    size = int(content_length) if content_length and content_length.isdigit() else None
    body = bytearray()
    # disable=None: no progress bar when the output is not a terminal (a log file, a CI job).
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        while chunk := response.read1(CHUNK):
            body += chunk
            bar.update(len(chunk))
            clock.renew()
    if size is not None and len(body) != size:  # read1 cannot distinguish a closed connection from the end of the file
        raise _TransferError(f"the connection broke after {len(body)} of {size} bytes")
    return bytes(body)


def _verified(body: bytes, file: IdxFile) -> bytes:
    try:
        found = content_md5(uncompressed(body))
    except GZIP_ERRORS as error:
        raise _TransferError(f"broken gzip ({error})") from error
    if found != file.md5:
        raise _TransferError(f"wrong content, expected MD5 {file.md5}, found {found}")
    return body


def _write_atomically(target: Path, body: bytes) -> None:
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    except OSError as error:
        raise WorkError(
            f"{target} cannot be written: {error.strerror}.\n"
            "  Free some space, or choose another root that can be written to."
        ) from error
    finally:
        _remove(part)


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # the folder itself failed, so nothing is left to clean up; the first error is the one to report
        return


def _gave_up(file: IdxFile, root: Path, failures: dict[str, str]) -> str:
    tried = "; ".join(f"{url}: {failure}" for url, failure in failures.items()) or "no mirror answered in time"
    return (
        f"{file.name} could not be downloaded ({tried}).\n"
        f"  Check the network, or put the file, gzip or plain, into {root} yourself."
    )
