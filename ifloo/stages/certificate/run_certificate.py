"""Certificate of a run: the replayed training step against the sample losses that are scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.models import SampleLossModule, unwrap
from ifloo.models.adapted import Adapted
from ifloo.models.run_state import RunState, StandInTrainer
from ifloo.objective.batch_weights import sample_keys
from ifloo.objective.batches import Batch, to_device
from ifloo.objective.certificate import CALLBACKS_UNSEEN, Cause, Coverage, ObjectiveCertificate, Outcome
from ifloo.objective.certify import Examined, Subject, certify
from ifloo.objective.functional import FunctionalLosses, Path, scoring
from ifloo.objective.loaders import own_dataset
from ifloo.objective.plain import recording
from ifloo.objective.randomness import undisturbed
from ifloo.objective.sampling import refuse_partial, refuse_rows_apart
from ifloo.objective.step_comparison import Samples
from ifloo.params import ParamSpace, author_name
from ifloo.stages.certificate.drawn_batches import CollateSamples, DrawnBatches, drawn_batches
from ifloo.stages.certificate.gradient_hooks import GradientHooks
from ifloo.stages.certificate.hessian_check import hessian_note
from ifloo.stages.certificate.parts import HALVES
from ifloo.stages.certificate.rare_rows import with_rare_rows
from ifloo.stages.certificate.replay import Replay, ReplaySource, wide
from ifloo.stages.certificate.trained_parameters import of_fewer_parameters
from ifloo.stages.isolation import detached

log = logging.getLogger(__name__)
DECISIVE = 1e-3  # relative difference that rounding may allow before the comparison is made in float64
HESSIAN_ROWS = 16  # samples on which products with the Hessian are compared with the training gradient
LARGEST_IN_DOUBLE = 1 << 28  # parameters of a module that is copied in float64
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
        device: Device of the comparison; None for that of the module.
        dtype: Precision of the comparison; None for that of the module.
        stated: Whether the fit was of the stated losses (`ifloo fit`), not of the user's own training step.
        accept: Whether the user accepts an unexplained difference.
        trained_with: Training loader of the Trainer of the fit; None for `loader`.
        shown: Training loader that the module finds in its Trainer; None for that of the fit.
        curved: Whether scores depend on second derivatives, which are then compared with the training gradient.
        fit_known: Whether the batches of the fit are those of this loader. Where they are not known, a loader in order
            is taken as one that the fit shuffled, as scores do not depend on the order in which data are given.
    """

    module: L.LightningModule
    loader: DataLoader[Batch]
    state: RunState
    datamodule: L.LightningDataModule | None = None
    parameters: tuple[str, ...] = ("*",)
    ran: bool = False
    stated: bool = False
    accept: bool = False
    trained_with: object = None
    shown: object = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    fit_known: bool = False
    curved: bool = True

    @classmethod
    def of(
        cls, module: L.LightningModule, loader: DataLoader[Batch], parameters: Sequence[str] = ("*",)
    ) -> CertificateRequest:
        """Returns the request of a module that carries what is known of its fit.

        The fit is what `Adapted.describe_fit` states, else that of the Trainer of the module; where there is none, its
        beginning stands for its end.
        """
        described = module.fit_described if isinstance(module, Adapted) else None
        own, patterns = unwrap(module), tuple(parameters)
        trainer = own._trainer
        if described is not None:
            return cls(module, loader, described.run_state, _data_of(described), patterns, fit_known=True)
        if trainer is None or isinstance(trainer, StandInTrainer):
            return cls(module, loader, RunState(), None, patterns)
        state, fitted = RunState.of_trainer(trainer), trainer.train_dataloader
        found = cls(module, loader, state, _data_of(trainer), patterns, ran=True, trained_with=fitted)
        return replace(found, fit_known=found.trained_on is fitted)

    @property
    def trained_on(self) -> DataLoader[Batch]:
        """Loader whose batches make an epoch of the fit: that of the Trainer, if it is over the same data.

        A data module may make its dataset again for each loader.
        """
        fitted = self.trained_with
        if not isinstance(fitted, DataLoader):
            return self.loader
        one, other = own_dataset(fitted), own_dataset(self.loader)
        alike = isinstance(one, Sized) and isinstance(other, Sized) and len(one) == len(other)
        return fitted if one is other or (alike and isinstance(one, type(other))) else self.loader

    @property
    def replayed(self) -> L.LightningModule:
        """The module whose training step is replayed."""
        return self.module if self.stated else unwrap(self.module)

    @property
    def loader_of_trainer(self) -> object:
        """Training loader that the module finds in its Trainer."""
        return next((one for one in (self.shown, self.trained_with) if one is not None), self.loader)


