"""Rooms speak to each other through typed contracts: how often the code leaves them is counted, and held."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ifloo"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Uses allowed in 1,000 lines.
MARKS = {"Any": 4.0, "getattr or hasattr": 1.5, "cast": 0.1, "type: ignore": 2.1}
# Ways to an attribute by its name that are not called getattr.
STAND_INS = {"attrgetter", "methodcaller", "getattr_static", "__getattribute__", "vars", "__dict__"}
INTROSPECTION = {
    "ifloo.data.second_setup": "looks for data sets and tensors that a data module holds, whatever their names",
    "ifloo.data.subset_rows": "looks for data sets that a data set holds, whatever their names",
    "ifloo.store.groups": "its own fields, as keys of a line",
    "ifloo.store.removals": "its own fields, as arrays of a file",
    "ifloo.store.self_influence": "its own fields, as arrays of a file",
    "ifloo.data.adapted": "its own state, for pickle",
    "ifloo.doctor.forward_trace": "looks for tensors that a layer keeps as attributes, whatever their names",
    "ifloo.objective.causes": "looks for numbers and tensors that a layer keeps as attributes, whatever their names",
    "ifloo.objective.forms": "looks for tensors that a batch of a user's class holds, whatever their names",
    "ifloo.objective.layout": "the same, of batches that it compares",
    "ifloo.objective.exact_kernels": "exchanges functions of torch, of which some versions have none",
    "ifloo.objective.traced": "exchanges a function of transformers, of which some versions have none",
    "ifloo.objective.kept_state": "what a user's layer keeps of a pass as attributes, whatever their names",
    "ifloo.objective.silence": "the states of a torchmetrics metric, whatever their names",
    "ifloo.refit.newton_finish": "its own state, for pickle",
    "ifloo.refit.refitter": "the names of the hooks of a Lightning callback",
    "ifloo.stages.isolation": "looks for data sets and random generators that a module holds, whatever their names",
}


@cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def _mentions(node: ast.AST, names: frozenset[str] | set[str]) -> int:
    """How often one of these names is read, also as an attribute of a module."""
    return sum(
        (isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and part.id in names)
        or (isinstance(part, ast.Attribute) and part.attr in names)
        for part in ast.walk(node)
    )


def _annotations(tree: ast.Module) -> Iterator[ast.expr | None]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            a = node.args
            yield from (one.annotation for one in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if one)
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield from (node.annotation, node.value)


def _in_quotes(tree: ast.Module) -> Iterator[ast.expr]:
    """What annotations have in quotes: names of types; shapes of tensors, too, if they happen to be expressions."""
    for annotation in filter(None, _annotations(tree)):
        for part in ast.walk(annotation):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                try:
                    yield ast.parse(part.value, mode="eval").body
                except SyntaxError:  # "b *c"
                    continue


def _aliases(tree: ast.Module, names: set[str]) -> set[str]:
    """Types of this file with an Any in them: `X = Any`, `X: TypeAlias = dict[str, Any]`."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(
            node.value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Constant)
        ):
            quoted = isinstance(node.value, ast.Constant) and re.search(r"\bAny\b", str(node.value.value))
            if quoted or _mentions(node.value, names):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Module, name there and name here; imports of this project are absolute (ruff holds them so)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from ((node.module or "", one.name, one.asname or one.name) for one in node.names)


