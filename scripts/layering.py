"""Layout of a layered drawing with few crossings and mostly straight lines (Sugiyama, Tagawa & Toda 1981)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

Edge = tuple[str, str]
Chain = tuple[str, ...]  # a line as the names of the places it passes, one in every layer between its ends
SWEEPS = 40


@dataclass(frozen=True)
class Layers:
    """Names of boxes and of the places that lines pass, layer by layer from the top and from left to right.

    Attributes:
        rows: Names in each layer.
        chains: Lines from a box to one in a lower layer.
    """

    rows: list[list[str]]
    chains: list[Chain]

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], lines: Sequence[Edge]) -> Layers:
        """Orders boxes and the downward lines between them so that few lines cross."""
        row = {name: r for r, names in enumerate(rows) for name in names}
        passing = {line: range(row[line[0]] + 1, row[line[1]]) for line in lines if row[line[0]] < row[line[1]]}
        chains = [(a, *(f"{a}>{b}@{r}" for r in passed), b) for (a, b), passed in passing.items()]
        filled = [
            [*names, *(f"{a}>{b}@{r}" for (a, b), p in passing.items() if r in p)] for r, names in enumerate(rows)
        ]
        return cls(_untangled(_sorted(filled, chains), chains), chains)

    def positions(self, widths: Mapping[str, float], gap: float, left: float, right: float) -> dict[str, float]:
        """Computes the centre of each name, as near to the mean of the names joined to it as its neighbours allow.

        Args:
            widths: Width of each box; 0 for the other names.
            gap: Space between neighbours.
            left: Left end of the layers.
            right: Right end of the layers.
        """
        beside = _beside(self.chains)
        at = {n: left + (right - left) * (i + 0.5) / len(names) for names in self.rows for i, n in enumerate(names)}
        for sweep in range(2 * SWEEPS):
            for names in self.rows if sweep % 2 else self.rows[::-1]:
                wishes = [_mean(at, beside.get(name, [name])) for name in names]
                half = [widths.get(name, 0) / 2 for name in names]
                apart = [a + b + gap for a, b in pairwise(half)]
                at |= dict(zip(names, _spread(wishes, apart, left + half[0], right - half[-1]), strict=True))
        return at


def _beside(chains: Sequence[Chain]) -> dict[str, list[str]]:
    """Lists the names that each name is joined to."""
    found: dict[str, list[str]] = {}
    for chain in chains:
        for a, b in pairwise(chain):
            found.setdefault(a, []).append(b)
            found.setdefault(b, []).append(a)
    return found


def _mean(at: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(at[name] for name in names) / len(names)


def _sorted(rows: list[list[str]], chains: Sequence[Chain]) -> list[list[str]]:
    """Sorts the rows by the means of the names joined to each; returns the best order of many sweeps."""
    beside = _beside(chains)
    at = {name: (i + 0.5) / len(names) for names in rows for i, name in enumerate(names)}
    best, fewest = rows, _crossings(rows, chains)
    for sweep in range(SWEEPS):
        rows = [list(names) for names in rows]
        for names in rows if sweep % 2 else rows[::-1]:
            key = {name: (_mean(at, beside.get(name, [name])), name) for name in names}
            names.sort(key=key.__getitem__)
            at |= {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        if (crossings := _crossings(rows, chains)) < fewest:
            best, fewest = rows, crossings
    return best


def _untangled(rows: list[list[str]], chains: Sequence[Chain]) -> list[list[str]]:
    """Swaps two names of a row as long as a swap lowers the number of crossings."""
    fewest, improved = _crossings(rows, chains), True
    while improved:
        improved = False
        for names in rows:
            for i, k in combinations(range(len(names)), 2):
                names[i], names[k] = names[k], names[i]
                if (crossings := _crossings(rows, chains)) < fewest:
                    fewest, improved = crossings, True
                else:
                    names[i], names[k] = names[k], names[i]
    return rows


def _crossings(rows: list[list[str]], chains: Sequence[Chain]) -> int:
    """Counts the pairs of lines that cross between two layers."""
    at = {name: (r, i) for r, names in enumerate(rows) for i, name in enumerate(names)}
    spans: dict[int, list[tuple[int, int]]] = {}
    for chain in chains:
        for a, b in pairwise(chain):
            spans.setdefault(at[a][0], []).append((at[a][1], at[b][1]))
    return sum((a - c) * (b - d) < 0 for one in spans.values() for (a, b), (c, d) in combinations(one, 2))


def _spread(wishes: Sequence[float], apart: Sequence[float], left: float, right: float) -> list[float]:
    """Returns positions near the wishes, in their order, at least `apart` from each other and between two bounds."""
    up, down = [max(wishes[0], left)], [min(wishes[-1], right)]
    for wish, step in zip(wishes[1:], apart, strict=True):
        up.append(max(wish, up[-1] + step))
    for wish, step in zip(wishes[-2::-1], apart[::-1], strict=True):
        down.append(min(wish, down[-1] - step))
    found = [(a + b) / 2 for a, b in zip(up, down[::-1], strict=True)]
    found[-1] = min(found[-1], right)
    for i in range(len(found) - 2, -1, -1):
        found[i] = min(found[i], found[i + 1] - apart[i])
    found[0] = max(found[0], left)
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + apart[i - 1])
    return found