def examined(request: CertificateRequest) -> Examined:
    """Compares J with the user's own training step on batches of the training loader.

    What float32 cannot decide, because its rounding hides a difference, is compared in float64 where the module allows.

    Raises:
        InputError: If the user's code fails on a batch (unless accepted), or the fit drew part of its data.
    """
    refuse_partial(request.trained_on, *request.state.part_of_data)
    if has_own_loss(request.module):
        refuse_rows_apart(request.trained_on)
    drawn: DrawnBatches | None = None
    try:
        with recording():
            drawn = _drawn(request)
            found = _compared(request, drawn, request.dtype)
    except InputError as error:
        if not request.accept:
            raise
        cause = Cause("the training step cannot be run again", str(error))
        found = Examined(ObjectiveCertificate(Outcome.UNEXPLAINED, math.nan, None, 0.0, (), (cause,)))
    if drawn is not None and _undecided(request, found.certificate):
        with recording():
            found = _in_double(request, drawn, found)
    unseen = "" if request.ran or has_own_loss(request.replayed) else CALLBACKS_UNSEEN
    certificate = replace(found.certificate, accepted=request.accept, module_in_doubt=unseen)
    if drawn is not None and request.curved:
        certificate = _with_hessian(request, drawn, certificate)
    return replace(found, certificate=certificate)


def _with_hessian(
    request: CertificateRequest, drawn: DrawnBatches, certificate: ObjectiveCertificate
) -> ObjectiveCertificate:
    """Adds the sentence on products with the Hessian that are not the derivative of the training gradient.

    They are compared in float64 where the module runs in it: rounding and kinks then hide least.
    """
    small = sum(p.numel() for p in request.module.parameters()) <= LARGEST_IN_DOUBLE
    each = math.ceil(HESSIAN_ROWS / len(drawn.samples))  # of each drawn batch
    for dtype in (torch.float64, request.dtype) if small else (request.dtype,):
        try:
            with recording():
                samples = [sample for batch in drawn.samples for sample in batch[:each]]
                singles = [drawn.collate([sample]) for sample in samples]
                note = hessian_note(_moved(request, dtype).module, request.parameters, singles)
        except Exception as error:  # a module may fix its precision, or have no second derivative: a solve then tells
            log.info("products with the Hessian are not compared with the training gradient: %s", error)
            continue
        return replace(certificate, note="; ".join(text for text in (certificate.note, note) if text))
    return certificate


def _data_of(trainer: L.Trainer) -> L.LightningDataModule | None:
    found: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    return found


def _undecided(request: CertificateRequest, certificate: ObjectiveCertificate) -> bool:
    """Whether rounding of float32 leaves the outcome open."""
    dtypes = {p.dtype for p in request.module.parameters()} if request.dtype is None else {request.dtype}
    if dtypes != {torch.float32} or request.state.precision in HALVES:
        return False
    if certificate.outcome is Outcome.UNEXPLAINED:
        return not certificate.relative_difference <= certificate.tolerance
    return certificate.tolerance > DECISIVE


