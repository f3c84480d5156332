"""Outcome of the comparison of J with the training step, as the stages of a run need it: certificate and weights."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution.definitions import STATED
from ifloo.errors import InputError
from ifloo.models.adapted import Adapted
from ifloo.objective.batch_weights import BatchWeights, NoWeightsError
from ifloo.objective.batches import Batch
from ifloo.objective.certificate import ObjectiveCertificate, Outcome
from ifloo.objective.certify import Examined
from ifloo.objective.epoch_batches import Repeated
from ifloo.objective.epoch_weights import EpochWeights, batches_of_epoch, epoch_weights
from ifloo.objective.objective import Objective
from ifloo.objective.plain import recording
from ifloo.objective.preflight import preflight
from ifloo.stages.certificate.drawn_batches import SampleSource
from ifloo.stages.certificate.run_certificate import CertificateRequest, examined, has_own_loss
from ifloo.stages.isolation import undisturbed_with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExaminedRun:
    """What a run must know of its objective.

    Attributes:
        certificate: Comparison of J with what was trained; None if they were not compared.
        weights: Weight c_i of each training sample in J = Σ c_i ℓ_i + R; None if J is the plain mean.
    """

    certificate: ObjectiveCertificate | None = None
    weights: EpochWeights | None = None

    @classmethod
    def of(cls, request: CertificateRequest, found: Examined) -> ExaminedRun:
        """Finds the weights of all samples, and states them in the certificate; reads each sample once if they differ.

        Raises:
            InputError: If the weight of a sample cannot be found.
        """
        in_batch = None if found.weights is None else sample_weights(found.weights, request.loader)
        weights, certificate = epoch_weights(request.trained_on, in_batch, request.fit_known), found.certificate
        own_loss = has_own_loss(request.module)
        other = not request.fit_known and (own_loss or isinstance(batches_of_epoch(request.trained_on), Repeated))
        in_order = epoch_weights(request.trained_on, in_batch) if other else weights
        if own_loss and in_order is not None:
            note = f"J counts each sample once, while an epoch of the training loader is the mean {in_order.text}"
            return cls(_noted(certificate, note))
        if in_order is not None and not in_order.same_as(weights):
            note = (
                f"a fit on this loader, which goes through the data in order, would have J as the mean {in_order.text}"
            )
            certificate = _noted(certificate, note)
        if weights is None:
            return cls(certificate)
        outcome = Outcome.WEIGHTED if certificate.outcome is Outcome.EQUAL else certificate.outcome
        shares, epoch = weights.record(), weights.text
        return cls(replace(certificate, outcome=outcome, epoch=epoch, shares=shares), weights)

    @property
    def rule(self) -> str | None:
        """Phrase for how J weighs its samples; None if it is their plain mean."""
        if self.weights is None:
            return None
        return STATED if self.certificate is None else self.certificate.weighing or STATED

    def weighed(self, objective: Objective) -> Objective:
        """Returns J with the weights that were found."""
        return objective if self.weights is None else objective.weighted(self.weights)

    def state_weights(self, module: L.LightningModule, ids: Int[Tensor, " n"]) -> None:
        """States the weights in the module, for refits; `ids` are those of the training samples in their order."""
        if isinstance(module, Adapted):
            module.state_weights(ids, self.weights)


def objective_certificate(request: CertificateRequest) -> ExaminedRun:
    """Examines a run, logs the outcome, and refuses an objective that was not trained.

    Raises:
        InputError: If the difference between J and the training step is unexplained and not accepted.
    """
    try:
        found = examined(request)
        found.certificate.require()
    except InputError:
        _refuse_faulty_samples(request)  # a plainer error, if it is one of the data or of single losses
        raise
    run = ExaminedRun.of(request, found)
    certificate = run.certificate
    assert certificate is not None
    plain = certificate.outcome in (Outcome.EQUAL, Outcome.WEIGHTED) and not certificate.note
    log.log(logging.INFO if plain else logging.WARNING, "objective: %s.", certificate.text)
    return run


def _noted(certificate: ObjectiveCertificate, note: str) -> ObjectiveCertificate:
    return replace(certificate, note="; ".join(filter(None, [certificate.note, note])))


def _refuse_faulty_samples(request: CertificateRequest) -> None:
    """Checks data and losses of single samples.

    Raises:
        InputError: If the data or these losses cannot be scored, whatever was trained.
    """
    objective = Objective.of(request.module, request.loader, request.parameters)
    preflight(objective, objective.losses.theta(), _UNKNOWN)


_UNKNOWN = ObjectiveCertificate(Outcome.UNEXPLAINED, math.nan, None, 0.0, ())  # leaves the check of batches to others


def sample_weights(weights: BatchWeights, loader: DataLoader[Batch]) -> Float[Tensor, " n"]:
    """Returns the weight a_i of every training sample, so that J = Σ a_i ℓ_i / Σ a_i; reads each sample once.

    Raises:
        InputError: If the weight of a sample cannot be found.
    """
    source = SampleSource.of(loader)
    try:
        with recording(), undisturbed_with(source.dataset):
            found = [weights.of(sample) for row in range(len(source)) for sample in source.read([row])]
    except NoWeightsError as error:
        raise InputError(
            "The weight of a training sample in the loss of its batch cannot be found.\n"
            "  State the weighted loss of a sample: --adapt.sample_losses."
        ) from error
    return torch.tensor(found, dtype=torch.float64)
