"""The wheel holds all of the package and nothing else, runs where no checkout is, and brings its types."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, LONG

NEEDED = 77  # the setuptools that pyproject.toml asks for
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
OFFLINE = ["--no-deps", "--no-index"]


def setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


pytestmark = pytest.mark.skipif(
    setuptools() < NEEDED or find_spec("pip") is None,
    reason=f"without pip and setuptools >= {NEEDED} no wheel can be built offline",
)


def files(package: Path) -> dict[str, bytes]:
    """Every file of a package by its name in a wheel, behind links too."""
    found = (Path(folder) / name for folder, _, names in os.walk(package, followlinks=True) for name in names)
    kept = [path for path in found if "__pycache__" not in path.parts]
    return {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in kept}


def ran(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONG, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Made of a copy, so that nothing of an older build is in it, and beside what runs leave behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("ifloo", "configs", "scripts", "tests"):
        shutil.copytree(CHECKOUT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("lightning_logs", "models", "outputs"):
        (source / name / "mnist").mkdir(parents=True)
        (source / name / "mnist" / "left.py").write_text("")
        (source / name / "mnist" / "left.pth").write_text("")
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(made), str(source)]
    built = ran(command, source)
    assert built.returncode == 0, built.stderr
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def content(wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel alone, installed; what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("site")
    installed = ran([*PIP, "install", *OFFLINE, "--target", str(folder), str(wheel)], folder)
    assert installed.returncode == 0, installed.stderr
    return folder


def test_every_file_of_the_package_is_in_it_and_no_other(content):
    package = {name: text for name, text in content.items() if ".dist-info/" not in name}
    assert package == files(CHECKOUT / "ifloo")
    configs = {f"ifloo/configs/{path.name}": path.read_bytes() for path in (CHECKOUT / "configs").glob("*.yaml")}
    assert {name: text for name, text in package.items() if name.startswith("ifloo/configs/")} == configs


@pytest.mark.parametrize(
    "name",
    [
        "ifloo/py.typed",
        "ifloo/configs/mnist.yaml",
        "ifloo/data/embedded/train-images-idx3-ubyte.gz",
        "ifloo/report/figures/fonts/han.ttf",
        "ifloo/report/html/report.html.j2",
        "ifloo/report/html/report.css",
        "ifloo/report/html/report.js",
        "ifloo/report/html/vendor/plotly-basic.min.js",
    ],
)
def test_what_is_no_code_is_in_it(content, name):
    assert name in content


def test_the_licences_of_what_others_made_go_with_it(content):
    licences = {name.partition("/licenses/")[2] for name in content if "/licenses/" in name}
    theirs = {name for name in files(CHECKOUT / "ifloo") if Path(name).name in ("ATTRIBUTION.md", "LICENSE.txt")}
    assert licences == {"LICENSE", *theirs}
    assert {Path(name).parent.name for name in theirs} == {"embedded", "fonts", "vendor"}


@pytest.mark.slow
def test_the_pipeline_runs_in_an_empty_folder(site, tmp_path):
    few = ("--attribution.top_k=3", "--refit.top_k=3", "--refit.random=3", "--finish.preconditioner.rank=10")
    digits = ("--data.source", "embedded", "--data.train_limit", "300")
    command = [str(site / "bin" / "ifloo"), "pipeline", "--config", "mnist", *digits, *few]
    done = ran(command, tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    results = tmp_path / "outputs" / "mnist"
    report = (results / "report.html").read_text()
    assert (site / "ifloo" / "report" / "html" / "vendor" / "plotly-basic.min.js").read_text() in report
    assert json.loads((results / "manifest.json").read_text())["fit"]["recorded"]["source"] == "embedded"
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs", "models", "outputs"}
    where = ran([sys.executable, "-c", "import ifloo; print(ifloo.__file__)"], tmp_path, PYTHONPATH=str(site))
    assert Path(where.stdout.strip()) == site / "ifloo" / "__init__.py"


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_a_type_checker_sees_its_types(site, tmp_path):
    (tmp_path / "user.py").write_text(
        'from ifloo.solvers import CG\n\nreveal_type(CG().max_steps)\nCG(max_steps="ten")\n'
    )
    # It is the types of ifloo that are asked for; those of others need not be read.
    others = ",".join(f"{name}.*" for name in ("torch", "lightning", "numpy", "scipy", "jaxtyping"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "user.py"]
    checked = ran(command, tmp_path, PYTHONPATH=str(site))
    said = checked.stdout.replace('"builtins.int"', '"int"').splitlines()
    assert said == [
        'user.py:3: note: Revealed type is "int"',
        'user.py:4: error: Argument "max_steps" to "CG" has incompatible type "str"; expected "int"  [arg-type]',
    ]
