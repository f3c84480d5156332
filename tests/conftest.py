"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]
LONG = 300.0  # timeout of other processes, seconds; generous for busy machines, and never reached by a passing test


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread, unless OMP_NUM_THREADS asks for more.

    Tensors here have a few hundred numbers: on a busy machine a second thread makes them twenty times slower.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Folder of the four full MNIST files; tests that use it are marked `full` and skipped if it does not exist."""
    given = os.environ.get("IFLOO_MNIST_ROOT")
    root = Path(given) if given else CHECKOUT.parent / "shared" / "data" / "mnist"
    if not root.is_dir():
        pytest.skip(f"the full MNIST files are not in {root} (set IFLOO_MNIST_ROOT to the folder that holds them)")
    return root
