"""Table of the layers of the package, and a picture of them drawn from the imports: docs/architecture_{light,dark}.svg.

python -m scripts.architecture

`HOUSE` is the only table of rooms (packages) and floors (layers); tests/test_floors.py checks the imports against it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from scripts.layering import Chain, Edge, Layers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ifloo"
DOORS = ("__init__", "__main__")  # entry points of the package; not rooms


@dataclass(frozen=True)
class Floor:
    """Rooms that do not import each other and import only from floors below.

    Attributes:
        number: Height of the floor; None for the wing, which imports floors 0 and 1 and is imported by the floors
            above its row.
        rooms: Names of packages or modules directly under `ifloo`.
        knows: Short description of the rooms' content.
    """

    number: int | None
    rooms: tuple[str, ...]
    knows: str

    @property
    def title(self) -> str:
        """Name of the floor in tables and pictures."""
        return "wing" if self.number is None else str(self.number)


HOUSE = (  # from the top
    Floor(9, ("cli",), "wiring of the commands; hands reporters to stages"),
    Floor(8, ("doctor", "report"), "what stands between a model and scores that hold; how results are shown"),
    Floor(7, ("stages", "refit"), "the engine in a Trainer; refits through Trainers"),
    Floor(None, ("models", "data"), "modules and data modules; see floors 0 and 1 only, are used by 7 to 9"),
    Floor(6, ("verdict",), "predicted against actual changes: the published number"),
    Floor(5, ("agreement", "store"), "statistics; files, manifests, resuming"),
    Floor(4, ("attribution", "minimize"), "from queries to scores; minimisers of J"),
    Floor(3, ("solvers",), "an operator, never a model"),
    Floor(2, ("gradients", "curvature"), "derivatives of J as vectors and operators"),
    Floor(1, ("objective",), "J(θ; w), batches, facts about layers, preflight"),
    Floor(
        0, ("params", "errors", "progress", "termination", "former_names"), "names and flat vectors; failures; progress"
    ),
)
FLOORS = {room: floor.number for floor in HOUSE if floor.number is not None for room in floor.rooms}
WING = {room for floor in HOUSE if floor.number is None for room in floor.rooms}
WING_SEES = 1  # highest floor that the wing imports
PLAIN = max(floor.number for floor in HOUSE[[f.number for f in HOUSE].index(None) :] if floor.number is not None)
"""Highest floor without Lightning: the one below the wing."""


def room_of(path: Path) -> str:
    """Returns the room of a source file: the first part of its path under `ifloo`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of each import of a file; relative imports are resolved."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) + "." if node.level else ""
            yield node.lineno, (base + (node.module or "")).rstrip(".")


def edges() -> set[Edge]:
    """Returns the pairs of rooms of which the first imports the second, downwards or on one floor."""
    row = {room: r for r, floor in enumerate(HOUSE) for room in floor.rooms}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for _, name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "ifloo" and len(parts) > 1:
                found.add((room_of(path), parts[1]))
    known = {(a, b) for a, b in found if a in row and b in row}
    return {(a, b) for a, b in known if a != b and row[a] <= row[b]}


def essential(imports: set[Edge]) -> list[Edge]:
    """Returns the imports that no chain of other imports implies: the transitive reduction."""
    below: dict[str, set[str]] = {}
    for a, b in imports:
        below.setdefault(a, set()).add(b)

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(lower) for lower in below.get(room, ())))

    return sorted((a, b) for a, b in imports if not any(b in reached(c) for c in below[a] if c != b))


class Theme(NamedTuple):
    """Colours of the picture."""

    text: str
    faint: str
    line: str
    box: str
    border: str
    band: str


THEMES = {
    "light": Theme("#1f2430", "#5b6472", "#8f98a8", "#eef2fb", "#5470b8", "#f6f7f9"),
    "dark": Theme("#e8eaf0", "#a9b0be", "#7d8698", "#2a3450", "#8ea6e6", "#23262f"),
}
WIDTH, LABELS, ROW, BOX, GAP = 960, 312, 76, 36, 20  # px
STYLE = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Place:
    """Position of a box, or of a line where it crosses a floor (width 0)."""

    x: float
    row: int
    width: float

    @property
    def top(self) -> float:
        """Upper edge, px."""
        return 16 + ROW * self.row + (ROW - BOX) / 2


