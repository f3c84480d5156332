"""Floor 6: the verdict, predicted against actual changes of test losses. Plain numpy; no Trainer, no drawing.

- `comparison`: predicted and actual change of one test loss for each removal; `compare` reads them from the files.
- `agreements`: statistics of predicted against actual changes, by method and selection of refits.
- `pooled`: statistics over the rows of several tests.
- `verdict_json`: the verdict on all tests, which is the content of verdict.json.
- `predictions`: changes predicted by other methods for the same removals.
- `group_effects`, `small_steps`: refits without groups of samples, and refits at weights near 1.
- `label_errors`: number of known wrong labels at the head of each ranking.
- `extremes`, `unverified`: most influential training samples of a test; tests without enough refits.
- `judgement`: the verdict in plain words: whether the predicted changes came true.
- `base_model`: check that results belong to the base model that was scored.
"""

from ifloo.verdict.agreements import MIN_REFITS, SCORES, Row, Selection, Statistics, method_label, reason_for_none
from ifloo.verdict.comparison import Comparison, compare, scores_of
from ifloo.verdict.extremes import Extremes
from ifloo.verdict.group_effects import GroupEffect
from ifloo.verdict.label_errors import LabelErrors, find_label_errors
from ifloo.verdict.pooled import Pooled, pooled
from ifloo.verdict.small_steps import SmallSteps
from ifloo.verdict.unverified import unverified_tests
from ifloo.verdict.verdict_json import DEFINITIONS, Verdict

__all__ = [
    "DEFINITIONS",
    "MIN_REFITS",
    "SCORES",
    "Comparison",
    "Extremes",
    "GroupEffect",
    "LabelErrors",
    "Pooled",
    "Row",
    "Selection",
    "SmallSteps",
    "Statistics",
    "Verdict",
    "compare",
    "find_label_errors",
    "method_label",
    "pooled",
    "reason_for_none",
    "scores_of",
    "unverified_tests",
]
