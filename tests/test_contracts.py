"""Rooms speak to each other through typed contracts: how often the code may leave them is counted, and held."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ifloo"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Uses per 1,000 lines. In comments: what was counted when the mark was set.
MARKS = {
    "Any": 4.0,
    "getattr and hasattr": 1.5,
    "cast": 0.1,
    "type: ignore": 2.1,
}

# Attributes by name without getattr, and errors of a missing one taken for an answer.
STAND_INS = {"attrgetter", "methodcaller", "getattr_static", "__getattribute__", "vars", "__dict__"}

# Code that goes through whatever an object holds, without asking for a member by name.
INTROSPECTION = {
    "objective/trial.py",  # which tensors a layer keeps as attributes, to see whether a pass changes them
    "stages/aside.py",  # which data sets and random generators a module or a data set holds, to leave them alone
}

Module = str  # dotted name


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _name(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = (
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            )
            yield from (a.annotation for a in arguments if a is not None and a.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def _quoted(tree: ast.Module) -> Iterator[ast.expr]:
    """Annotations, and parts of them, that stand in quotes; shapes of tensors do too, and are no expressions."""
    for annotation in _annotations(tree):
        for part in ast.walk(annotation):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                try:
                    yield ast.parse(part.value, mode="eval").body
                except SyntaxError:
                    continue


def _mentions(node: ast.AST, names: set[str]) -> int:
    """How often an expression uses one of these names, also as an attribute of a module."""
    return sum(
        (isinstance(part, ast.Name) and part.id in names) or (isinstance(part, ast.Attribute) and part.attr in names)
        for part in ast.walk(node)
    )


def _aliases(tree: ast.Module, known: set[str]) -> set[str]:
    """Names of this file that stand for a type with an Any in it: `X = Any`, `X: TypeAlias = dict[str, Any]`."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        elif isinstance(node, ast.TypeAlias) if hasattr(ast, "TypeAlias") else False:
            targets, value = [node.name], node.value
        else:
            continue
        is_type = isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp))
        if is_type and _mentions(value, known):
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _imported(tree: ast.Module, module: Module, is_package: bool) -> Iterator[tuple[Module, str, str]]:
    """Module, name there and name here of everything imported by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package and node.level == 1 else -node.level or None]
            base = ".".join([*parents, *([node.module] if node.module else [])]) if node.level else node.module or ""
            for alias in node.names:
                yield base, alias.name, alias.asname or alias.name


@cache
def _any_names() -> dict[Module, frozenset[str]]:
    """The names that mean Any in each file, found until no file adds another."""
    trees = {_name(path): (_tree(path), path.stem == "__init__") for path in SOURCES}
    names: dict[Module, set[str]] = {module: set() for module in trees}
    names["typing"] = names["typing_extensions"] = {"Any"}
    before = -1
    while before != (before := sum(map(len, names.values()))):
        for module, (tree, is_package) in trees.items():
            for base, there, here in _imported(tree, module, is_package):
                if there in names.get(base, ()):
                    names[module].add(here)
            names[module] |= _aliases(tree, names[module] | {"Any"})
    return {module: frozenset(found) for module, found in names.items()}


def _uses_of_any(path: Path) -> int:
    """Imports are no use, and the definition of an alias is one."""
    tree, names = _tree(path), set(_any_names()[_name(path)]) | {"Any"}
    defined = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    stored = sum(isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id in names for n in ast.walk(tree))
    assert stored <= len(defined | names)
    return _mentions(tree, names) - stored + sum(_mentions(part, names) for part in _quoted(tree))


def _calls(path: Path, names: set[str]) -> int:
    return sum(isinstance(node, ast.Call) and _mentions(node.func, names) > 0 for node in ast.walk(_tree(path)))


def _ignores(path: Path) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return sum(t.type == tokenize.COMMENT and re.search(r"type:\s*ignore", t.string) is not None for t in tokens)


COUNTED = {
    "Any": _uses_of_any,
    "getattr and hasattr": lambda path: _calls(path, {"getattr", "hasattr"}),
    "cast": lambda path: sum(
        isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)) and _is_cast(node.func)
        for node in ast.walk(_tree(path))
    ),
    "type: ignore": _ignores,
}


def _is_cast(called: ast.Name | ast.Attribute) -> bool:
    """`cast(...)` or `typing.cast(...)`; not the method of a buffer."""
    if isinstance(called, ast.Name):
        return called.id == "cast"
    return called.attr == "cast" and isinstance(called.value, ast.Name) and called.value.id.startswith("typing")
