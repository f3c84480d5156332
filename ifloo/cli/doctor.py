"""`ifloo doctor`, and the short look that every run takes at its door."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable

from ifloo.cli.setup import Setup
from ifloo.data import unwrap_data
from ifloo.doctor.examine import Diagnosis, DoctorInput, collected, examine, quick_checks
from ifloo.doctor.finding import Finding, heaviest_first
from ifloo.doctor.layer_findings import diagnose
from ifloo.errors import InputError
from ifloo.objective.preflight import Stationarity
from ifloo.refit import TrainerSettings

log = logging.getLogger(__name__)
WIDTH = 100  # of a printed line


def warn_once(setup: Setup, trained: bool) -> None:
    """Warns of what is cheap to see, once in a run; the first of its parts to find the module so takes the look.

    Args:
        setup: its data are loaded.
        trained: the module has the weights of the checkpoint.

    Raises:
        InputError: the loader gives other samples than J is made of.
    """
    if trained in setup.checked_modes:
        return
    setup.checked_modes.add(trained)
    for one in quick_checks(_subject(setup, trained)):
        if one.what not in setup.warned:
            setup.warned.add(one.what)
            log.warning("%s (%s): %s\n  %s", one.what, one.where, one.consequence, one.remedy)


def doctor(setup: Setup) -> None:
    """Prints all that stands between this model, its data and its settings and scores that hold.

    Raises:
        InputError: something stops a run; what, is printed before.
    """
    base = setup.base
    where, loading = ("data", setup.load_data) if base is None else (str(setup.checkpoint), setup.restore)
    of_data = collected(where, loading)
    findings = [*of_data, *_of_settings(setup)]
    trained = base is not None and not of_data
    if of_data:
        made = Diagnosis(tuple(diagnose(setup.module, setup.attribution.parameters)))
    else:
        setup.module.to(setup.trainer.strategy.root_device)
        findings += _of_tests(setup)
        made = examine(_subject(setup, trained))
    found = heaviest_first([*findings, *made.findings])
    _print(setup, found, made.stationarity if trained else None)
    if stopping := sum(one.fatal for one in found):
        raise InputError(f"{stopping} of {len(found)} findings stop{'s' if stopping == 1 else ''} a run.")


def _subject(setup: Setup, trained: bool) -> DoctorInput:
    recipe: dict[str, object] = setup.base.record.get("recipe", {}) if setup.base is not None and trained else {}
    checkpoint = str(setup.checkpoint) if trained else None
    return DoctorInput(setup.module, setup.lightning_data, setup.trainer, setup.attribution, checkpoint, recipe)


def _of_settings(setup: Setup) -> list[Finding]:
    """Errors of settings that a run would stop with."""
    model = type(setup.subject).__name__
    found = collected(model, lambda: _void(setup.hyper_parameters))
    if setup.base is None:
        found += collected("trainer", lambda: _void(lambda: TrainerSettings.of(setup.trainer)))
    return found


def _of_tests(setup: Setup) -> list[Finding]:
    ids = setup.attribution.test_ids
    if ids == "all":
        return []
    return collected("attribution.test_ids", lambda: _void(lambda: setup.datamodule.test_batch(list(ids))))


def _void(made: Callable[[], object]) -> None:
    made()


def _print(setup: Setup, found: list[Finding], stationarity: Stationarity | None) -> None:
    print(f"{type(setup.subject).__name__}, {_data_name(setup)}, {_weights(setup)}\n")
    for one in found:
        for k, (label, text) in enumerate(one.labelled):
            left = f"{'' if k == 0 else '  '}{label}".ljust(15)
            print(textwrap.fill(text, WIDTH, initial_indent=left, subsequent_indent=" " * 15, break_long_words=False))
        print()
    if not found:
        print("nothing found")
    if stationarity is not None and stationarity.warning is None:
        print(
            f"converged: |grad J| = {stationarity.grad_norm:.1e}, while one sample contributes about "
            f"{stationarity.sample_share:.1e}"
        )


def _data_name(setup: Setup) -> str:
    return type(unwrap_data(setup.datamodule)).__name__


def _weights(setup: Setup) -> str:
    if setup.base is None:
        return f"not trained yet (no checkpoint at {setup.checkpoint}): whether it converges is not known"
    return f"checkpoint {setup.checkpoint}"
