"""Examination of a model, its data and its fit before any score: reports all problems at once, each with a remedy.

The examination covers the classes of the layers, the settings, the first samples of the training loader (read twice,
run through the model once), and J over all training samples. A sample or a branch of the code that it does not reach
may still fail later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution.influence_function import refuse_decoupled
from ifloo.data import AdaptedData, unwrap_data
from ifloo.doctor.curvature_findings import curvature_findings
from ifloo.doctor.finding import Finding, Severity, heaviest_first
from ifloo.doctor.fit_findings import (
    Fit,
    decay_findings,
    lbfgs_findings,
    read_optimizers,
    recording_faults,
    recording_findings,
    settings_findings,
)
from ifloo.doctor.forward_trace import call_findings, changed_state, derivative_findings
from ifloo.doctor.layer_findings import diagnose
from ifloo.doctor.loader_findings import hook_findings, loader_findings
from ifloo.doctor.objective_findings import objective_findings
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule, unwrap
from ifloo.models.training_step import run_step
from ifloo.objective import Batch, FunctionalLosses, Objective, Stationarity, preflight, scoring, sequential
from ifloo.objective.batches import batch_size, to_module, without_ids
from ifloo.objective.functional import Path
from ifloo.objective.preflight import ROWS
from ifloo.objective.protocol import contract_of
from ifloo.objective.randomness import undisturbed
from ifloo.objective.recordable import without_minimum
from ifloo.objective.rounding import ADDED, Rounding
from ifloo.objective.singles import first_draw
from ifloo.objective.user_code import failed_user_code
from ifloo.params import ParamSpace
from ifloo.stages.certificate.examined_run import ExaminedRun
from ifloo.stages.isolation import detached
from ifloo.stages.settings import AttributionSettings


@dataclass(frozen=True)
class DoctorInput:
    """Model, data, Trainer and settings to examine.

    Attributes:
        module: Module that meets the contract (any LightningModule does within `Adapted`), its layers in the modes of
            training.
        datamodule: Data module with `train_dataloader()`, already set up.
        trainer: Trainer of the fit.
        settings: Settings of the attribution.
        checkpoint: File of the module's weights; None for a module that is not trained yet.
        recipe: Trainer settings that the checkpoint was fitted with; empty if it does not contain them.
        compare: Function that compares J with what was trained; None for a module that is not trained yet.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule
    trainer: L.Trainer
    settings: AttributionSettings
    checkpoint: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    compare: Callable[[], ExaminedRun] | None = None

    @property
    def loader_name(self) -> str:
        return f"{type(self.own_data).__name__}.train_dataloader()"

    @property
    def own_data(self) -> object:
        """The data module that the user wrote, without the adapter around it."""
        return unwrap_data(self.datamodule)

    def loader(self) -> object:
        """Returns the training loader.

        Raises:
            InputError: The data module is an adapted one without a fixed set of training samples.
        """
        if isinstance(self.datamodule, AdaptedData):
            _ = self.datamodule.train_set
        return self.datamodule.train_dataloader()

    @property
    def own(self) -> L.LightningModule:
        """The module that the user wrote, without the adapter around it."""
        return unwrap(self.module)


@dataclass(frozen=True)
class Diagnosis:
    """Result of an examination.

    Attributes:
        findings: Findings, most severe first.
        stationarity: |∇J| at the module's weights; None if J or its gradient could not be computed.
    """

    findings: tuple[Finding, ...]
    stationarity: Stationarity | None = None

    @property
    def fatal(self) -> int:
        """Number of findings that stop a run."""
        return sum(one.fatal for one in self.findings)


def quick_checks(subject: DoctorInput) -> list[Finding]:
    """Returns the warnings of the cheap checks, which every run makes; random states are restored afterwards.

    Raises:
        InputError: The loader yields other samples than those in J, which no later check would detect.
    """
    with undisturbed():
        loader = subject.loader()
        of_data = loader_findings(loader, subject.loader_name)
        for one in of_data:
            if one.fatal:
                raise InputError(f"{subject.loader_name}: {one.what}.\n  {one.consequence}\n  {one.remedy}")
        found = [*diagnose(subject.module), *_of_hooks(subject), *of_data]
        found += _fit_findings(subject, Fit(subject.trainer, loader, subject.recipe))
    return [one for one in found if one.severity is Severity.WARNING]


def _of_hooks(subject: DoctorInput) -> list[Finding]:
    """Reports batch hooks that scores leave out; `Adapted` applies them to each batch before the loss."""
    return [] if isinstance(subject.module, Adapted) else hook_findings(subject.own, subject.own_data)


