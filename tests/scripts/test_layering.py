"""The layout of layered drawings: few crossings, no overlap, everything between the bounds."""

from itertools import pairwise

import pytest

from scripts.layering import Layers


def test_lines_that_need_not_cross_do_not():
    layers = Layers.of([["a", "b"], ["c", "d"]], [("a", "d"), ("b", "c")])
    upper, lower = layers.rows
    assert upper.index("a") - upper.index("b") == lower.index("d") - lower.index("c")


def test_a_line_has_a_place_in_every_layer_that_it_passes():
    layers = Layers.of([["a"], ["b"], ["c"]], [("a", "b"), ("a", "c")])
    assert layers.chains == [("a", "b"), ("a", "a>c@1", "c")]
    assert sorted(layers.rows[1]) == ["a>c@1", "b"]


def test_a_single_column_is_straight():
    at = Layers.of([["a"], ["b"], ["c"]], [("a", "b"), ("b", "c")]).positions({}, 10, 0, 100)
    assert at["a"] == pytest.approx(at["b"]) == pytest.approx(at["c"])


def test_neighbours_keep_their_distance_and_nothing_leaves_the_bounds():
    rows = [["top"], [f"m{i}" for i in range(6)], ["bottom"]]
    lines = [("top", name) for name in rows[1]] + [("m0", "bottom"), ("top", "bottom")]
    layers, widths = Layers.of(rows, lines), dict.fromkeys(["top", "bottom", *rows[1]], 40.0)
    at = layers.positions(widths, 10, 50, 450)
    for names in layers.rows:
        edges = [(at[name] - widths.get(name, 0) / 2, at[name] + widths.get(name, 0) / 2) for name in names]
        assert edges[0][0] >= 50 - 1e-9
        assert edges[-1][1] <= 450 + 1e-9
        assert all(b[0] - a[1] >= 10 - 1e-9 for a, b in pairwise(edges))
