"""Floor 6: the verdict, its pictures, TensorBoard."""

from ifloo.report.reporter import Reporter
from ifloo.report.verdict import Comparison, compare

__all__ = ["Comparison", "Reporter", "compare"]