def examine(subject: DoctorInput) -> Diagnosis:
    """Runs all checks: settings, layers, data, one pass over a few samples, derivatives, and ‖∇J‖ over all n.

    An error that would stop a run becomes a finding, and the remaining checks still run.
    """
    findings = diagnose(subject.module, subject.settings.parameters)
    loaders: list[object] = []
    findings += collected(subject.loader_name, lambda: loaders.append(subject.loader()))
    if not loaders:
        return Diagnosis(tuple(heaviest_first(findings)))
    (loader,) = loaders
    findings += _of_hooks(subject)
    findings += collected(subject.loader_name, lambda: loader_findings(loader, subject.loader_name))
    fit = Fit(subject.trainer, loader, subject.recipe)
    findings += _fit_findings(subject, fit)
    stationarity = None
    # J needs one parameter vector θ and one loader.
    if isinstance(loader, DataLoader) and not any(
        one.fatal and one.where == "attribution.parameters" for one in findings
    ):
        trial = _Trial(subject, fit, loader)
        findings += collected(subject.loader_name, trial.findings)
        stationarity = trial.stationarity
    return Diagnosis(tuple(heaviest_first(findings)), stationarity)


def collected(where: str, check: Callable[[], Sequence[Finding] | None]) -> list[Finding]:
    """Returns the findings of `check`; any error that it raises becomes one fatal finding."""
    try:
        return list(check() or ())
    except Exception as error:
        return [Finding.of_error(failed_user_code(error) or error, where)]


def _fit_findings(subject: DoctorInput, fit: Fit) -> list[Finding]:
    """Returns the findings of the Trainer's settings and of the optimizers of a copy of the module."""
    module = _copy_for_fit(subject.module, fit)
    trained, recorded = subject.checkpoint is not None, subject.settings.needs_run
    findings = [*settings_findings(fit.settings), *read_optimizers(module, fit)]
    findings += decay_findings(module, fit, trained, recorded)
    if trained and subject.settings.method is None:
        findings += collected(f"{type(module).__name__}.decoupled_decay", lambda: refuse_decoupled(module, "influence"))
    if trained or not isinstance(module, SampleLossModule):
        return findings
    findings += lbfgs_findings(fit)
    return [*findings, *(recording_findings(module, fit) if recorded else [])]


def _copy_for_fit(module: L.LightningModule, fit: Fit) -> L.LightningModule:
    copied = detached(module)
    copied.trainer = fit.stand_in
    return copied


class _Trial:
    """Trial run of copies of the module on a few samples, then of J on all samples."""

    def __init__(self, subject: DoctorInput, fit: Fit, loader: DataLoader[Batch]) -> None:
        self.subject, self.fit, self.loader = subject, fit, loader
        self.compared = ExaminedRun()
        self.stationarity: Stationarity | None = None

    def findings(self) -> list[Finding]:
        """Returns the findings that need a forward pass; sets `stationarity`.

        Raises:
            InputError: J cannot be formed, since the training data cannot be read.
        """
        copied = self._copy()
        batch = first_draw(without_ids(next(iter(sequential(self.loader, ROWS)))))
        few = to_module(batch, copied)
        findings = call_findings(copied, few, _run)
        settings, module = self.subject.settings, self._copy()
        try:
            objective = Objective.of(module, self.loader, settings.parameters, settings.batch_size)
        except InputError as error:  # of the user's code if it has a cause, else of the data
            where = self.subject.loader_name if error.__cause__ is None else type(self.subject.own).__name__
            return [*findings, Finding.of_error(error, where)]
        return [*findings, *self._of_objective(objective, module, few)]

    def _of_objective(self, objective: Objective, module: L.LightningModule, few: Batch) -> list[Finding]:
        theta, found = objective.losses.theta(), []
        if objective.losses.path is not Path.LOOP:  # a loop needs no more of the module than training does
            found = derivative_findings(objective.losses, theta, few, self._changed_state(few))
        if not any(one.fatal for one in [*found, *diagnose(module)]):
            found += collected(type(self.subject.own).__name__, self._compare)
        if not any(one.fatal for one in [*found, *diagnose(module)]):
            weighed = self.compared.weighed(objective)
            found += collected(type(self.subject.own).__name__, lambda: self._preflight(weighed, theta))
        if isinstance(module, Adapted) and not any(one.fatal for one in found):
            found += adapted_findings(module, few)
        return found

    def _compare(self) -> list[Finding]:
        if self.subject.compare is not None:
            self.compared = self.subject.compare()
        return objective_findings(self.compared.certificate, f"{type(self.subject.own).__name__}.training_step")

    def _copy(self) -> L.LightningModule:
        return _copy_for_fit(self.subject.module, self.fit).to(self.subject.settings.torch_dtype)

    def _changed_state(self, few: Batch) -> list[str]:
        try:
            return changed_state(self._copy(), few, _run)
        except Exception:  # the checks that follow report a pass that fails
            return []

    def _preflight(self, objective: Objective, theta: Tensor) -> list[Finding]:
        self.stationarity = preflight(objective, theta, self.compared.certificate)
        if self.subject.checkpoint is None or self.stationarity.warning is None:
            return []
        faults = recording_faults(_copy_for_fit(self.subject.module, self.fit), self.fit)
        found = [unconverged(self.stationarity, self.subject.checkpoint, self.subject.settings, faults)]
        if self.subject.settings.method is None:
            found += curvature_findings(objective, theta, self.subject.settings, self.subject.checkpoint)
        return found


