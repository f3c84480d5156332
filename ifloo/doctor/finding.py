"""Findings of the doctor: what was seen, where, its consequence and its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ifloo.errors import InputError


class Severity(Enum):
    """Severity of a finding, most severe first."""

    FATAL = "fatal"  # the run stops, or its scores would belong to another model or to other data
    WARNING = "warning"  # scores and refits are computed, and may disagree
    NOTE = "note"  # worth knowing


@dataclass(frozen=True)
class Finding:
    """Something about a model, its data or its training that attribution depends on.

    Attributes:
        what: Observation, with its values.
        where: Paths of the modules (`encoder.layers.3.norm1`), name of the setting, or the file.
        consequence: Effect on scores and refits.
        remedy: Change that removes the cause.
        severity: Whether a run stops, may give misleading scores, or is not affected.
    """

    what: str
    where: str
    consequence: str
    remedy: str
    severity: Severity

    @classmethod
    def of_error(cls, error: Exception, where: str) -> Finding:
        """Converts an error that would stop a run: its first line is `what`, the others are the remedy."""
        first, *others = str(error).strip().splitlines() or [""]
        ours = isinstance(error, InputError)
        return cls(
            first if ours else f"{type(error).__name__}: {first}",
            where,
            "A run stops here with this error.",
            " ".join(line.strip() for line in others) if ours and others else "Change what the first line names.",
            Severity.FATAL,
        )

    @property
    def fatal(self) -> bool:
        return self.severity is Severity.FATAL

    @property
    def labelled(self) -> tuple[tuple[str, str], ...]:
        """Labels and texts of the four lines."""
        return (
            (self.severity.value, self.what),
            ("where", self.where),
            ("consequence", self.consequence),
            ("remedy", self.remedy),
        )

    def __str__(self) -> str:
        return "\n".join(f"{label:<13}{text}" for label, text in self.labelled)


def heaviest_first(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings by severity, most severe first; findings of equal severity keep their order."""
    order = list(Severity)
    return sorted(findings, key=lambda one: order.index(one.severity))
