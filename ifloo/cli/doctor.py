"""`ifloo doctor`, and the quick checks that every run makes before its work."""

from __future__ import annotations

import logging
import textwrap

from ifloo.cli.experiment import Experiment
from ifloo.cli.session import Session
from ifloo.data import AdaptedData, unwrap_data
from ifloo.doctor.examine import Diagnosis, DoctorInput, collected, examine, quick_checks
from ifloo.doctor.finding import Finding, Severity, heaviest_first
from ifloo.doctor.layer_findings import diagnose
from ifloo.errors import InputError
from ifloo.objective.augmentation import find_augmentation
from ifloo.objective.preflight import Stationarity
from ifloo.refit import TrainerSettings

log = logging.getLogger(__name__)
WIDTH = 100  # columns of a printed line


def warn_once(session: Session, trained: bool) -> None:
    """Logs the warnings of the quick checks; the first stage of a run that meets the module in this mode makes them.

    Args:
        session: Session whose data are loaded.
        trained: Whether the module has the weights of the checkpoint.

    Raises:
        InputError: If the loader gives other samples than J is made of.
    """
    if trained in session.checked_modes:
        return
    session.checked_modes.add(trained)
    for one in quick_checks(_doctor_input(session, trained)):
        if one.what not in session.warned:
            session.warned.add(one.what)
            log.warning("%s (%s): %s\n  %s", one.what, one.where, one.consequence, one.remedy)


def doctor(session: Session) -> None:
    """Prints every finding about model, data and settings that stands between them and valid scores.

    Raises:
        InputError: If a finding would stop a run; it is printed before.
    """
    exp = session.experiment
    where, load = ("data", exp.load_data) if exp.base is None else (str(exp.checkpoint), exp.restore)
    if exp.base is None and isinstance(exp.datamodule, AdaptedData):
        exp.datamodule.prepare_second_setup()
    data_findings = collected(where, load)
    findings = [*data_findings, *_settings_findings(session)]
    trained = exp.base is not None and not data_findings
    if data_findings:
        diagnosis = Diagnosis(tuple(diagnose(exp.module, exp.attribution.parameters)))
    else:
        exp.module.to(session.trainer.strategy.root_device)
        findings += [*_test_findings(exp), *_split_findings(exp)]
        diagnosis = examine(_doctor_input(session, trained))
    findings = heaviest_first([*findings, *diagnosis.findings])
    _print(exp, findings, diagnosis.stationarity if trained else None)
    if stopping := sum(one.fatal for one in findings):
        raise InputError(f"{stopping} of {len(findings)} findings stop{'s' if stopping == 1 else ''} a run.")


def _doctor_input(session: Session, trained: bool) -> DoctorInput:
    exp = session.experiment
    recipe: dict[str, object] = exp.base.record.get("recipe", {}) if exp.base is not None and trained else {}
    checkpoint = str(exp.checkpoint) if trained else None
    compare = session.examined if trained else None
    return DoctorInput(exp.module, exp.lightning_data, session.trainer, exp.attribution, checkpoint, recipe, compare)


def _settings_findings(session: Session) -> list[Finding]:
    """Collects errors of settings that would stop a run."""
    exp = session.experiment

    def save_arguments() -> None:
        exp.hyper_parameters()

    def repeat_fit() -> None:
        TrainerSettings.of(session.trainer)

    findings = collected(type(exp.author_module).__name__, save_arguments)
    return findings if exp.base is not None else [*findings, *collected("trainer", repeat_fit)]


def _test_findings(exp: Experiment) -> list[Finding]:
    """Collects errors of the test ids."""
    ids = exp.attribution.test_ids
    if ids == "all":
        return []

    def read_tests() -> None:
        exp.datamodule.test_batch(list(ids))

    return collected("attribution.test_ids", read_tests)


def _split_findings(exp: Experiment) -> list[Finding]:
    """Reports a random split before the fit; after it the checkpoint records the split, or loading the data fails."""
    data = exp.datamodule
    if exp.base is not None or not isinstance(data, AdaptedData) or not data.split_is_random():
        return []
    reads = find_augmentation(data.train_dataloader())
    if reads is not None and not reads.seeded:
        return []  # samples that no seed repeats make any two set-ups differ; they have a finding of their own
    return [
        Finding(
            "two set-ups with different seeds give other training samples",
            f"{type(data.data).__name__}.setup",
            "Handled where the fit records its rows, as `ifloo fit` and InfluenceCallback do; a checkpoint without "
            "them is not scored unless the seed is given.",
            "None needed for such fits; else give random_split a generator.",
            Severity.NOTE,
        )
    ]


def _print(exp: Experiment, findings: list[Finding], stationarity: Stationarity | None) -> None:
    data, model = type(unwrap_data(exp.datamodule)).__name__, type(exp.author_module).__name__
    print(f"{model}, {data}, {_weights(exp)}\n")
    for one in findings:
        for k, (label, text) in enumerate(one.labelled):
            left = f"{'' if k == 0 else '  '}{label}".ljust(15)
            print(textwrap.fill(text, WIDTH, initial_indent=left, subsequent_indent=" " * 15, break_long_words=False))
        print()
    if not findings:
        print("nothing found")
    if stationarity is not None and stationarity.warning is None:
        print(
            f"converged: |grad J| = {stationarity.grad_norm:.1e}, while one sample contributes about "
            f"{stationarity.sample_share:.1e}"
        )


def _weights(exp: Experiment) -> str:
    if exp.base is None:
        return f"not trained yet (no checkpoint at {exp.checkpoint}): whether it converges is not known"
    return f"checkpoint {exp.checkpoint}"
