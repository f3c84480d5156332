"""The house has floors: a module imports from floors below only. And its rooms stay small."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from scripts.architecture import (
    DOORS,
    FLOORS,
    HOUSE,
    PACKAGE,
    PLAIN,
    ROOT,
    THEMES,
    WING,
    WING_SEES,
    essential,
    imports_of,
    picture,
    room_of,
)

SOURCES = sorted(PACKAGE.rglob("*.py"))


def _may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in WING:
        return FLOORS.get(other, 99) <= WING_SEES
    if other in WING:
        return FLOORS[room] > PLAIN
    return FLOORS[other] < FLOORS[room] or (FLOORS[room] == 0 and other == "errors")


def _name(room: str) -> str:
    return f"{room} (floor {FLOORS.get(room, 'W')})"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room, where, wrong = room_of(path), path.relative_to(PACKAGE), []
    if room in DOORS:
        pytest.skip("the doors are held by the tests of their own below")
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "ifloo" and len(parts) > 1 and not _may_import(room, parts[1]):
            wrong.append(f"{where}:{line}: {_name(room)} imports {_name(parts[1])}")
        if parts[0] in ("lightning", "pytorch_lightning") and FLOORS.get(room, 99) <= PLAIN:
            wrong.append(f"{where}:{line}: {_name(room)} imports Lightning")
    assert not wrong, "\n".join(wrong)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported_modules(path: Path, modules: set[str]) -> Iterator[str]:
    """The files behind the imports: `from ifloo.store import ids` is of the file `ids`, not of the room."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            files = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (file if file in modules else node.module for file in files)


def test_no_two_files_import_each_other():
    """Imports inside functions count too: they hide a circle and do not open it."""
    modules = {_module(path) for path in SOURCES}
    graph = {_module(path): modules.intersection(_imported_modules(path, modules)) for path in SOURCES}
    TopologicalSorter(graph).prepare()  # a CycleError names the files of a circle


def test_every_room_has_a_floor():
    rooms = {room_of(p) for p in SOURCES} - set(DOORS)
    assert rooms <= set(FLOORS) | WING, f"give {rooms - set(FLOORS) - WING} a floor in scripts/architecture.py"
    assert rooms == set(FLOORS) | WING, f"there is no room {(set(FLOORS) | WING) - rooms}"


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_is_of_these_imports(theme):
    committed = (ROOT / "docs" / f"architecture_{theme}.svg").read_text()
    assert committed == picture(THEMES[theme]), "draw it again: python -m scripts.architecture"


def test_the_picture_leaves_out_what_other_arrows_say():
    assert essential({("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}) == [("a", "b"), ("a", "d"), ("b", "c")]


def test_contributors_see_these_floors():
    rows = [f"| {floor.title} | {', '.join(f'`{room}`' for room in floor.rooms)} | {floor.knows} |" for floor in HOUSE]
    table = "\n".join(rows)
    assert table in (ROOT / "CONTRIBUTING.md").read_text(), f"its table of floors should be\n{table}"


@pytest.mark.parametrize("door", ["ifloo", "ifloo.__main__"])
def test_the_doors_are_light(door):
    """`--version` and `--help` must not wait for torch."""
    heavy = ("torch", "lightning", "numpy", "scipy", "matplotlib", "jsonargparse")
    code = f"import sys, {door}; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    ["ifloo.attribution", "ifloo.agreement", "ifloo.store", "ifloo.verdict", "ifloo.minimize", "ifloo.solvers"],
)
def test_floors_to_six_load_no_lightning_and_draw_nothing(module):
    heavy = ("lightning", "pytorch_lightning", "matplotlib", "tensorboard")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


OWN = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]


@pytest.mark.parametrize("path", OWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_stay_small(path):
    text = path.read_text()
    long = [f"{len(text.splitlines())} lines in the file"] if len(text.splitlines()) > 400 else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            long += [f"line {node.lineno}: {lines} lines in {node.name}"] if lines >= 50 else []
    assert not long, f"{path.relative_to(ROOT)}: " + "; ".join(long)


def test_no_room_for_odds_and_ends():
    assert not [p for p in SOURCES if p.stem in ("utils", "helpers", "misc", "common")]


# Each file here is a method, or a ranking, of its own: a leaf that is read alone.
METHODS = (
    "influence_function",
    "gradient_cosine",
    "gradient_dot",
    "analytic_loo",
    "leverage",
    "one_step",
    "random_scores",
    "self_influence",
    "tracin",
    "unrolled",
)


def _defines_a_method(path: Path) -> bool:
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return any(isinstance(base, ast.Name) and base.id == "Method" for node in classes for base in node.bases)


def test_methods_of_attribution_are_leaves():
    room = PACKAGE / "attribution"
    assert {p.stem for p in room.glob("*.py") if _defines_a_method(p)} <= set(METHODS)
    wrong = [
        f"{path.name}:{line}: imports {name}"
        for path in sorted(room.glob("*.py"))
        for line, name in imports_of(path)
        if path.stem != "__init__" and name.removeprefix("ifloo.attribution.") in METHODS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_docstring_that_names_a_floor_names_its_own(path):
    named = re.match(r"Floor (\d+):", ast.get_docstring(ast.parse(path.read_text())) or "")
    assert named is None or int(named[1]) == FLOORS[room_of(path)]
