"""The documentation site, built once, and the browser of the report's tests."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, LONG
from tests.report.conftest import browser

__all__ = ["browser", "site"]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Folder of the site, built with warnings as errors."""
    if missing := [name for name in ("mkdocs", "material", "mkdocstrings") if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} cannot be imported (pip install 'ifloo[docs]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    command += ["--config-file", "scripts/site/mkdocs.yml"]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=LONG, check=False)
    assert built.returncode == 0, built.stderr
    return folder
