"""Floor 8: reports, which show the results of an experiment.

- `reporter`: writes all reports of an experiment.
- `figures`: pictures drawn by matplotlib; `tensorboard`: the run folder of TensorBoard; `html`: one page.
- `safe_text`: sanitised text of samples.
"""

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
