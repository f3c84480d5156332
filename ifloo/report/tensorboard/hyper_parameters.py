"""Settings of an experiment as flat, short hyperparameters for TensorBoard's table of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ifloo.report.safe_text import one_line

Setting = str | float

_LONGEST_VALUE = 80  # characters
_MEMORY = ("max_bytes",)  # memory limits, which change no number
_SCORES = ("method", "curvature", "damping", "solver", "parameters", "dtype", "scores_dtype")
_REFITS = ("removal", "init")


def hyper_parameters(sections: Mapping[str, Any]) -> dict[str, Setting]:
    """Returns the settings of model, data, scores and refits in a manifest, by the names of their flags.

    Examples: `attribution.damping`, `data.train_limit`, `model.l2_reg`, `refit.removal`, `model`, `seed`. Settings that
    are None are left out; a nested object is represented by its class and its settings.
    """
    influence = sections.get("influence", {}).get("compared", {})
    refits = sections.get("loo", {}).get("compared", {})
    named: dict[str, object] = {
        **{f"attribution.{name}": influence.get(name) for name in _SCORES},
        **{f"data.{name}": value for name, value in (influence.get("loader") or {}).items()},
        "model": influence.get("model"),
        **{f"model.{name}": value for name, value in (influence.get("objective") or {}).items()},
        **{f"refit.{name}": refits.get(name) for name in _REFITS},
        "seed": influence.get("seed"),
    }
    return {name: value for key, nested in named.items() for name, value in _leaves(key, nested)}


def _leaves(name: str, value: object) -> Iterator[tuple[str, Setting]]:
    if value is None:
        return
    if isinstance(value, Mapping):
        if "class" in value:
            yield name, str(value["class"])
        for key, inner in value.items():
            if key not in ("class", *_MEMORY):
                yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, (bool, str, list, tuple)):
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        yield name, one_line(text, _LONGEST_VALUE)
    elif isinstance(value, (int, float)):
        yield name, float(value)
