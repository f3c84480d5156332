"""Check of the objective that the callback scores against the training step of the fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import lightning as L

from ifloo.errors import InputError, arguments_named
from ifloo.models import unwrap
from ifloo.objective import Objective
from ifloo.objective.certificate import ObjectiveCertificate
from ifloo.stages.callback.fit_weights import FitWeights
from ifloo.stages.certificate.examined_run import ExaminedRun
from ifloo.stages.certificate.gradient_hooks import GradientHooks
from ifloo.stages.certificate.run_certificate import CertificateRequest, examined

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedObjective:
    """Comparison of J with the training step of the fit, and the weights of the samples that it found.

    Attributes:
        run: Its result.
    """

    run: ExaminedRun

    @classmethod
    def of(
        cls, module: L.LightningModule, weights: FitWeights, patterns: Sequence[str], accept: bool, curved: bool = True
    ) -> CheckedObjective:
        """Compares.

        Args:
            module: Copy of the module of the fit, under the contract.
            weights: Weights of the fit.
            patterns: Patterns of the names of the attributed parameters.
            accept: Whether a difference without explanation is accepted.
            curved: Whether scores depend on second derivatives.

        Raises:
            InputError: J is not what was trained, and no cause explains it.
        """
        loader = weights.loader
        request = replace(
            CertificateRequest.of(module, loader, patterns),
            accept=accept,
            ran=weights.ran,
            trained_with=loader,
            shown=weights.trainer.train_dataloader,
            fit_known=True,
            curved=curved,
        )
        try:
            # A copy of a module has lost the hooks on its gradients.
            with GradientHooks.of(unwrap(weights.module)).registered(unwrap(module)):
                found = examined(request)
            found.certificate.require()
            run = ExaminedRun.of(request, found)
        except InputError as error:
            raise InputError(in_arguments(str(error))) from error
        checked = cls(run)
        log.info("objective: %s.", checked.certificate.text)
        return checked

    @property
    def certificate(self) -> ObjectiveCertificate:
        """The comparison."""
        assert self.run.certificate is not None
        return self.run.certificate

    @property
    def text(self) -> str:
        """One line about the comparison."""
        return in_arguments(self.certificate.text)

    def weighed(self, objective: Objective) -> Objective:
        """Returns J with the weights that were found, of all training samples or of the first of them."""
        found = self.run.weights
        return objective if found is None else objective.weighted(found.of_first(objective.n))


def in_arguments(text: str) -> str:
    """Returns a text with the arguments of the callback, which knows no other penalty than `l2`."""
    return arguments_named(text).replace("`penalty`", "`l2`")
