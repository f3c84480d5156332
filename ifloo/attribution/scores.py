"""Scores with their certificate, and what they predict for a removal."""

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
        residual: `[m]`, relative, of the damped system: did the solver work? Of a replay: the relative distance
            between replayed and recorded weights.
        undamped_residual: `[m]`, relative, of the undamped one: how far is this from the definition of the score? None
            where nothing was solved.
        error_bound: `[m]`, nats per unit weight: no score is further from the damped solution than this;
            None where no lower bound μ > 0 on the curvature is known.
        repeat_error: `[m]`, standard error between repeats of a stochastic solver relative to ‖x‖; None for the others.
        steps: `[m]`.
        status: one of each query.
        curves: one of each query, shared by those solved together: step and worst relative residual of the damped
            system among them, float64 on the host; the last point is recomputed on the full data. Empty where nothing
            was solved.
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
        """One certificate of the queries of all parts, in their order; all are of the same damping."""
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
    """The columns one after the other; None where a part has none."""
    found = [column for column in columns if column is not None]
    return torch.cat(found) if len(found) == len(columns) else None


@dataclass(frozen=True)
class Scores:
    """Scores of every training sample for every query, by any method.

    Attributes:
        value: `[m, n]`, s[t, i] = ∂L_t/∂w_i, nats per unit weight, or what a method gives in its place; negative =
            helpful: removing i (w_i to 0) is predicted to change L_t by −value[t, i].
        train_ids: `[n]`.
        query_ids: `[m]`.
        certificate: Trust in the solves, or in the replay, behind `value`; None for a method that needs neither.
    """

    value: Float[Tensor, "m n"]
    train_ids: Int[Tensor, " n"]
    query_ids: Int[Tensor, " m"]
    certificate: Certificate | None = None

    @property
    def mean(self) -> Float[Tensor, " m"]:
        """mean_i s[t, i] over all n training samples, which a `drop` removal needs."""
        return self.value.mean(1)

    @property
    def worst_residual(self) -> float | None:
        """The largest relative residual of the certificate, None without one."""
        return None if self.certificate is None else float(self.certificate.residual.max())

    def group(self, ids: Sequence[int], removal: Removal = "drop") -> Float[Tensor, " m"]:
        """Predicted ΔL_t, nats, when all samples of a group G are removed together and the model is trained again.

        The sum of what is predicted for each alone: `zero_weight` (their weights go to 0, n stays) −Σ_{i∈G} s[t, i],
        `drop` (their rows are deleted: the mean runs over n − |G|) −Σ_{i∈G} (s[t, i] − mean_i s[t, i]). The error is of
        second order in |G|/n: how samples stand in for each other is not in a sum of derivatives.

        Source: Koh, Ang, Teo & Liang 2019, arXiv:1905.13289, eq. (2).

        Args:
            ids: of training samples, each once.
            removal: what training again does without them.

        Raises:
            InputError: no id, an id twice, or one that is no training sample's.
        """
        if not len(ids) or len(set(ids)) != len(ids):
            raise InputError(
                f"A group is one or more training ids, each once; got {len(ids)} ids, {len(set(ids))} of them "
                "different.\n  Give each id of the group once."
            )
        members = self.value[:, positions_of(self.train_ids, ids)]
        return predicted_change(members, self.mean.unsqueeze(1), removal).sum(1)


@dataclass(frozen=True)
class SelfInfluence:
    """(1/n) ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i = −s[i, i] of all n samples, with the certificates of the n solves.

    Attributes:
        value: `[n]`, nats.
        residual: `[n]`, relative, of the damped system, on the full data.
        undamped_residual: `[n]`, relative, of the undamped one; the same where δ = 0.
        error_bound: `[n]`, nats: no value is further from the damped solution than this; None where no lower bound
            μ > 0 on the curvature is known.
    """

    value: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    undamped_residual: Float[Tensor, " n"]
    error_bound: Float[Tensor, " n"] | None


def predicted_change(
    scores: Float[Tensor, "*k"], mean: float | Float[Tensor, "*#k"], removal: Removal
) -> Float[Tensor, "*k"]:
    """Predicted ΔL_t, nats, when the samples with these scores are removed, one at a time.

    `zero_weight`: −s. `drop`: −(s − mean), since at a stationary point Σ∇ℓ_i/n = −∇R, so that dividing by n − 1 and
    not by n adds the mean to first order in 1/n.
    """
    return -(scores - mean) if removal == "drop" else -scores