def _places(layers: Layers) -> dict[str, Place]:
    """Computes all positions, spread to fill the space right of the labels."""
    widths = {room: 26 + 8.8 * len(room) for floor in HOUSE for room in floor.rooms}
    at = layers.positions(widths, GAP, LABELS, WIDTH - 16)
    low = min(x - widths.get(name, 0) / 2 for name, x in at.items())
    high = max(x + widths.get(name, 0) / 2 for name, x in at.items())
    scale, middle = min(1.6, (WIDTH - 16 - LABELS) / (high - low)), (LABELS + WIDTH - 16) / 2
    at = {name: middle + scale * (x - (low + high) / 2) for name, x in at.items()}
    return {name: Place(at[name], r, widths.get(name, 0)) for r, names in enumerate(layers.rows) for name in names}


def _arrow(chain: Chain, places: Mapping[str, Place], tips: Mapping[Edge, float]) -> str:
    """Returns the SVG path of a smooth line through the places of a chain."""
    start, end = places[chain[0]], places[chain[-1]]
    points = [(start.x + tips[chain[0], chain[1]], start.top + BOX)]
    for name in chain[1:-1]:
        points += [(places[name].x, places[name].top - 4), (places[name].x, places[name].top + BOX + 4)]
    points.append((end.x + tips[chain[-1], chain[-2]], end.top - 5))
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        path += f" C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    return path


def _tips(chains: list[Chain], places: Mapping[str, Place]) -> dict[Edge, float]:
    """Computes offsets of arrows along the edge of a box, so that they do not end at the same point."""
    ends: dict[tuple[str, bool], list[str]] = {}
    for chain in chains:
        ends.setdefault((chain[0], True), []).append(chain[1])
        ends.setdefault((chain[-1], False), []).append(chain[-2])
    tips: dict[Edge, float] = {}
    for (room, _), others in ends.items():
        others.sort(key=lambda name: places[name].x)
        step = min(14.0, 0.7 * places[room].width / max(1, len(others)))
        tips |= {(room, other): step * (i - (len(others) - 1) / 2) for i, other in enumerate(others)}
    return tips


def _labels(theme: Theme) -> Iterator[str]:
    for r, floor in enumerate(HOUSE):
        top = 16 + ROW * r
        if r % 2 == 0:
            yield f"<rect x='0' y='{top}' width='{WIDTH}' height='{ROW}' rx='6' fill='{theme.band}'/>"
        name = "wing" if floor.number is None else f"floor {floor.number}"
        yield f"<text x='16' y='{top + 33}' font-size='16' font-weight='600' fill='{theme.text}'>{name}</text>"
        yield f"<text x='16' y='{top + 53}' font-size='13.5' fill='{theme.faint}'>{escape(floor.knows)}</text>"


def picture(theme: Theme) -> str:
    """Returns the SVG in the colours of a theme."""
    row = {room: r for r, floor in enumerate(HOUSE) for room in floor.rooms}
    lines = essential(edges())
    layers = Layers.of([floor.rooms for floor in HOUSE], lines)
    chains, places = layers.chains, _places(layers)
    tips = _tips(chains, places)
    paths = [_arrow(chain, places, tips) for chain in chains]
    for a, b in lines:
        if row[a] == row[b]:
            (x, y), to = (places[a].x, places[a].top + BOX), places[b].x
            paths.append(f"M{x:.1f} {y:.1f} C{x:.1f} {y + 22:.1f} {to:.1f} {y + 22:.1f} {to:.1f} {y + 5:.1f}")
    height = 32 + ROW * len(HOUSE)
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' {STYLE}>",
        "<title>Rooms of ifloo by floor; arrows are imports</title>",
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='4' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0L8 4L0 8z' fill='{theme.line}'/></marker></defs>",
        *_labels(theme),
        *(
            f"<path d='{p}' fill='none' stroke='{theme.line}' stroke-width='1.3' marker-end='url(#tip)'/>"
            for p in paths
        ),
    ]
    for name, place in places.items():
        if place.width:
            left = place.x - place.width / 2
            out.append(
                f"<rect x='{left:.1f}' y='{place.top:.1f}' width='{place.width:.1f}' height='{BOX}' rx='6' "
                f"fill='{theme.box}' stroke='{theme.border}'/><text x='{place.x:.1f}' y='{place.top + 23:.1f}' "
                f"font-size='15' text-anchor='middle' fill='{theme.text}'>{name}</text>"
            )
    return "\n".join([*out, "</svg>", ""])


def main() -> int:
    """Writes the pictures.

    Returns:
        The exit code, 0.
    """
    for name, theme in THEMES.items():
        (ROOT / "docs" / f"architecture_{name}.svg").write_text(picture(theme))
    return 0


if __name__ == "__main__":
    sys.exit(main())
