"""What an examination finds: said in four lines, each of which can be acted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ifloo.errors import InputError


class Severity(Enum):
    """How heavy a finding is, heaviest first."""

    FATAL = "fatal"  # a run stops at it, or its scores would be of something else
    WARNING = "warning"  # scores and refits run, and may part
    NOTE = "note"  # worth knowing


@dataclass(frozen=True)
class Finding:
    """Something about a model, its data or its training that attribution depends on.

    Attributes:
        what: was found, with its values.
        where: path of the modules (`encoder.layers.3.norm1`), name of the setting, or the file.
        consequence: for scores and refits.
        remedy: what to change.
        weight: whether it stops a run.
    """

    what: str
    where: str
    consequence: str
    remedy: str
    severity: Severity

    @classmethod
    def of_error(cls, error: Exception, where: str) -> Finding:
        """An error that a run would stop with: its first line is what, the others are the remedy."""
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
        """Label and text of each of the four lines."""
        return (
            (self.severity.value, self.what),
            ("where", self.where),
            ("consequence", self.consequence),
            ("remedy", self.remedy),
        )

    def __str__(self) -> str:
        return "\n".join(f"{label:<13}{text}" for label, text in self.labelled)


def heaviest_first(findings: Sequence[Finding]) -> list[Finding]:
    """In the order in which they matter; those of one weight keep theirs."""
    order = list(Severity)
    return sorted(findings, key=lambda one: order.index(one.severity))
