"""Pages of the API reference, generated from the `__all__` of every package, so that no public name is missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.architecture import HOUSE

PACKAGE = Path(__file__).resolve().parents[2] / "ifloo"


@dataclass(frozen=True)
class Module:
    """A module with public names.

    Attributes:
        path: Dotted path, such as `ifloo.solvers`.
        summary: First paragraph of its docstring, without the number of its floor.
        names: Public names, in the order of the source.
    """

    path: str
    summary: str
    names: tuple[str, ...]

    @property
    def room(self) -> str:
        """Part of the path after `ifloo`, the name of the page."""
        return self.path.split(".")[1]

    @property
    def place(self) -> str:
        """Sentence that says on which floor the room is."""
        (floor,) = (floor for floor in HOUSE if self.room in floor.rooms)
        where = "In the wing" if floor.number is None else f"On floor {floor.number}"
        return f"{where} of the [architecture](../architecture.md)."


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
            found[dotted] = Module(dotted, _summary(tree), names)
    return list(found.values())


def pages() -> dict[str, str]:
    """Returns the text of each page by its path in the site: one page for each room, and an index of all names."""
    text: dict[str, list[str]] = {}
    index = "# API reference\n\nEvery public name of ifloo, by room. Units, shapes and errors stand with each name.\n"
    for module in modules():
        uri = f"{module.room}.md"
        heading = f"# {module.path}\n\n{module.summary} {module.place}\n"
        if uri in text:  # a package inside the room
            heading = f"## {module.path}\n\n{module.summary}\n"
        text.setdefault(uri, []).append(heading)
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


def _summary(tree: ast.Module) -> str:
    first = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    text = re.sub(r"^Floor \d+: ", "", first)
    return text[:1].upper() + text[1:]


def _public(tree: ast.Module, whole: bool) -> list[str]:
    """Returns the names in `__all__`; without it, the public classes and functions if the module is `whole`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree.body if whole and isinstance(node, kinds) and not node.name.startswith("_")]
