"""Small experiments, each run once per session; tests that change one work on a copy."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest

from tests.cli import plain_project
from tests.cli.image_text import TINY, N
from tests.cli.plain_running import PROJECT, QUIET
from tests.cli.running import done, ifloo, small


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished pipeline for tests 0 and 8, which tests must not change."""
    folder = tmp_path_factory.mktemp("experiment")
    done(small(folder, "pipeline"))
    return folder


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """Copy of `experiment` that a test may change."""
    return Path(shutil.copytree(experiment, tmp_path / "copy"))


@pytest.fixture(scope="session")
def image_text_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Arguments for the embedded image-text set, which is written once for all tests."""
    root = tmp_path_factory.mktemp("multimodal") / "data"
    return (f"--data.root={root}", f"--data.train_limit={N}", "--data.test_limit=6", "--data.batch_size=20")


@pytest.fixture(scope="session")
def image_text(image_text_rows: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished image-text pipeline, which tests must not change."""
    folder = tmp_path_factory.mktemp("made")
    done(ifloo(folder, "pipeline", *TINY, *image_text_rows))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """Folder with the plain project and a checkpoint of its own Trainer, at a minimum."""
    shutil.copy(plain_project.__file__, tmp_path / f"{PROJECT}.py")
    sys.path.insert(0, str(tmp_path))
    sys.modules.pop(PROJECT, None)
    try:
        module = __import__(PROJECT)
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **QUIET)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            trainer.fit(module.Softmax(), datamodule=module.Digits())
            trainer.save_checkpoint("own.ckpt", weights_only=True)
        yield tmp_path
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop(PROJECT, None)
