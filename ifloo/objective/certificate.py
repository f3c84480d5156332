"""The objective certificate: whether J, of which the scores are, is the function that was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from ifloo.errors import InputError, settings_named, summarise

Plain: TypeAlias = "Mapping[str, Plain] | Sequence[Plain] | str | int | float | None"  # what a JSON file holds
LISTED = 8  # weights that a sentence lists; a record holds all


class Outcome(Enum):
    """Relation of the gradient of a training step to that of J."""

    EQUAL = "equal"
    WEIGHTED = "weighted"
    EVALUATION = "evaluation objective"
    UNEXPLAINED = "unexplained"


CALLBACKS_UNSEEN = "what a callback of the fit set on the module"  # a command has no Trainer of the fit


class Part(Enum):
    """Part of a training step that J does not contain, or may not contain; the value names it in messages."""

    BATCH_STATISTICS = "BatchNorm statistics"
    DROPOUT = "dropout"
    TRAINING_FLAG = "self.training"
    PRECISION = "low precision"
    BATCH_HOOKS = "batch hooks"
    MOMENT = "epoch or step in the loss"
    STATE = "what hooks of the fit set"
    GRADIENT_HOOKS = "gradient hooks"
    BATCH_INDEX = "batch_idx in the loss"
    SEED = "random numbers of one seed"


EVALUATION_PARTS = frozenset({Part.BATCH_STATISTICS, Part.DROPOUT, Part.TRAINING_FLAG, Part.PRECISION})
"""Parts that evaluation mode and full precision take away."""


@dataclass(frozen=True)
class WeightTable:
    """Relative weights a_i of samples in the loss of a batch, which is Σ a_i ℓ_i / Σ a_i.

    Attributes:
        rule: Noun phrase for what the weight depends on.
        values: Weight by the value that it depends on; empty if the weight is that value.
    """

    rule: str
    values: Mapping[str, float]

    def __str__(self) -> str:
        shown = [f"{key}: {value:.4g}" for key, value in list(self.values.items())[:LISTED]]
        rest = f", ... {len(self.values)} in all" if len(self.values) > LISTED else ""
        return f"{self.rule} ({', '.join(shown)}{rest})" if shown else self.rule


def weighing(weights: WeightTable | None, epoch: str) -> str | None:
    """Returns a phrase for how J weighs its samples; None if it is their plain mean.

    Args:
        weights: Weights in the loss of a batch; None if they are equal.
        epoch: Phrase for the batches of an epoch that J is the mean over; empty if these make no difference.
    """
    if weights is None:
        return f"as does the mean {epoch}" if epoch else None
    return f"by {weights}, {epoch}" if epoch else f"by {weights}"


@dataclass(frozen=True)
class Cause:
    """A reason why the gradient of a training step is not that of J.

    Attributes:
        name: Noun phrase for the reason.
        remedy: Sentence that names a flag or a change which mends it.
        likely: Whether no comparison proves it.
    """

    name: str
    remedy: str
    likely: bool = False

    def __str__(self) -> str:
        return f"most likely {self.name}" if self.likely else self.name


@dataclass(frozen=True)
class Coverage:
    """Part of the training data that was compared.

    Attributes:
        compared: Number of different rows in the compared batches.
        n: Number of all rows.
    """

    compared: int
    n: int

    @property
    def complete(self) -> bool:
        """Whether all rows were compared."""
        return self.compared >= self.n

    def __str__(self) -> str:
        return f"{self.compared:,} of {self.n:,} rows"


@dataclass(frozen=True)
class ObjectiveCertificate:
    """Result of the comparison of J with the training step.

    Attributes:
        outcome: Relation of the two gradients.
        relative_difference: Norm of the difference over that of the gradient of J, over all compared batches.
        cosine: Cosine of the angle between the two; None where one of them is zero up to rounding.
        tolerance: Relative difference that rounding allows.
        rows: Number of samples in each compared batch.
        causes: Reasons of a difference.
        ruled_out: Names of what was tried or checked and is no reason.
        weights: Weights of the samples in the loss of a batch; None if all are equal.
        accepted: Whether an unexplained difference is accepted by the user.
        note: Sentence on a premise that does not enter the gradient, such as the decay of an optimizer; empty if none.
        coverage: Part of the training data that was compared; None if the batches decide for all rows.
        data_in_doubt: Noun phrase for a reason why the data may not be those of the fit; empty if none is known.
        module_in_doubt: Noun phrase for a reason why the module may not be as in the fit; empty if none is known.
        epoch: Phrase for the batches of an epoch that J is the mean over; empty if it is one batch of all samples, or
            if J is the plain mean.
        shares: What a file records of the weights c_i in J = Σ c_i ℓ_i + R; None if J is the plain mean.
    """

    outcome: Outcome
    relative_difference: float
    cosine: float | None
    tolerance: float
    rows: tuple[int, ...]
    causes: tuple[Cause, ...] = ()
    ruled_out: tuple[str, ...] = ()
    weights: WeightTable | None = None
    accepted: bool = False
    note: str = ""
    coverage: Coverage | None = None
    data_in_doubt: str = ""
    module_in_doubt: str = ""
    epoch: str = ""
    shares: Mapping[str, str | float | int] | None = None

    @property
    def text(self) -> str:
        """One line for logs, files and reports."""
        names = ", ".join(str(cause) for cause in self.causes)
        if self.outcome is Outcome.EQUAL:
            line = f"a training step has the gradient of J ({self._numbers}; rounding allows {self.tolerance:.1e})"
        elif self.outcome is Outcome.WEIGHTED and self.weights is None:
            line = f"a training step is the mean over its batch, and J is the mean {self.epoch} ({self._numbers})"
        elif self.outcome is Outcome.WEIGHTED:
            epoch = f" {self.epoch}" if self.epoch else ""
            line = f"a training step weighs its samples by {self.weights}; J has these weights{epoch} ({self._numbers})"
        elif self.outcome is Outcome.EVALUATION:
            weighs = f"; samples weigh by {self.weights}" if self.weights else ""
            line = (
                "scores are of the evaluation-mode objective; the gradient of a training step differs by "
                f"{self._numbers} ({names}){weighs}"
            )
        else:
            differs = f"the gradient of a training step differs by {self._numbers} ({names or 'cause not found'})"
            line = f"J is not what was trained: {names if self._same_gradient else differs}"
            line += ", accepted by --adapt.accept_objective" if self.accepted else ""
        if self.epoch and self.outcome is not Outcome.WEIGHTED:
            line += f"; J is the mean {self.epoch}"
        return settings_named(f"{line}; {self.note}" if self.note else line)

    @property
    def weighing(self) -> str | None:
        """Phrase for how J weighs its samples; None if it is their plain mean."""
        return weighing(self.weights, self.epoch)

    @property
    def _numbers(self) -> str:
        cosine = "" if self.cosine is None else f", cosine {_cosine(self.cosine)}"
        if self.outcome in (Outcome.EQUAL, Outcome.WEIGHTED):
            return f"relative difference {self.relative_difference:.1e}"
        percent = 100 * self.relative_difference
        return f"{percent:.0f} %{cosine}" if percent >= 100 else f"{percent:.2g} %{cosine}"

    @property
    def _same_gradient(self) -> bool:
        """Whether the gradients are equal to rounding, so that the cause lies in the parameters."""
        return self.relative_difference <= self.tolerance

    def require(self) -> None:
        """Raises an error for an outcome that cannot be scored.

        Raises:
            InputError: If the difference is unexplained and not accepted.
        """
        if self.outcome is Outcome.UNEXPLAINED and not self.accepted:
            raise InputError(self.refusal)

    @property
    def refusal(self) -> str:
        """Text of the error for an unexplained difference: what was found, what was ruled out, and remedies."""
        lines = [f"{self.text[0].upper()}{self.text[1:]}."]
        prefixes = ["the most likely cause: " if cause.likely else "" for cause in self.causes]
        lines += [f"  {p}{cause.name}: {cause.remedy}" for p, cause in zip(prefixes, self.causes, strict=True)]
        if self.ruled_out:
            lines.append(f"  Ruled out: {', '.join(self.ruled_out)}.")
        lines.append(
            "  Scores of J as it is: --adapt.accept_objective true; every output then carries this difference."
        )
        return "\n".join(lines)

    @property
    def causes_of_a_distance(self) -> str:
        """Sentences on why weights may be away from a minimum of J: what is ruled out, what is not, and remedies."""
        ruled_out, remaining = list(self.ruled_out), [str(cause) for cause in self.causes]
        partial = self.coverage is not None and not self.coverage.complete
        if self.outcome in (Outcome.EQUAL, Outcome.WEIGHTED):
            compared = f" on {self.coverage}" if partial else ""
            ruled_out.insert(0, f"another loss than the one trained{compared} ({self._numbers})")
        elif remaining:
            remaining[-1] += f" (a training step differs by {self._numbers})"
        if partial:
            remaining.append("another loss on rows that were not compared")
        if self.data_in_doubt:
            remaining.insert(0, self.data_in_doubt)
        if self.note:
            remaining.append(settings_named(self.note))
        remaining.append("a fit that ended early (train longer; `ifloo fit` by LBFGS ends at 1e-10)")
        if self.module_in_doubt:
            remaining.append(self.module_in_doubt)
        excluded = f"Ruled out: {', '.join(ruled_out)}. " if ruled_out else ""
        return f"{excluded}Not ruled out: {', '.join(remaining)}. The scores are a ranking at best."

    def record(self) -> dict[str, Plain]:
        """Returns the certificate as plain values for a file."""
        weights: Plain = (
            None if self.weights is None else {"rule": self.weights.rule, "values": dict(self.weights.values)}
        )
        return {
            "outcome": self.outcome.value,
            "relative_difference": self.relative_difference if math.isfinite(self.relative_difference) else None,
            "cosine": self.cosine,
            "tolerance": self.tolerance if math.isfinite(self.tolerance) else None,
            "rows": list(self.rows),
            "causes": [str(cause) for cause in self.causes],
            "ruled_out": list(self.ruled_out),
            "weights": weights,
            "epoch": self.epoch,
            "shares": None if self.shares is None else dict(self.shares),
            "accepted": self.accepted,
            "text": self.text,
        }


def untrained_cause(untrained: Sequence[str], trained: Sequence[str]) -> Cause:
    """Returns the cause of attributed parameters that no optimizer has.

    Args:
        untrained: Names of these parameters.
        trained: Names of the attributed parameters that an optimizer has.
    """
    patterns = parameter_patterns(trained, untrained)
    return Cause(
        f"parameters that no optimizer has ({summarise(list(untrained))})",
        f"configure_optimizers trains {', '.join(patterns) or 'none of them'} alone"
        + (f': give --attribution.parameters "{patterns}".' if patterns else "."),
    )


def parameter_patterns(chosen: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns shell-style patterns that match the chosen parameter names and none of the others, the fewest first."""
    found = []
    for name in chosen:
        parts = name.split(".")
        prefixes = [".".join(parts[:k]) + "." for k in range(1, len(parts))]
        free = next((p for p in prefixes if not any(other.startswith(p) for other in others)), None)
        found.append(f"{free}*" if free else name)
    return list(dict.fromkeys(found))


def _cosine(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 - 5e-4 else f"{value:.6f}"
