"""Floor 6: the verdict, predicted against actual changes of test losses. Plain numpy; no Trainer, no drawing."""

from ifloo.verdict.comparison import Comparison, compare
from ifloo.verdict.label_errors import LabelErrors
from ifloo.verdict.pooled import Pooled, Verdict, pooled

__all__ = ["Comparison", "LabelErrors", "Pooled", "Verdict", "compare", "pooled"]
