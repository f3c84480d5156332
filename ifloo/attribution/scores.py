"""Scores, their certificate, and the change of a test loss that they predict for a removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.errors import InputError
from ifloo.objective.ids import positions_of
from ifloo.objective.weights import Removal
from ifloo.solvers.base import Status

DEFINITIONS = (
    "scores[i] = dL_t/dw_i = -(1/n) grad L_t . H^-1 grad l_i, nats per unit weight, at the minimiser of "
    "J = (1/n) sum_i w_i l_i + R; negative = helpful, positive = harmful; L_t and l_i are without penalty, H = hess J "
    "with it. Removal: zero_weight predicts -scores[i], drop predicts -(scores[i] - mean(scores)). "
    "residual = |b - (H + damping I) x| / |b| on the full data."
)


@dataclass(frozen=True)
class Certificate:
    """How far the inverse-Hessian solves can be trusted, for each of m queries.

    Attributes:
        residual: Relative residual of the damped system, `[m]`: did the solver work? For a replayed run, the relative
            distance between replayed and recorded weights.
        undamped_residual: Relative residual of the undamped system, `[m]`: how far are the scores from their
            definition? None if no system was solved.
        error_bound: Largest possible distance of a score from the damped solution, `[m]`, nats per unit weight; None if
            no lower bound μ > 0 on the curvature is known.
        repeat_error: Standard error between repeats of a stochastic solver relative to ‖x‖, `[m]`; None for other
            solvers.
        steps: Number of solver steps, `[m]`.
        status: Status of the solve of each query.
        curves: Residual curve of each query, common to queries solved together: step and worst relative residual of the
            damped system among these queries, float64 on the CPU. The last point is recomputed on the full data. Empty
            if no system was solved.
        damping: δ added to the curvature, nats per squared parameter.
    """

    residual: Float[Tensor, " m"]
    undamped_residual: Float[Tensor, " m"] | None
    error_bound: Float[Tensor, " m"] | None
    repeat_error: Float[Tensor, " m"] | None
    steps: Int[Tensor, " m"]
    status: tuple[Status, ...]
    curves: tuple[Float[Tensor, "s 2"], ...] = ()
    damping: float = 0.0

    @classmethod
    def joined(cls, parts: Sequence[Certificate]) -> Certificate:
        """Joins the certificates of several blocks of queries, in their order; all must have the same damping."""
        return cls(
            torch.cat([part.residual for part in parts]),
            _joined([part.undamped_residual for part in parts]),
            _joined([part.error_bound for part in parts]),
            _joined([part.repeat_error for part in parts]),
            torch.cat([part.steps for part in parts]),
            tuple(status for part in parts for status in part.status),
            tuple(curve for part in parts for curve in part.curves),
            parts[0].damping,
        )


def _joined(columns: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenates the columns; returns None if one of them is None."""
    found = [column for column in columns if column is not None]
    return torch.cat(found) if len(found) == len(columns) else None


