"""The verdict on one or several tests: what verdict.json holds, and the definition of each of its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ifloo.store import JSON
from ifloo.verdict.agreements import Statistics
from ifloo.verdict.comparison import Comparison
from ifloo.verdict.label_errors import LabelErrors
from ifloo.verdict.objective_record import ObjectiveRecord, weights_of
from ifloo.verdict.pooled import Pooled, pooled

DEFINITIONS: dict[str, JSON] = {  # part of verdict.json: the meaning of its entries
    "predicted": "drop: -(s - mean s); zero_weight: -s; nats, s = dL_t/dw_i (see the npz files)",
    "actual": "L_t(refit without i) - L_t(null refit), nats",
    "slope": "least squares, actual = slope * predicted + intercept",
    "median_rel_err": "median of |predicted - actual| / |actual| over rows with |actual| above the noise floor",
    "methods": "the same statistics of what further methods predicted for the same refits; none where nothing varies",
    "ci": "95 % percentile bootstrap over removals, 2000 draws, seed 0",
    "noise_floor": "largest minus smallest L_t over the null refits, displaced ones included, nats",
    "worst_grad_norm": "largest |grad J| at the end of a refit",
    "worst_residual": "relative residual of the inverse-HVP on the full data",
    "small_steps": "statistics of (L_t(w_i = 1.1) - L_t(w_i = 0.9)) / 0.2 against s; sides: Pearson correlation of the "
    "step up with the step down; curvature: median of |actual - predicted| / |predicted| where these were removed",
    "seed_spread": "standard deviation of L_t over the null refit and fits from other seeds, nats",
    "groups": "predicted: the sum over the group of what is predicted for each sample; actual: one refit without all",
    "objective": "how far the gradient of a training step is from that of J, over batches of the training loader",
    "all_tests": "the same statistics over the rows of all tests together; noise floor: the largest of theirs",
}


@dataclass(frozen=True, eq=False)
class Verdict(Mapping[int, Comparison]):
    """Comparisons of all tests by test id, with their common statistics; every output formats this object.

    Attributes:
        tests: Comparison of each test, by its id.
        mislabels: Number of wrong labels that each ranking finds; None if no label is known to be wrong.
        objective: Certificate of the objective of the scores, as their manifest holds it; None if it holds none.
    """

    tests: Mapping[int, Comparison]
    mislabels: LabelErrors | None = None
    objective: ObjectiveRecord | None = None

    def __getitem__(self, test_id: int) -> Comparison:
        return self.tests[test_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self.tests)

    def __len__(self) -> int:
        return len(self.tests)

    @cached_property
    def over_all_tests(self) -> Pooled | None:
        """Statistics of all tests together, computed once; None if there is only one test."""
        return pooled(self.tests)

    @property
    def statistics(self) -> Statistics | None:
        """Statistics of all tests together, or of the only test; None if there is no test."""
        if self.over_all_tests is not None:
            return self.over_all_tests.statistics
        return next((one.statistics for one in self.tests.values()), None)

    @property
    def definitions(self) -> dict[str, JSON]:
        """Meaning of the entries of verdict.json, for the weights of the samples in J."""
        if (rule := weights_of(self.objective)) is None:
            return DEFINITIONS
        weighted = {
            "predicted": "drop: -(s - n c_i mean s); zero_weight: -s; nats, s = dL_t/dw_i (see the npz files)",
            "J": f"sum_i c_i w_i l_i + R, sum c_i = 1: samples weigh as in a training step, by {rule}; "
            "c_i = factors / n (see the npz files)",
        }
        return {**DEFINITIONS, **weighted}

    def to_json(self) -> dict[str, JSON]:
        """Returns the content of verdict.json."""
        return {
            "tests": {str(t): one.to_json() for t, one in self.tests.items()},
            **({"all_tests": self.over_all_tests.to_json()} if self.over_all_tests else {}),
            **({"mislabels": self.mislabels.to_json()} if self.mislabels else {}),
            **({"objective": self.objective} if self.objective else {}),
            "definitions": self.definitions,
        }
