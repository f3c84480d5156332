"""A small experiment, made once; tests that change it work on a copy."""

import shutil
from pathlib import Path

import pytest

from tests.cli.running import done, small


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
