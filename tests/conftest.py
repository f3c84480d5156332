"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]
LONG = 300.0  # timeout of other processes, seconds; generous for busy machines, and never reached by a passing test


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Limits torch to one thread: with a second one, small tensors take twenty times as long on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Folder of the four full MNIST files; tests that use it are marked `full` and skipped if it does not exist."""
    given = os.environ.get("IFLOO_MNIST_ROOT")
    root = Path(given) if given else CHECKOUT.parent / "shared" / "data" / "mnist"
    if not root.is_dir():
        pytest.skip(f"the full MNIST files are not in {root} (set IFLOO_MNIST_ROOT to the folder that holds them)")
    return root
