"""Fixtures of the data tests: four tiny IDX files like those of MNIST, and a local mirror with programmable faults."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ifloo.data.idx import IdxFile
from ifloo.data.source import FULL, FourFiles

Answer = Callable[[BaseHTTPRequestHandler], None]


def as_idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """Uncompressed files by name: 12 training and 5 test images."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (12, 28, 28)), np.arange(12) % 10, rng.integers(0, 256, (5, 28, 28)), np.arange(5)]
    return {file.name: as_idx(array) for file, array in zip(FULL, arrays, strict=True)}


@pytest.fixture(scope="session")
def tiny(contents: dict[str, bytes]) -> FourFiles:
    return FourFiles(*(IdxFile(f.name, f.ndim, hashlib.md5(contents[f.name]).hexdigest()) for f in FULL))


@pytest.fixture
def closed_port() -> str:
    """URL of a mirror whose port is closed."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/"


class Mirror:
    """Mirror that answers each path with the next of the answers set for it; `asked` lists the requested paths."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[str] = []

    def set(self, path: str, *answers: Answer) -> None:
        self.answers[f"/{path}"] = list(answers)

    @staticmethod
    def good(body: bytes, sent: int | None = None) -> Answer:
        """Returns an answer with the whole body, or with its first `sent` bytes, after which the connection breaks."""

        def answer(to: BaseHTTPRequestHandler) -> None:
            to.send_response(200)
            to.send_header("Content-Length", str(len(body)))
            to.end_headers()
            to.wfile.write(body[:sent])

        return answer

    @staticmethod
    def not_found(to: BaseHTTPRequestHandler) -> None:
        to.send_error(404)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.answers.get(self.path, [served.not_found]).pop(0)(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Mirror(f"http://127.0.0.1:{server.server_address[1]}/")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()
