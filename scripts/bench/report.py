"""Output of rows as a Markdown table, as JSON, and as a bar chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.task import Row
from ifloo.report.figures.style import CONTROL, HELPFUL, QUIET, styled
from ifloo.store import replacing

Form = Callable[[Any], str]
COLUMNS: dict[str, tuple[str, Form]] = {
    "work": ("work", str),
    "method": ("method", str),
    "wall_s": ("wall s", lambda v: f"{v:.3g}" if v < 100 else f"{v:,.0f}"),
    "cpu_s": ("cpu s", lambda v: f"{v:.3g}" if v < 100 else f"{v:,.0f}"),
    "peak_rss_gb": ("peak GiB", lambda v: f"{v:.2f}"),
    "pearson": ("Pearson", lambda v: f"{v:.6g}"),
    "slope": ("slope", lambda v: f"{v:.5g}"),
    "max_rel_err": ("max rel. err.", lambda v: f"{v:.1e}"),
    "residual": ("residual", lambda v: f"{v:.1e}"),
    "gemm_gflops": ("GFLOP/s", lambda v: f"{v:.0f}"),
    "n": ("n", lambda v: f"{v:,}"),
    "dtype": ("dtype", str),
    "scaled_from": ("scaled from", str),
    "": ("note", str),
}
NOTED: dict[str, Form] = {
    "median_rel_err": lambda v: f"median error {v:.3%}",
    "slope_corrected": lambda v: f"corrected: slope {v:.5f}",
    "median_rel_err_corrected": lambda v: f"median error {v:.3%}",
    "compared_on": lambda v: "" if v == 1 else f"compared on {v} tests",
    "write_s": lambda v: f"writing {v:.3g} s",
    "ratio_to_bound": lambda v: f"(wall - writing) / bound = {v:.2f}",
    "peak_device_gb": lambda v: f"peak on device {v:.2f} GiB",
    "exponent": lambda v: f"time ~ n^{v:.2f}",
    "last_exponent": lambda v: f"between the two largest n^{v:.2f}",
    "rss_exponent": lambda v: f"memory ~ n^{v:.2f}",
}
PANEL_WIDTH, BAR = 8.0, 0.28  # inches


def save(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows atomically as a JSON array; called after each row, so that a killed run keeps its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(list(rows), indent=1) + "\n").encode())


def markdown(rows: Sequence[Row]) -> str:
    """Returns a table of the rows in the order they were measured, below the names of the machines."""
    machines = dict.fromkeys(row["machine"] for row in rows if row.get("machine"))
    lines = [*(f"Measured on {m}." for m in machines), "", _line([title for title, _ in COLUMNS.values()])]
    lines.append("|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = {key: form(row[key]) for key, (_, form) in COLUMNS.items() if row.get(key) is not None}
        lines.append(_line([cells.get(key, "") if key else _note(row) for key in COLUMNS]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _note(row: Row) -> str:
    if row["error"] or row["skipped"]:
        return f"FAILED: {row['error']}" if row["error"] else f"skipped: {row['skipped']}"
    found = [form(row[key]) for key, form in NOTED.items() if row.get(key) is not None]
    return "; ".join(filter(None, [row["note"], *found]))


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Draws seconds by method, one panel per work, on one logarithmic scale; returns False if no row can be drawn."""
    works: dict[str, list[Row]] = {}
    for row in rows:
        if row["wall_s"] and row["work"] in ("T1", "T100", "T10000", "R500"):
            works.setdefault(_panel(row), []).append(row)
    if not works:
        return False
    heights = [len(found) + 1.5 for found in works.values()]
    with styled(PANEL_WIDTH, BAR * sum(heights) + 0.7) as figure:
        panels = figure.subplots(len(works), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for panel, (work, found) in zip(panels, works.items(), strict=True):
            _bars(panel, work, sorted(found, key=lambda r: r["wall_s"]))
        seconds = [row["wall_s"] for found in works.values() for row in found]
        panels[0].set_xlim(min(seconds) / 2, max(seconds) * 30)  # space for the text right of a bar
        panels[-1].set_xlabel("seconds after data are loaded (logarithmic); pale: some units timed, the rest scaled")
        figure.savefig(path, dpi=150)
    return True


def _panel(row: Row) -> str:
    return f"{row['work']}, n = {row['n']:,}"


def _bars(panel: Any, work: str, rows: list[Row]) -> None:
    colours = [QUIET if r["method"].startswith("bound") else HELPFUL if _ours(r) else CONTROL for r in rows]
    bars = panel.barh([r["method"] for r in rows], [r["wall_s"] for r in rows], color=colours, height=0.7)
    for bar, row in zip(bars, rows, strict=True):
        bar.set_alpha(0.45 if row["scaled_from"] else 1.0)
        error = "" if row["max_rel_err"] is None else f"   error {row['max_rel_err']:.0e}"
        if row["work"] == "R500":
            error = f"   |grad J| {row['residual']:.0e}"
        label = f" {row['wall_s']:,.3g} s{error}" if row["wall_s"] < 1000 else f" {row['wall_s']:,.0f} s{error}"
        panel.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=9)
    panel.set_xscale("log")
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set_title(work)


def _ours(row: Row) -> bool:
    name: str = row["method"]
    return name.startswith("ifloo")
