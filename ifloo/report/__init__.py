"""Floor 6: the verdict, its pictures, TensorBoard."""

from typing import TYPE_CHECKING

from ifloo.former_names import former_names
from ifloo.report.reporter import Reporter
from ifloo.report.tensorboard.gradient_projection import SampleGradients

__all__ = ["Reporter", "SampleGradients"]

if not TYPE_CHECKING:  # else every misspelt name would pass mypy
    __getattr__ = former_names(
        __name__,
        {
            "Comparison": "ifloo.verdict.Comparison",
            "Mislabels": "ifloo.verdict.LabelErrors",
            "Pooled": "ifloo.verdict.Pooled",
            "compare": "ifloo.verdict.compare",
            "pooled": "ifloo.verdict.pooled",
        },
        __all__,
    )
