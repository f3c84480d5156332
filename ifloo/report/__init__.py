"""Floor 6: the verdict, its pictures, TensorBoard."""

from ifloo.report.mislabels import Mislabels
from ifloo.report.pooled import Pooled, Verdict, pooled
from ifloo.report.reporter import Reporter
from ifloo.report.sketch import SampleGradients
from ifloo.report.verdict import Comparison, compare

__all__ = ["Comparison", "Mislabels", "Pooled", "Reporter", "SampleGradients", "Verdict", "compare", "pooled"]
