"""Pages of the API reference, generated from the `__all__` of every package, so that no public name is missing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ifloo"


@dataclass(frozen=True)
class Module:
    """A module with public names.

    Attributes:
        path: Dotted path, such as `ifloo.solvers`.
        summary: First paragraph of its docstring.
        names: Public names, in the order of the source.
    """

    path: str
    summary: str
    names: tuple[str, ...]

    @property
    def room(self) -> str:
        """Part of the path after `ifloo`, the name of the page."""
        return self.path.split(".")[1]


def modules() -> list[Module]:
    """Lists packages at any depth that define `__all__`, and the modules directly under `ifloo`, by path.

    A name that an outer package exports too is listed there only.
    """
    found: dict[str, Module] = {}
    for path in sorted(_sources(), key=_dotted):
        dotted, tree = _dotted(path), ast.parse(path.read_text())
        outer = {name for other in found.values() if dotted.startswith(f"{other.path}.") for name in other.names}
        names = tuple(name for name in _public(tree, path.name != "__init__.py") if name not in outer)
        if names:
            summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            found[dotted] = Module(dotted, summary, names)
    return list(found.values())


def pages() -> dict[str, str]:
    """Returns the text of each page by its path in the site: one page for each room, and an index of all names."""
    text: dict[str, list[str]] = {}
    index = "# API reference\n\nEvery public name of ifloo, by room. Units, shapes and errors stand with each name.\n"
    for module in modules():
        uri = f"{module.room}.md"
        level = 1 if uri not in text else 2
        text.setdefault(uri, []).append(f"{'#' * level} {module.path}\n\n{module.summary}\n")
        text[uri] += [f"::: {module.path}.{name}\n" for name in module.names]
        links = ", ".join(f"[`{name}`]({uri}#{module.path}.{name})" for name in module.names)
        index += f"\n## [{module.path}]({uri})\n\n{module.summary}\n\n{links}\n"
    return {"api/index.md": index} | {f"api/{uri}": "\n".join(parts) for uri, parts in text.items()}


def _sources() -> Iterator[Path]:
    yield from (path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
    yield from (path for path in PACKAGE.glob("*.py") if not path.name.startswith("_"))


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _public(tree: ast.Module, whole: bool) -> list[str]:
    """Returns the names in `__all__`; without it, the public classes and functions if the module is `whole`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if whole and isinstance(node, kinds) and not node.name.startswith("_")]
