"""Fixtures for every room's tests."""

import os
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]
LONG = 300.0  # seconds until another process counts as hung, however busy the machine; nobody waits for it who passes


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread, unless OMP_NUM_THREADS asks for more.

    Tensors here have a few hundred numbers: on a busy machine a second thread makes them twenty times slower.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Folder of the four full MNIST files; tests that ask for it are marked `full` and skipped where it is not."""
    given = os.environ.get("IFLOO_MNIST_ROOT")
    root = Path(given) if given else CHECKOUT.parent / "shared" / "data" / "mnist"
    if not root.is_dir():
        pytest.skip(f"the full MNIST files are not in {root} (set IFLOO_MNIST_ROOT to the folder that holds them)")
    return root