def _in_double(request: CertificateRequest, drawn: DrawnBatches, found: Examined) -> Examined:
    """Returns the result of a comparison in float64; the given one if the module does not run in float64."""
    try:
        result = _compared(request, drawn, torch.float64)
    except Exception as error:  # a module may fix its precision in any way
        log.info("no comparison in float64: %s", error)
        return found
    before = found.certificate
    note = f"compared in float64 (in float32 {before.relative_difference:.1e}, rounding allows {before.tolerance:.1e})"
    notes = [text for text in (result.certificate.note, note) if text]
    return replace(result, certificate=replace(result.certificate, note="; ".join(notes)))


def _moved(request: CertificateRequest, dtype: torch.dtype | None) -> CertificateRequest:
    """Returns the request of a copy of the module, on the device and in the precision of a comparison."""
    request = replace(request, module=detached(request.module).to(device=request.device, dtype=dtype))
    if isinstance(request.module, Adapted) and request.module.fit_described is None:
        request.module.describe_fit(request.state, request.datamodule, request.loader_of_trainer)
    return request


def _compared(request: CertificateRequest, drawn: DrawnBatches, dtype: torch.dtype | None) -> Examined:
    hooks = GradientHooks.of(request.replayed)
    if dtype is not None or request.device is not None:
        request = _moved(request, dtype)
    module, replayed = request.module, request.replayed
    space = ParamSpace.of(module, request.parameters)
    names = tuple(name if replayed is module else author_name(module, name) for name in space.names)
    source = ReplaySource(
        replayed,
        drawn.collate,
        request.state,
        request.datamodule,
        request.loader_of_trainer,
        names,
        hooks,
        request.ran,
        drawn.samples,
    )
    replay = Replay(source)
    losses = FunctionalLosses(module, space, Path.LOOP)
    theta, trained = losses.theta(), replay.trained()
    attributed = [name for name in names if trained is not None and name in trained]
    subject = Subject(
        step=replay,
        batches=drawn.samples,
        singles=single_gradients(losses, drawn.collate),
        penalty=wide(losses.gradient_and_value(losses.penalty, theta)[0], space.size),
        theta=wide(theta, space.size),
        keys_of=lambda sample: sample_keys(drawn.collate([sample])),
        decay=replay.decay(),
        trained=trained,
        coverage=_coverage(request, drawn),
        decoupled=replay.decoupled_decay() if isinstance(module, Adapted) else 0.0,
        by_hand=not replayed.automatic_optimization,
        doubted=None if request.ran else of_fewer_parameters(attributed, request.state),
    )
    return certify(subject)


def single_gradients(losses: FunctionalLosses, collate: CollateSamples) -> Callable[[Samples], Tensor]:
    """Returns a function that computes the gradient of each sample's loss as it is scored: by definition, in a loop."""
    loop, space = FunctionalLosses(losses.module, losses.space, Path.LOOP), losses.space
    theta = loop.theta()

    def gradient(sample: object) -> Tensor:
        single = to_device(collate([sample]), space.device, space.dtype)
        return wide(loop.gradient_and_value(lambda at: loop.single_loss(at, single), theta)[0], space.size)

    def gradients(samples: Samples) -> Tensor:
        with undisturbed(), scoring(losses.module):
            return torch.stack([gradient(sample) for sample in samples])

    return gradients


def _drawn(request: CertificateRequest) -> DrawnBatches:
    if has_own_loss(request.module):
        return drawn_batches(request.loader, 1, OWN_LOSS_ROWS)
    return with_rare_rows(request.loader, drawn_batches(request.loader))


def _coverage(request: CertificateRequest, drawn: DrawnBatches) -> Coverage | None:
    """Returns how many rows are compared; None if the training step is by definition that of J on all rows."""
    if has_own_loss(request.module):
        return None
    return Coverage(len({row for batch in drawn.rows for row in batch}), len(request.loader.dataset))  # type: ignore[arg-type]  # typed as Dataset


def has_own_loss(module: L.LightningModule) -> bool:
    """Whether the training step is that of SampleLossModule, which is final."""
    return isinstance(module, SampleLossModule) and not isinstance(module, Adapted)
