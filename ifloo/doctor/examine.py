"""Examines a model, its data and its fit before any score: everything that is wrong at once, with what to do.

Only what is looked at can be found: layers by their class, settings, the first samples of the training loader (read
twice, run through the model once), and J over all training samples. A sample or a branch of the code that these do not
reach may still fail later.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution.curvature_route import refuse_decoupled
from ifloo.data import AdaptedData, unwrap_data
from ifloo.doctor.finding import Finding, Severity, heaviest_first
from ifloo.doctor.fit_findings import Fit, of_decay, of_lbfgs, of_recording, of_settings, optimizers_of
from ifloo.doctor.forward_trace import changed_state, refused, watched
from ifloo.doctor.layer_findings import diagnose
from ifloo.doctor.loader_findings import of_hooks, of_loader
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule, unwrap
from ifloo.models.adapted import run_step
from ifloo.objective import Batch, Objective, Stationarity, preflight, scoring
from ifloo.objective.batches import batch_size, slice_batch, without_ids
from ifloo.objective.preflight import ROWS, rounding
from ifloo.objective.protocol import contract_of
from ifloo.objective.randomness import undisturbed
from ifloo.stages.settings import AttributionSettings


@dataclass(frozen=True)
class DoctorInput:
    """What is examined.

    Attributes:
        module: meets the contract (any LightningModule does within `Adapted`), its layers in the modes of training.
        datamodule: set up; gives `train_dataloader()`.
        trainer: of a fit.
        settings: of the attribution.
        checkpoint: file of the weights the module has; None: it is not trained yet.
        recipe: settings of the Trainer that the checkpoint was fitted with, where it says so.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule
    trainer: L.Trainer
    settings: AttributionSettings
    checkpoint: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)

    @property
    def loader_name(self) -> str:
        return f"{type(self.own_data).__name__}.train_dataloader()"

    @property
    def own_data(self) -> object:
        """The data module as its author knows it."""
        return unwrap_data(self.datamodule)

    def loader(self) -> object:
        """The training loader.

        Raises:
            InputError: of a plain data module, that no fixed set of samples is behind it.
        """
        if isinstance(self.datamodule, AdaptedData):
            _ = self.datamodule.train_set
        return self.datamodule.train_dataloader()

    @property
    def own(self) -> L.LightningModule:
        """The module as its author knows it."""
        return unwrap(self.module)


@dataclass(frozen=True)
class Diagnosis:
    """What came of it.

    Attributes:
        findings: heaviest first.
        stationarity: of the weights as they are; None where J or its gradient could not be computed.
    """

    findings: tuple[Finding, ...]
    stationarity: Stationarity | None = None

    @property
    def fatal(self) -> int:
        """How many findings stop a run."""
        return sum(one.fatal for one in self.findings)


def quick_checks(subject: DoctorInput) -> list[Finding]:
    """What costs nothing to see and is worth a warning in every run; random numbers stay where they are.

    Raises:
        InputError: the loader gives other samples than J is made of, and nothing later would notice.
    """
    with undisturbed():
        loader = subject.loader()
        of_data = of_loader(loader, subject.loader_name)
        for one in of_data:
            if one.fatal:
                raise InputError(f"{subject.loader_name}: {one.what}.\n  {one.consequence}\n  {one.remedy}")
        found = [*diagnose(subject.module), *of_hooks(subject.own, subject.own_data), *of_data]
        found += _of_fit(subject, Fit(subject.trainer, loader, subject.recipe))
    return [one for one in found if one.severity is Severity.WARNING]


def examine(subject: DoctorInput) -> Diagnosis:
    """Everything: settings, layers, data, one pass over a few samples, derivatives, and ‖∇J‖ over all n.

    An error that would stop a run is a finding here, and the rest is looked at nevertheless.
    """
    findings = diagnose(subject.module, subject.settings.parameters)
    loaders: list[object] = []
    findings += collected(subject.loader_name, lambda: loaders.append(subject.loader()))
    if not loaders:
        return Diagnosis(tuple(heaviest_first(findings)))
    (loader,) = loaders
    findings += of_hooks(subject.own, subject.own_data)
    findings += collected(subject.loader_name, lambda: of_loader(loader, subject.loader_name))
    fit = Fit(subject.trainer, loader, subject.recipe)
    findings += _of_fit(subject, fit)
    stationarity = None
    # Without one θ, or one loader, there is no J to look at.
    if isinstance(loader, DataLoader) and not any(
        one.fatal and one.where == "attribution.parameters" for one in findings
    ):
        live = _Live(subject, fit, loader)
        findings += collected(subject.loader_name, live.look)
        stationarity = live.stationarity
    return Diagnosis(tuple(heaviest_first(findings)), stationarity)


def collected(where: str, made: Callable[[], Sequence[Finding] | None]) -> list[Finding]:
    """What `made` finds, or the error it stops with: one of ours, or whatever a data set or a model raises."""
    try:
        return list(made() or ())
    except Exception as error:
        return [Finding.of_error(error, where)]


def _of_fit(subject: DoctorInput, fit: Fit) -> list[Finding]:
    """Findings of the Trainer's settings and of the optimizer, made for a copy of the module."""
    module, trained, recorded = _copied(subject.module, fit), subject.checkpoint is not None, subject.settings.needs_run
    findings = [*of_settings(fit.settings), *optimizers_of(module, fit)]
    findings += of_decay(module, fit, trained, recorded)
    if trained and subject.settings.method is None:
        findings += collected(f"{type(module).__name__}.decoupled_decay", lambda: refuse_decoupled(module, "influence"))
    if trained or not isinstance(module, SampleLossModule):
        return findings
    findings += of_lbfgs(fit)
    return [*findings, *(of_recording(module, fit) if recorded else [])]


