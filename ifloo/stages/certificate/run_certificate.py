"""Certificate of a run: the replayed training step against the sample losses that are scored."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.models import SampleLossModule, unwrap
from ifloo.models.adapted import Adapted
from ifloo.models.run_state import RunState, attached, stand_in_trainer
from ifloo.objective.batch_weights import sample_keys
from ifloo.objective.batches import Batch, to_device
from ifloo.objective.certify import Examined, Subject, certify
from ifloo.objective.functional import FunctionalLosses, scoring
from ifloo.objective.randomness import undisturbed
from ifloo.objective.step_comparison import Samples
from ifloo.params import ParamSpace, author_name
from ifloo.stages.certificate.drawn_batches import CollateSamples, DrawnBatches, drawn_batches
from ifloo.stages.certificate.replay import Replay, ReplaySource, wide

OWN_LOSS_ROWS = 32  # samples compared for a module whose training step is that of SampleLossModule


@dataclass(frozen=True)
class CertificateRequest:
    """A module, its data and the moment at which it is scored.

    Attributes:
        module: Module under the contract at the weights that are scored.
        loader: Training loader.
        state: State of the run at the end of the fit.
        datamodule: Data module of the fit, as the user wrote it.
        parameters: Patterns of the names of the attributed parameters.
        ran: Whether this very module has run through the fit.
        accept: Whether the user accepts an unexplained difference.
    """

    module: L.LightningModule
    loader: DataLoader[Batch]
    state: RunState
    datamodule: L.LightningDataModule | None = None
    parameters: tuple[str, ...] = ("*",)
    ran: bool = False
    accept: bool = False


def examined(request: CertificateRequest) -> Examined:
    """Compares J with the user's own training step on batches of the training loader.

    Raises:
        InputError: If the user's code fails on a batch.
    """
    module = request.module
    drawn = _drawn(request)
    space = ParamSpace.of(module, request.parameters)
    names = tuple(author_name(module, name) for name in space.names)
    replay = Replay(
        ReplaySource(
            unwrap(module), drawn.collate, request.state, request.datamodule, request.loader, names, request.ran
        )
    )
    losses = FunctionalLosses(module, space)
    theta = losses.theta().requires_grad_()
    with _plain_autograd():
        penalty = _gradient(losses.penalty(theta), theta)
    subject = Subject(
        step=replay,
        batches=drawn.samples,
        singles=single_gradients(losses, drawn.collate, request),
        penalty=penalty,
        theta=wide(theta.detach()),
        keys_of=lambda sample: sample_keys(drawn.collate([sample])),
        decay=replay.decay(),
        trained=replay.trained(),
    )
    found = certify(subject)
    return replace(found, certificate=replace(found.certificate, accepted=request.accept))


def objective_certificate(request: CertificateRequest) -> Examined:
    """Examines a run and refuses an objective that was not trained.

    Raises:
        InputError: If the difference between J and the training step is unexplained and not accepted.
    """
    found = examined(request)
    found.certificate.require()
    return found


def single_gradients(
    losses: FunctionalLosses, collate: CollateSamples, request: CertificateRequest
) -> Callable[[Samples], Tensor]:
    """Returns a function that computes the gradient of each sample's loss as it is scored, in a loop, by autograd."""
    contract, space, own = losses.contract, losses.space, unwrap(request.module)
    trainer = stand_in_trainer(request.state, request.datamodule, request.loader, own)

    def gradient(sample: object) -> Tensor:
        theta = losses.theta().requires_grad_()
        batch = to_device(collate([sample]), space.device, space.dtype)
        loss = losses.step_loss(theta, batch) if contract.one_by_one else losses.sample_losses(theta, batch).sum()
        return _gradient(loss, theta)

    def gradients(samples: Samples) -> Tensor:
        with _plain_autograd(), scoring(losses.module), attached(own, trainer):
            return torch.stack([gradient(sample) for sample in samples])

    return gradients


@contextmanager
def _plain_autograd() -> Generator[None, None, None]:
    """Turns gradients on, within `predict` too, and restores random states on exit."""
    with undisturbed(), torch.inference_mode(False), torch.enable_grad():
        yield


def _drawn(request: CertificateRequest) -> DrawnBatches:
    if isinstance(request.module, SampleLossModule) and not isinstance(request.module, Adapted):
        return drawn_batches(request.loader, 1, OWN_LOSS_ROWS)
    return drawn_batches(request.loader)


def _gradient(value: Tensor, theta: Tensor) -> Tensor:
    """Returns the gradient of a number, zeros if it does not depend on θ."""
    if not value.requires_grad:
        return wide(torch.zeros_like(theta))
    (found,) = torch.autograd.grad(value, theta, allow_unused=True)
    return wide(torch.zeros_like(theta) if found is None else found)
