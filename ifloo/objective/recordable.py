"""Modules whose training steps can be recorded, and the method that needs no minimum of J which suits a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ifloo.objective.layers import mixing_norms, places, random_layers, running_norms


def layer_faults(module: nn.Module) -> list[str]:
    """Lists layers of the module that a recorded step would not contain, each with its remedy."""
    first = {one.draws: one for one in reversed(random_layers(module))}
    faults = [f"{draws} in {one.path}: {one.remedy}" for draws, one in reversed(first.items())]
    if statistics := places(module, [*running_norms(module), *mixing_norms(module)]):
        faults.append(f"batch statistics in {statistics[0]}: use LayerNorm or GroupNorm")
    return faults


def without_minimum(faults: Sequence[str]) -> str:
    """Returns the clause of a remedy that names the best method which needs no minimum of J, with its flag.

    Args:
        faults: Reasons why a fit of the module cannot be recorded, each with its remedy after a colon.
    """
    if not faults:
        return (
            "`ifloo fit` and then `ifloo influence`, both with "
            "--attribution.method.class_path=ifloo.attribution.Unrolled, record a fit and differentiate its steps, "
            "which needs no minimum"
        )
    what = faults[0].partition(": ")[0]
    return (
        "--attribution.method.class_path=ifloo.attribution.GradientDot scores by first derivatives alone, which needs "
        f"no minimum (a fit with {what} cannot be recorded, as the unrolled method requires)"
    )
