"""Fixtures of results on disk, as the commands write them, and of a folder of logs."""

from pathlib import Path

import pytest

from ifloo.store import Layout, influences
from tests.verdict.results import CURVE, SCORES, Results, T, stored


@pytest.fixture
def results(tmp_path: Path) -> Results:
    folder = Results(Layout(tmp_path / "out")).write()
    influences.save(folder.layout.scores(T), stored(SCORES, folder.influence, residual=1e-11, residual_curve=CURVE))
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"
