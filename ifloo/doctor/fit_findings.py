"""Findings from the settings of a fit, of its Trainer and of its optimizers, whose effect J does not contain.

The optimizers come from `configure_optimizers` of a copy of the module, outside a fit. A module that asks its Trainer
for a value that exists only during a fit cannot be examined, which is a finding too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from torch import optim

from ifloo.doctor.finding import Finding, Severity
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule, unwrap
from ifloo.models.decay import COUPLED, decoupled
from ifloo.models.fit_settings import FitSettings, optimizers_in
from ifloo.models.module import refuse_for_lbfgs
from ifloo.models.run_state import RunState, StandInTrainer, batches_in, stand_in_trainer
from ifloo.objective.recordable import without_minimum
from ifloo.objective.user_code import reason
from ifloo.params import author_name
from ifloo.stages.run_recorder import KNOWN_RULES, fit_faults, module_faults, optimizer_faults


@dataclass
class Fit:
    """Settings of a fit that is not running.

    Attributes:
        trainer: Trainer of the fit.
        loader: Loader of the training data.
        recorded: Trainer settings stored in the checkpoint, which take precedence over those of `trainer`.
        optimizers: Optimizers that the module configures, once `read_optimizers` has run.
    """

    trainer: L.Trainer
    loader: Any
    recorded: Mapping[str, object] = field(default_factory=dict)
    optimizers: list[optim.Optimizer] = field(default_factory=list)

    @property
    def settings(self) -> FitSettings:
        return FitSettings.of(self.trainer, batches_in(self.loader), self.recorded)

    @property
    def stand_in(self) -> StandInTrainer:
        """Trainer of a copy of the module, as at the start of the fit."""
        return stand_in_trainer(
            RunState.planned(self.trainer, self.recorded, batches_in(self.loader)), train_loader=self.loader
        )


def settings_findings(settings: FitSettings) -> list[Finding]:
    """Reports reduced precision, gradient clipping and gradient accumulation."""
    found = []
    if settings.reduced:
        found.append(_precision(settings.precision))
    if settings.gradient_clip_val:
        found.append(_clipping(settings.gradient_clip_val, settings.gradient_clip_algorithm or "norm"))
    if settings.accumulate_grad_batches != 1:
        found.append(
            Finding(
                f"steps on {settings.accumulate_grad_batches} batches together",
                "trainer.accumulate_grad_batches",
                "Another batch size, and no part of J; refits repeat it.",
                "None needed; a recorded run (methods that follow the training) needs a larger batch size instead.",
                Severity.NOTE,
            )
        )
    return found


def _precision(precision: str) -> Finding:
    return Finding(
        f"training in precision {precision}",
        "trainer.precision",
        "Scores are made in the precision of the weights. A fit in 16 bits stops where its rounding hides |grad J|, so "
        "its end is no minimum of J to more than three digits, and refits differ by rounding as well.",
        "Set trainer.precision to 32-true or 64-true and fit again.",
        Severity.WARNING,
    )


def _clipping(value: float, algorithm: str) -> Finding:
    return Finding(
        f"gradients clipped at {algorithm} {value:g}",
        "trainer.gradient_clip_val",
        "Harmless where no step near the end is clipped: the minimum of J is the same. Clipped steps are not those of "
        "J; refits repeat the clipping, scores do not contain it.",
        "Leave it out, with a smaller learning rate if the fit then diverges.",
        Severity.WARNING,
    )


def read_optimizers(module: L.LightningModule, fit: Fit) -> list[Finding]:
    """Sets the optimizers of `fit` to those of the module; returns a finding if that fails.

    Args:
        module: Copy of the module, whose Trainer is the stand-in of `fit`.
        fit: Fit whose optimizers are set.
    """
    try:
        fit.optimizers = list(optimizers_in(module.configure_optimizers()))
    except InputError as error:
        return [Finding.of_error(error, f"{_module_name(module)}.configure_optimizers")]
    except Exception as error:  # configure_optimizers outside a fit may raise anything
        return [
            Finding(
                "optimizers that could not be examined",
                f"{_module_name(module)}.configure_optimizers",
                f"Whether they decay weights is not known: {reason(error)}.",
                "See to it that weight_decay is 0, or that J has the penalty that matches (½λ‖θ‖² for SGD and Adam).",
                Severity.NOTE,
            )
        ]
    return []


def decay_findings(module: L.LightningModule, fit: Fit, trained: bool, recorded: bool) -> list[Finding]:
    """Reports weight decay in an optimizer, with the penalty that matches it.

    Args:
        module: Copy of the module, whose parameters the optimizers hold.
        fit: Fit with its optimizers.
        trained: Whether the fit is done, with these settings or elsewhere.
        recorded: Whether its steps are recorded, which makes decoupled decay part of the differentiated steps.
    """
    found = []
    for optimizer in fit.optimizers:
        groups = [g for g in optimizer.param_groups if g.get("weight_decay")]
        if not groups or _left_to_penalty(module, optimizer, groups):
            continue
        if beside := [g for g in groups if decoupled(optimizer, g)]:
            found.append(_decoupled_decay(module, fit, optimizer, beside, trained, recorded))
        if inside := [g for g in groups if not decoupled(optimizer, g)]:
            found.append(_coupled_decay(module, optimizer, inside, trained))
    return found


def _left_to_penalty(module: L.LightningModule, optimizer: optim.Optimizer, groups: list[dict[str, Any]]) -> bool:
    """Returns whether this decay equals the penalty of an adapted module, whose fit removes it from the optimizer."""
    if not isinstance(module, Adapted) or type(optimizer) not in COUPLED or not module.l2:
        return False
    return all(g["weight_decay"] == module.l2 and not decoupled(optimizer, g) for g in groups)


def _coupled_decay(
    module: L.LightningModule, optimizer: optim.Optimizer, groups: list[dict[str, Any]], trained: bool
) -> Finding:
    values = sorted({float(g["weight_decay"]) for g in groups})
    everything = sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in module.parameters())
    return Finding(
        f"{_class_name(optimizer)} decays weights by {_numbers(values)}, which J does not contain",
        f"{_module_name(module)}.configure_optimizers",
        "It minimises J + "
        + _penalty(module, groups, values, everything)
        + ": "
        + _effect(trained, "|grad J| is not small at its end, and scores and curvature are of another function."),
        _matching(module, optimizer, values, everything),
        _severity(module, trained),
    )


def _penalty(module: L.LightningModule, groups: list[dict[str, Any]], values: list[float], everything: bool) -> str:
    """Returns the formula of the penalty whose gradient a coupled decay adds."""
    if everything and len(values) == 1:
        return f"½ · {values[0]:g} · ‖θ‖²"
    names = {id(p): author_name(module, n) for n, p in module.named_parameters()}
    terms = []
    for g in groups:
        first, *others = [names.get(id(p), "?") for p in g["params"]]
        which = f"{first} and {len(others)} more" if others else first
        terms.append(f"½ · {g['weight_decay']:g} · ‖{which}‖²")
    return " + ".join(terms)


def _matching(module: L.LightningModule, optimizer: optim.Optimizer, values: list[float], everything: bool) -> str:
    if not isinstance(module, Adapted):
        return "Set weight_decay=0 and state this penalty in `penalty`."
    if not everything or len(values) > 1:
        return "Set weight_decay=0 and give this penalty as a function of your own: --adapt.penalty my_code.penalty."
    known = type(optimizer) in COUPLED
    return f"{'' if known else 'Set weight_decay=0 and '}{'Give' if known else 'give'} --adapt.l2 {values[0]:g}."


def _decoupled_decay(
    module: L.LightningModule,
    fit: Fit,
    optimizer: optim.Optimizer,
    groups: list[dict[str, Any]],
    trained: bool,
    recorded: bool,
) -> Finding:
    values = sorted({float(g["weight_decay"]) for g in groups})
    what = f"{_class_name(optimizer)} decays weights by {_numbers(values)} beside the gradient"
    where = f"{_module_name(module)}.configure_optimizers"
    if recorded and type(optimizer) in KNOWN_RULES:
        return Finding(
            what,
            where,
            "Handled by methods that follow the recorded run: the decay is part of its steps. J does not contain it, "
            "so curvature methods are of another function.",
            "None needed for the unrolled method.",
            Severity.NOTE,
        )
    stated = "give --adapt.l2 for a penalty ½λ‖θ‖²" if isinstance(module, Adapted) else "state ½λ‖θ‖² in `penalty`"
    return Finding(
        what,
        where,
        f"No penalty has these steps, since {_class_name(optimizer)} scales the gradient and not the decay: "
        + _effect(trained, "J does not contain it, and scores through a curvature are of another function."),
        f"Set weight_decay=0 (torch's AdamW has 0.01 by default), {stated} and fit again. Or: "
        f"{without_minimum(recording_faults(module, fit))}.",
        _severity(module, trained),
    )


def _effect(trained: bool, otherwise: str) -> str:
    return otherwise if trained else "the fit refuses it."


def _severity(module: L.LightningModule, trained: bool) -> Severity:
    refused = isinstance(module, SampleLossModule) and not trained
    return Severity.FATAL if refused else Severity.WARNING


def lbfgs_findings(fit: Fit) -> list[Finding]:
    """Reports L-BFGS on batches or settings that make its objective change between steps, which a fit refuses."""
    if not any(isinstance(one, optim.LBFGS) for one in fit.optimizers):
        return []
    try:
        refuse_for_lbfgs(fit.settings)
    except InputError as error:
        return [Finding.of_error(error, "model.optimizer")]
    return []


def recording_findings(module: L.LightningModule, fit: Fit) -> list[Finding]:
    """Reports what a recorded step would not contain, if a method needs the recorded run: the fit refuses it."""
    return [
        Finding(
            f"{what}, which no recorded step contains",
            "trainer, model",
            "A method that follows the training run is asked for, and the fit refuses to record this.",
            f"{remedy[:1].upper()}{remedy[1:]}, or choose methods that need no recorded run.",
            Severity.FATAL,
        )
        for what, _, remedy in (fault.partition(": ") for fault in recording_faults(module, fit))
    ]


def recording_faults(module: L.LightningModule, fit: Fit) -> list[str]:
    """Lists what a recorded step of this fit would not contain, each with its remedy."""
    faults = [*fit_faults(fit.settings, fit.loader, fit.optimizers), *module_faults(module)]
    return [*faults, *(optimizer_faults(fit.optimizers[0]) if fit.optimizers else [])]


def _class_name(optimizer: optim.Optimizer) -> str:
    return type(optimizer).__name__


def _numbers(values: list[float]) -> str:
    return " and ".join(f"{x:g}" for x in values)


def _module_name(module: L.LightningModule) -> str:
    return type(unwrap(module)).__name__
