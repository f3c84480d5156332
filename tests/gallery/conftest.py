"""Fits of the gallery, each once per process; where the optional packages are missing its tests are skipped.

With IFLOO_GALLERY=required in the environment, as in CI, a skipped test of the gallery is a failed one.
"""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.gallery.exhibits import EXHIBITS, Trained

REQUIRED = os.environ.get("IFLOO_GALLERY") == "required"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets Lightning, transformers and peft warn about the authors' code, which stays as authors write it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for kind in ("UserWarning", "FutureWarning", "DeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """Turns a skipped test into a failed one where the gallery is required."""
    report = (yield).get_result()
    if REQUIRED and report.skipped and Path(__file__).parent in item.path.parents:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and IFLOO_GALLERY=required: {report.longrepr}"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains a project of the gallery by name, once; `scored` adds an InfluenceCallback as its author would."""
    done: dict[tuple[str, bool], Trained] = {}

    def of(name: str, scored: bool = False) -> Trained:
        if (name, scored) not in done:
            done[name, scored] = EXHIBITS[name].trained(tmp_path_factory.mktemp("project"), scored)
        return done[name, scored]

    return of
