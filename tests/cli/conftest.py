"""A small experiment, made once; tests that change it work on a copy."""

import shutil
from pathlib import Path

import pytest

from tests.cli.image_text import TINY, N
from tests.cli.running import done, ifloo, small


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished pipeline for tests 0 and 8. Do not write here."""
    folder = tmp_path_factory.mktemp("experiment")
    done(small(folder, "pipeline"))
    return folder


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(experiment, tmp_path / "copy"))


@pytest.fixture(scope="session")
def image_text_rows(tmp_path_factory):
    """Arguments for the embedded set, made once for all tests."""
    root = tmp_path_factory.mktemp("multimodal") / "data"
    return (f"--data.root={root}", f"--data.train_limit={N}", "--data.test_limit=6", "--data.batch_size=20")


@pytest.fixture(scope="session")
def image_text(image_text_rows, tmp_path_factory):
    """Folder of a finished pipeline. Do not write here."""
    folder = tmp_path_factory.mktemp("made")
    done(ifloo(folder, "pipeline", *TINY, *image_text_rows))
    return folder
