"""Findings from the comparison of J with what was trained."""

from __future__ import annotations

from ifloo.doctor.finding import Finding, Severity
from ifloo.objective.certificate import ObjectiveCertificate, Outcome


def objective_findings(certificate: ObjectiveCertificate | None, where: str) -> list[Finding]:
    """Returns the finding of an objective that is not exactly the loss of a training step; none if it is.

    Args:
        certificate: Result of the comparison; None without one.
        where: Name of the training step.
    """
    if certificate is None or certificate.outcome is Outcome.EQUAL:
        return []
    if certificate.outcome is Outcome.WEIGHTED:
        return [
            Finding(
                f"a training step weighs its samples by {certificate.weights}"
                if certificate.weights
                else "batches of an epoch that weigh samples unequally",
                where,
                "Scores are of J = Σ c_i ℓ_i with these weights, which are computed once from all training samples"
                + (f": the mean {certificate.epoch}." if certificate.epoch else "."),
                "None needed.",
                Severity.NOTE,
            )
        ]
    return [
        Finding(
            certificate.text,
            where,
            "Every output of scores carries this difference.",
            "None needed where the difference is meant, as that of dropout is; else fit without its cause.",
            Severity.WARNING,
        )
    ]