def _run(module: L.LightningModule, batch: Batch) -> object:
    """Runs one forward pass to the losses, outside any transform of torch.func and with the module's own `self.log`."""
    if isinstance(module, Adapted) and module.losses is None:
        return run_step(module.model, batch)
    return contract_of(module).sample_losses(batch)


def unconverged(found: Stationarity, checkpoint: str, settings: AttributionSettings, faults: Sequence[str]) -> Finding:
    """Returns the finding of a checkpoint that is not at a minimum: a note if the method does not need one.

    Args:
        found: |grad J| at the checkpoint.
        checkpoint: File of the weights.
        settings: Settings of the attribution.
        faults: Reasons why a fit of this kind cannot be recorded.
    """
    needs_minimum = settings.method is None
    return Finding(
        f"the checkpoint is not at a minimum: |grad J| = {found.grad_norm:.2e}",
        checkpoint,
        f"One sample contributes about {found.sample_share:.2e} to grad J. "
        + (
            "Influence is the derivative of the minimiser; away from it the scores predict no refit."
            if needs_minimum
            else "The method asked for needs no minimum; scores through a curvature would."
        ),
        _remedy(found, faults) if needs_minimum else "None needed.",
        Severity.WARNING if needs_minimum else Severity.NOTE,
    )


def _remedy(found: Stationarity, faults: Sequence[str]) -> str:
    if found.certificate is None:
        advice = "Train longer (`ifloo fit` by LBFGS ends at 1e-10), or take the scores as a ranking at best."
    else:
        advice = found.certificate.causes_of_a_distance
    return f"{advice} Or: {without_minimum(faults)}."


def adapted_findings(module: Adapted, few: Batch) -> list[Finding]:
    """Compares the losses of a plain module with its own training loss, in evaluation mode."""
    if module.losses is None:  # preflight compares the training step with the mean of these losses
        return [_losses_of_training_step(type(module.model).__name__)]
    try:
        with scoring(module), undisturbed(), torch.no_grad():
            loss, losses = float(module.step_loss(few)), module.sample_losses(few)
            stated = FunctionalLosses(module, ParamSpace.of(module))
            allowed = float(Rounding.of(stated, stated.theta(), few).of_losses(losses).mean())
            own = module.own_penalty(module.model) if module.own_penalty else 0.0
            mean, penalties = losses.mean(), (0.0, own, module.penalty())
    except Exception:  # no training_step, or one that returns no loss: nothing to compare
        return []
    # Weight decay of an optimizer is stated in the penalty, and may be missing in the training step.
    expected = [float(mean + penalty) for penalty in penalties]
    if any(abs(loss - one) <= allowed + ADDED * torch.finfo(mean.dtype).eps * abs(one) for one in expected):
        return []
    return [_different_loss(type(module.model).__name__, loss, expected[-1], batch_size(few))]


def _losses_of_training_step(own: str) -> Finding:
    return Finding(
        "losses of samples taken from training_step, on batches of one",
        f"{own}.training_step",
        "A penalty that it adds counts as part of each ℓ_i and of the test loss L_t; the minimum is the same, "
        "predicted and actual changes contain it.",
        "None needed where it adds no penalty; else give the losses (--adapt.sample_losses) and the penalty "
        "(--adapt.penalty or --adapt.l2) apart.",
        Severity.NOTE,
    )


def _different_loss(own: str, loss: float, j: float, b: int) -> Finding:
    return Finding(
        f"training_step gives {loss:.6g} on {b} samples, mean of sample_losses plus penalty {j:.6g}",
        f"{own}.training_step",
        "Where its own Trainer trained it, the scores are of another function than the one trained; a fit by ifloo "
        "trains the second.",
        "State in --adapt.sample_losses and --adapt.penalty what training_step adds up, or fit again with ifloo.",
        Severity.WARNING,
    )