def names_of_any(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The names that mean Any, or a type with Any in it, in each file."""
    names = {module: {"Any"} for module in (*sources, "typing", "typing_extensions")}
    before = 0
    while before != (before := sum(map(len, names.values()))):  # an alias may be imported, and be part of another
        for module, text in sources.items():
            tree = _tree(text)
            names[module] |= {here for base, there, here in _imported(tree) if there in names.get(base, ())}
            names[module] |= _aliases(tree, names[module])
    return names


def uses_of_any(sources: Mapping[str, str]) -> dict[str, int]:
    """Uses of Any and of its aliases; imports are none, and the definition of an alias is one."""
    names = names_of_any(sources)
    return {
        module: _mentions(_tree(text), names[module])
        + sum(_mentions(x, names[module]) for x in _in_quotes(_tree(text)))
        for module, text in sources.items()
    }


def calls(*functions: str) -> Callable[[Mapping[str, str]], dict[str, int]]:
    """Counts calls of functions, by their names or as attributes of a module."""

    def counted(text: str) -> int:
        called = [node.func for node in ast.walk(_tree(text)) if isinstance(node, ast.Call)]
        named = {*functions, *(here for _, there, here in _imported(_tree(text)) if there in functions)}
        return sum(
            (isinstance(one, ast.Name) and one.id in named)
            or (isinstance(one, ast.Attribute) and one.attr in functions and ast.unparse(one.value) in _MODULES)
            for one in called
        )

    return lambda sources: {module: counted(text) for module, text in sources.items()}


_MODULES = {"typing", "typing_extensions", "builtins"}


def ignores(sources: Mapping[str, str]) -> dict[str, int]:
    """Comments that switch the type checker off."""

    def counted(text: str) -> int:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return sum(t.type == tokenize.COMMENT and bool(re.search(r"type:\s*ignore", t.string)) for t in tokens)

    return {module: counted(text) for module, text in sources.items()}


COUNTED: dict[str, Callable[[Mapping[str, str]], dict[str, int]]] = {
    "Any": uses_of_any,
    "getattr or hasattr": calls("getattr", "hasattr"),
    "cast": calls("cast"),
    "type: ignore": ignores,
}


@pytest.mark.parametrize("what", MARKS)
def test_contracts_are_typed(what):
    counts = COUNTED[what](SOURCES)
    lines = sum(len(text.splitlines()) for text in SOURCES.values())
    most = sorted(counts.items(), key=lambda item: -item[1])[:12]
    per_thousand = 1000 * sum(counts.values()) / lines
    assert per_thousand <= MARKS[what], (
        f"{sum(counts.values())} of {what} in {lines:,} lines are {per_thousand:.2f} in 1,000, allowed are "
        f"{MARKS[what]}. Most: {', '.join(f'{module} {count}' for module, count in most)}"
    )


def stand_ins(text: str) -> list[str]:
    """Where a file gets at attributes by name without getattr, or takes an AttributeError for an answer."""
    found = []
    for node in ast.walk(_tree(text)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if name in STAND_INS:
            found.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.ExceptHandler) and node.type and _mentions(node.type, {"AttributeError"}):
            found.append(f"line {node.lineno}: except AttributeError")
        if isinstance(node, ast.Call) and any(isinstance(a, ast.Name) and a.id == "AttributeError" for a in node.args):
            found.append(f"line {node.lineno}: AttributeError suppressed")
    return found


@pytest.mark.parametrize("module", [m for m in SOURCES if m not in INTROSPECTION])
def test_no_stand_ins_for_getattr(module):
    assert not stand_ins(SOURCES[module]), f"{module}: {stand_ins(SOURCES[module])}"


@pytest.mark.parametrize("room", ["params", "errors", "objective", "gradients", "curvature"])
def test_the_mathematics_asks_for_no_attribute_by_string(room):
    sources = {m: text for m, text in SOURCES.items() if m.split(".")[1:2] == [room]}
    assert sources
    assert sum(COUNTED["getattr or hasattr"](sources).values()) == 0


ALIASES = """
from typing import Any as Whatever
Batch = Whatever
Table = dict[str, Batch]
def f(x: Batch) -> 'Table': ...
"""
IMPORTED = """
import typing
from a import Table as T
def g(x: T, y: typing.Any) -> 'list[T]': ...
h: T = g
"""
QUOTED = """
# Any
'Any'
x: int = 3  # type: ignore[assignment]
y = '# type: ignore'
"""
CALLS = """
import typing
from typing import cast as c
c(int, 3)
typing.cast(int, 3)
view.cast('B')
getattr(x, 'y')
"""
AROUND = """
vars(x)
x.__dict__
attrgetter('y')
try: ...
except (KeyError, AttributeError): ...
with suppress(AttributeError): ...
"""


def test_the_counters_count():
    sources = {"a": ALIASES, "b": IMPORTED, "c": QUOTED}
    assert uses_of_any(sources) == {"a": 4, "b": 4, "c": 0}
    assert ignores(sources) == {"a": 0, "b": 0, "c": 1}
    assert calls("cast")({"d": CALLS}) == {"d": 2}
    assert calls("getattr", "hasattr")({"d": CALLS}) == {"d": 1}
    assert sorted(stand_ins(AROUND)) == [
        "line 2: vars",
        "line 3: __dict__",
        "line 4: attrgetter",
        "line 6: except AttributeError",
        "line 7: AttributeError suppressed",
    ]