@dataclass(frozen=True)
class Scores:
    """Scores of every training sample for every query, by any method.

    Attributes:
        value: s[t, i] = ∂L_t/∂w_i, `[m, n]`, nats per unit weight, or what a method gives in its place. Negative =
            helpful: the predicted change of L_t on removal of i (w_i to 0) is −value[t, i].
        train_ids: Ids of the training samples, `[n]`.
        query_ids: Ids of the queries, `[m]`.
        certificate: Accuracy of the solves, or of the replay, behind `value`; None for a method that needs neither.
        factors: n·c_i of each training sample in J = Σ c_i ℓ_i + R, `[n]`; None if J is the plain mean.
    """

    value: Float[Tensor, "m n"]
    train_ids: Int[Tensor, " n"]
    query_ids: Int[Tensor, " m"]
    certificate: Certificate | None = None
    factors: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        """Checks the scores, which no later step can repair.

        Raises:
            InputError: If a score is not finite.
        """
        finite = torch.isfinite(self.value)
        if not bool(finite.all()):
            t, i = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"The score of training id {int(self.train_ids[i])} for test id {int(self.query_ids[t])} is "
                f"{float(self.value[t, i])}: the loss of one of the two samples has no finite gradient.\n"
                "  Its targets may all be ignored (ignore_index, padding), so that their mean is 0/0, or the sample is "
                "not finite. Leave it out, or divide by max(count, 1)."
            )

    @property
    def mean(self) -> Float[Tensor, " m"]:
        """Mean of s[t, i] over all n training samples, which the prediction for a `drop` removal needs."""
        return self.value.mean(1)

    @property
    def worst_residual(self) -> float | None:
        """Largest relative residual of the certificate; None without a certificate."""
        return None if self.certificate is None else float(self.certificate.residual.max())

    def group(self, ids: Sequence[int], removal: Removal = "drop") -> Float[Tensor, " m"]:
        """Predicts ΔL_t, nats, for a refit without all samples of a group G.

        The prediction is the sum of those for each sample alone: −Σ_{i∈G} s[t, i] for `zero_weight` (the weights go to
        0, n stays), −Σ_{i∈G} (s[t, i] − mean_i s[t, i]) for `drop` (the rows are deleted: J is the mean over n − |G|).
        Where samples have weights c_i, those of the others are divided by 1 − Σ_{i∈G} c_i, and the mean is multiplied
        by n·c_i.
        The error is of second order in |G|/n, since a sum of derivatives does not contain how samples replace each
        other.

        Source: Koh, Ang, Teo & Liang 2019, arXiv:1905.13289, eq. (2).

        Args:
            ids: Ids of the training samples in the group, each once.
            removal: Meaning of the removal in the refit.

        Returns:
            ΔL_t of each query, `[m]`.

        Raises:
            InputError: If the group is empty, names an id twice, or names an id that is not in the training data.
        """
        if not len(ids) or len(set(ids)) != len(ids):
            raise InputError(
                f"A group is one or more training ids, each once; got {len(ids)} ids, {len(set(ids))} of them "
                "different.\n  Give each id of the group once."
            )
        columns = positions_of(self.train_ids, ids)
        centre = self.mean.unsqueeze(1)
        if self.factors is not None:
            centre = centre * self.factors[columns].to(centre)
        return predicted_change(self.value[:, columns], centre, removal).sum(1)


@dataclass(frozen=True)
class SelfInfluence:
    """(1/n) ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i = −s[i, i] of all n samples, with the certificates of the n solves.

    In J = Σ c_i ℓ_i + R the weight c_i takes the place of 1/n.

    Attributes:
        value: Self-influence, `[n]`, nats.
        residual: Relative residual of the damped system on the full data, `[n]`.
        undamped_residual: Relative residual of the undamped system, `[n]`; the same as `residual` if δ = 0.
        error_bound: Largest possible distance of a value from the damped solution, `[n]`, nats; None if no lower bound
            μ > 0 on the curvature is known.
    """

    value: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    undamped_residual: Float[Tensor, " n"]
    error_bound: Float[Tensor, " n"] | None


def predicted_change(
    scores: Float[Tensor, "*k"], mean: float | Float[Tensor, "*#k"], removal: Removal
) -> Float[Tensor, "*k"]:
    """Predicts ΔL_t, nats, for the removal of each sample with one of these scores, one sample at a time.

    The prediction is −s for `zero_weight` and −(s − mean) for `drop`: at a stationary point Σ∇ℓ_i/n = −∇R, so that the
    division by n − 1 in place of n adds the mean to first order in 1/n.

    Args:
        scores: Scores s of one test, nats per unit weight.
        mean: Mean of the scores of all n training samples; where samples have weights c_i, n·c_i times it for each.
        removal: Meaning of the removal in the refit.
    """
    return -(scores - mean) if removal == "drop" else -scores
