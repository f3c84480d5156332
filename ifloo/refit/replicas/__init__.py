"""Former name of `ifloo.refit.strategies`."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "ChordReplicas": "ifloo.refit.strategies.ChordReplicas",
            "PathError": "ifloo.refit.strategies.StrategyError",
            "StackedReplicas": "ifloo.refit.strategies.StackedReplicas",
        },
        (),
    )
