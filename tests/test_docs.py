"""The pages under docs/: formulas are well formed, files and links are there; Python and commands of some run.

Those of the other pages are checked in tests/test_readme.py.
"""

import contextlib
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import typing_extensions
from matplotlib.mathtext import MathTextParser

from ifloo.__main__ import main
from ifloo.data import protocol as data_contract
from ifloo.objective import protocol as model_contract
from tests.cli.running import CHECKOUT, call
from tests.conftest import LONG
from tests.test_readme import README, RUN, check

PAGES = sorted((CHECKOUT / "docs").glob("*.md"))
ADDING = CHECKOUT / "docs" / "adding.md"
BESIDE = [README, CHECKOUT / "CHANGELOG.md", CHECKOUT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+)\.(py|yaml)\n")  # the first line of a block that is a whole file
FORMULA = re.compile(r"\$([^$\n]+)\$")
LONGEST = {"adding": 440, "mathematics": 460}  # lines; others 200

ROOM = {
    "counts": "data",
    "poisson": "models",
    "steepest": "solvers",
    "fisher": "curvature",
    "output_kernel": "attribution",
}
"""Room of ifloo in which the page about additions says to put each of its files."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block, in order."""
    return BLOCK.findall(page.read_text())


def prose(page: Path) -> str:
    return re.sub(r"`[^`\n]+`", "", BLOCK.sub("", page.read_text()))


def formulas(page: Path) -> list[str]:
    return FORMULA.findall(prose(page)) + [text.strip() for language, text in blocks(page) if language == "math"]


def run_python(page: Path, text: str, names: dict[str, object]) -> None:
    """A whole file is imported, anything else run with what the blocks before it left."""
    if file := FILE.match(text):
        importlib.invalidate_caches()
        importlib.import_module(file[1])
        return
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, page.name, "exec"), names)


def run_command(line: str, folder: Path) -> None:
    words = [word for word in shlex.split(line) if word != "PYTHONPATH=."]
    if words[:3] == ["python", "-m", "pytest"]:
        assert (CHECKOUT / words[3]).exists(), f"{words[3]} is not there"
        return
    assert words[0] == "ifloo", f"a page shows a command that no test knows: {line}"
    outcome = call(main, folder, words[1:])
    assert outcome.code == 0, outcome.err


def test_pages_that_run_are_there():
    assert {page.stem for page in PAGES} >= {*RUN, *LONGEST}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in RUN], ids=lambda page: page.stem)
def test_a_page_does_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for language, text in blocks(page):
            if file := FILE.match(text):
                (tmp_path / f"{file[1]}.{file[2]}").write_text(text)
            if language == "python":
                run_python(page, text, names)
            for line in text.splitlines() if language == "bash" else []:
                run_command(line, tmp_path)
    finally:
        for path in tmp_path.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
def test_additions_pass_the_linter_of_the_project():
    """Each file as if it stood in its room, the other blocks as if they stood in the tests."""
    texts = [text for language, text in blocks(ADDING) if language == "python"]
    names = [FILE.match(text) for text in texts]
    assert {name[1] for name in names if name} == set(ROOM)
    for name, text in zip(names, texts, strict=True):
        place = f"ifloo/{ROOM[name[1]]}/{name[1]}.py" if name else "tests/block.py"
        for task in (["check", "--no-cache"], ["format", "--no-cache", "--diff"]):
            command = [sys.executable, "-m", "ruff", *task, "--stdin-filename", place, "-"]
            done = subprocess.run(command, cwd=CHECKOUT, input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{place}\n{done.stdout}{done.stderr}"


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_additions_pass_the_type_checker_of_the_project(tmp_path):
    for language, text in blocks(ADDING):
        if language == "python" and (file := FILE.match(text)):
            (tmp_path / f"{file[1]}.py").write_text(text)
    # The cache is that of the project, which its own check has filled; torch and Lightning take a minute to read.
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary"]
    command += [str(path) for path in sorted(tmp_path.glob("*.py"))]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("section", "contract", "every"),
    [("A dataset", data_contract, L.LightningDataModule), ("A model", model_contract, L.LightningModule)],
)
def test_the_table_of_a_contract_has_its_members(section, contract, every):
    """Those that every Lightning class has may be left out."""
    text = ADDING.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    tokenizer = set(re.findall(r"`tokenizer`.*`(eos)`.*`(decode)", text)[0]) if section == "A dataset" else set()
    classes = [c for _, c in inspect.getmembers(contract, inspect.isclass) if c.__module__ == contract.__name__]
    stated = {name for c in classes if typing_extensions.is_protocol(c) for name in _members(c)}
    stated |= {name for c in classes if c.__name__ == "ModelContract" for name in {*vars(c), *c.__annotations__}}
    stated = {{"__len__": "len"}.get(name, name) for name in stated if name == "__len__" or not name.startswith("_")}
    assert stated - set(dir(every)) <= named | tokenizer <= stated


def _members(protocol: type) -> frozenset[str]:
    return frozenset(typing_extensions.get_protocol_members(protocol))


@every_page
def test_formulas_are_well_formed(page):
    """By another reader of TeX than the one that shows the page: braces, commands and delimiters."""
    reader = MathTextParser("path")
    for formula in formulas(page):
        reader.parse(f"${formula}$")


@every_page
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`((?:ifloo|tests|configs|scripts)/[\w/.]+)`", page.read_text())
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def test_the_files_of_the_mathematics_are_there():
    """The last table names code and tests by file: the first one of a cell from its folder, others from any there."""
    text = (CHECKOUT / "docs" / "mathematics.md").read_text().partition("\n## 12.")[2]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ") and ".py`" in line]
    assert len(rows) > 8
    missing = []
    for _, code, tests in rows:
        for top, cell in (("ifloo", code), ("tests", tests)):
            folder = CHECKOUT / top
            for name in re.findall(r"`([\w/]+\.py|\w+/(?:\w+/)?)`", cell):
                if not any((place / name).exists() for place in (CHECKOUT / top, folder)):
                    missing.append(f"{top}/{name}")
                folder = (CHECKOUT / top / name).parent if "/" in name else folder
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_for_contributors_are_known(tmp_path):
    lines = [line for language, text in blocks(CHECKOUT / "CONTRIBUTING.md") for line in text.splitlines()]
    assert lines
    for line in lines:
        check(tmp_path, line)


@every_page
def test_a_page_is_short(page):
    assert len(page.read_text().splitlines()) <= LONGEST.get(page.stem, 200)