def _copied(module: L.LightningModule, fit: Fit) -> L.LightningModule:
    made = copy.deepcopy(module)
    made.trainer = fit.stand_in  # type: ignore[assignment]  # stands for a Trainer
    return made


class _Live:
    """Runs copies of the module on a few samples, then J on all."""

    def __init__(self, subject: DoctorInput, fit: Fit, loader: DataLoader[Batch]) -> None:
        self.subject, self.fit, self.loader = subject, fit, loader
        self.stationarity: Stationarity | None = None

    def look(self) -> list[Finding]:
        """What only a run shows.

        Raises:
            InputError: there is no J: the data cannot be gone over.
        """
        settings, module = self.subject.settings, self._copy()
        objective = Objective.of(module, self.loader, settings.parameters, settings.batch_size)
        theta = objective.losses.theta()
        _, batch = next(iter(objective.data.with_ids()))
        few = slice_batch(without_ids(batch), slice(0, ROWS))
        findings = watched(self._copy(), few, _run)
        found = refused(objective.losses, theta, few, self._changed(few))
        if not any(one.fatal for one in [*found, *diagnose(module)]):
            found += collected(type(self.subject.own).__name__, lambda: self._preflight(objective, theta))
        if isinstance(module, Adapted) and not any(one.fatal for one in found):
            found += of_adapted(module, few)
        return [*findings, *found]

    def _copy(self) -> L.LightningModule:
        return _copied(self.subject.module, self.fit).to(self.subject.settings.torch_dtype)

    def _changed(self, few: Batch) -> list[str]:
        try:
            return changed_state(self._copy(), few, _run)
        except Exception:  # a pass that fails is a finding of those that follow
            return []

    def _preflight(self, objective: Objective, theta: Tensor) -> list[Finding]:
        self.stationarity = preflight(objective, theta)
        if self.subject.checkpoint is None or self.stationarity.warning is None:
            return []
        return [unconverged(self.stationarity, self.subject.checkpoint, self.subject.settings)]


def _run(module: L.LightningModule, batch: Batch) -> object:
    """One pass to the loss, outside any transform and with its own `self.log`."""
    if isinstance(module, Adapted) and module.losses is None:
        return run_step(module.model, batch)
    return contract_of(module).sample_losses(batch)


def unconverged(found: Stationarity, checkpoint: str, settings: AttributionSettings) -> Finding:
    """A checkpoint that is at no minimum; for a method that asks for none this is no fault."""
    asked = settings.method is None
    return Finding(
        f"the checkpoint is not at a minimum: |grad J| = {found.grad_norm:.2e}",
        checkpoint,
        f"One sample contributes about {found.sample_share:.2e} to grad J. "
        + (
            "Influence is the derivative of the minimiser; away from it the scores predict no refit."
            if asked
            else "The method asked for needs no minimum; scores through a curvature would."
        ),
        "Train longer (optimizer lbfgs is finished to 1e-10), record the fit and take attribution.method "
        "ifloo.attribution.Unrolled, or take the scores as a ranking at best.",
        Severity.WARNING if asked else Severity.NOTE,
    )


def of_adapted(module: Adapted, few: Batch) -> list[Finding]:
    """What the losses of a plain module are; and whether its own training loss, in evaluation mode, is made of them."""
    if module.losses is None:  # preflight holds the training step against its mean
        return [_inside(type(module.model).__name__)]
    try:
        with scoring(module), undisturbed(), torch.no_grad():
            loss, losses = float(module.step_loss(few)), module.sample_losses(few)
            own = module.own_penalty(module.model) if module.own_penalty else 0.0
            mean, penalties = losses.mean(), (0.0, own, module.penalty())
    except Exception:  # no training_step, or one that gives no loss: nothing to compare
        return []
    # What an optimizer decays by is stated in the penalty and not in the training step, or in both.
    expected, tolerance = [float(mean + penalty) for penalty in penalties], float(rounding(mean))
    if any(abs(loss - one) <= tolerance for one in expected):
        return []
    return [_another_loss(type(module.model).__name__, loss, expected[-1], batch_size(few))]


def _inside(own: str) -> Finding:
    return Finding(
        "losses of samples taken from training_step, on batches of one",
        f"{own}.training_step",
        "A penalty that it adds counts as part of each ℓ_i and of the test loss L_t; the minimum is the same, "
        "predicted and actual changes contain it.",
        "None needed where it adds no penalty; else give the losses (--adapt.sample_losses) and the penalty "
        "(--adapt.penalty or --adapt.l2) apart.",
        Severity.NOTE,
    )


def _another_loss(own: str, loss: float, j: float, b: int) -> Finding:
    return Finding(
        f"training_step gives {loss:.6g} on {b} samples, mean of sample_losses plus penalty {j:.6g}",
        f"{own}.training_step",
        "Where its own Trainer trained it, the scores are of another function than the one trained; a fit by ifloo "
        "trains the second.",
        "State in --adapt.sample_losses and --adapt.penalty what training_step adds up, or fit again with ifloo.",
        Severity.WARNING,
    )
