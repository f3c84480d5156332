"""What the commands print at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifloo.agreement import Agreement
from ifloo.refit import Minimum
from ifloo.report import Comparison
from ifloo.store import CORRECTED, StoredInfluences

ROWS = 8
_NAMES = 16  # width of the column of names, unless a longer one is in it


def fitted(minimum: Minimum, metrics: Sequence[Mapping[str, float]], checkpoint: Path | None) -> None:
    """J, ‖∇J‖ and what was measured on test data."""
    measured = "  ".join(f"{name} = {value:.4f}" for one in metrics for name, value in one.items())
    print(f"fit: J = {minimum.value:.14f} nats  |grad J| = {minimum.grad_norm:.1e}  {measured}")
    if checkpoint:
        print(f"checkpoint: {checkpoint}")


def influence(stored: StoredInfluences, datamodule: Any) -> None:
    """The most helpful and harmful training samples of one test, and the certificate of the scores."""
    t, train = stored.test_id, datamodule.train_set
    order = np.argsort(stored.scores, kind="stable")
    print(f"\ntest {t} (label {datamodule.test_set.caption(t)}): influence in nats per unit weight")
    print(f"  {'most helpful':<32}{'most harmful':<32}")
    print(f"  {'id':>6}  {'label':<6}{'score':<18}{'id':>6}  {'label':<6}{'score':<18}")
    for low, high in zip(order[:ROWS], order[::-1][:ROWS], strict=True):
        cells = []
        for position in (low, high):
            i = int(stored.train_ids[position])
            cells.append(f"{i:>6}  {train.caption(i):<6}{stored.scores[position]:<+18.4e}")
        print("  " + "".join(cells))
    print(f"  certificate: {stored.status.lower().replace('_', ' ')} after {stored.steps} steps, {_residual(stored)}")


def _residual(stored: StoredInfluences) -> str:
    """How far the solve can be trusted, in words that keep the damped and the undamped system apart."""
    if stored.residual is None:
        return "no solve, no residual"
    bound = "of unknown error" if stored.error_bound is None else f"within {stored.error_bound:.1e}"
    if not stored.damping:
        return f"residual {stored.residual:.1e}, scores {bound}"
    return (
        f"residual {stored.residual:.1e} of the system damped by {stored.damping:g}, {stored.undamped_residual:.1e} of "
        f"the undamped one; scores {bound} of the damped solution"
    )


def verdict(compared: Mapping[int, Comparison]) -> None:
    """Predicted against actual change of each test loss: of the scores, and of each further method beside them."""
    for t, one in compared.items():
        further = {name: groups["all"] for name, groups in one.methods().items() if name != CORRECTED}
        width = max(_NAMES, *(len(name) for name in further), 0)
        print(f"\ntest {t}: predicted against actual change of its loss, removal {one.removal}")
        print(f"  {'refits':<{width}}{'n':>4}  {'Pearson':<29}{'Spearman':<29}{'slope':<29}median rel. error")
        groups = {"all": one.agreement(), "top-k": one.agreement(one.top), "random": one.agreement(one.control)}
        for name, found in one.methods().get(CORRECTED, {}).items():
            groups[f"corrected {name.replace('_', '-')}"] = found
        for name, found in groups.items():
            if found is not None:
                print(f"  {name:<{width}}{found.n:>4}  {_row(found)}")
        if further:
            print("  all of these refits, predicted by further methods")
        for name, found in further.items():
            told = f"{found.n:>4}  {_row(found)}" if found else f"{'-':>4}  predicts the same change for all of them"
            print(f"  {name:<{width}}{told}")
        print(f"  certificate: {_certificate(one)}")


def _certificate(one: Comparison) -> str:
    floor = "unknown (one null refit)" if one.noise_floor is None else f"{one.noise_floor:.1e} nats"
    worst = "unknown" if one.worst_grad_norm is None else f"{one.worst_grad_norm:.1e}"
    flagged = "unknown how many" if one.flagged is None else one.flagged
    return f"{_residual(one.stored)}; worst |grad J| of a refit {worst}, noise floor {floor}, {flagged} refits flagged"


def _row(found: Agreement) -> str:
    slope = ".4f" if 0.01 <= abs(found.slope) < 1000 else ".2e"  # methods in units of their own are far from 1
    cells = [
        _with_interval(found.pearson, found.pearson_ci, ".5f"),
        _with_interval(found.spearman, found.spearman_ci, ".4f"),
        _with_interval(found.slope, found.slope_ci, slope),
        _with_interval(found.median_rel_err, found.median_rel_err_ci, ".2%"),
    ]
    return "  ".join(f"{cell:<27}" for cell in cells).rstrip()


def _with_interval(value: float | None, interval: tuple[float, float] | None, form: str) -> str:
    if value is None:
        return "-"
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
