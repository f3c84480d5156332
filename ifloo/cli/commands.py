"""The commands: each takes a session, calls the stages, and prints tables of their results."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities.model_helpers import is_overridden

from ifloo.cli import tables
from ifloo.cli.doctor import doctor, warn_once
from ifloo.cli.experiment import Experiment
from ifloo.cli.foreign_checkpoint import refits_in_words
from ifloo.cli.session import Session
from ifloo.data import DataNotes
from ifloo.data.adapted import training_loader
from ifloo.errors import InputError
from ifloo.models.module import callbacks_of
from ifloo.refit import TrainerSettings, controls, fit_base, load_base, removals
from ifloo.refit.waiting_schedule import refuse_waiting_schedule
from ifloo.report import Reporter, SampleGradients
from ifloo.stages import model_answers
from ifloo.stages.certificate.stated_weights import StatedWeights
from ifloo.store import JSON, Manifest, contents_of, read_ids, refuse_other_samples

log = logging.getLogger(__name__)


def fit(session: Session) -> None:
    """Trains the base model, reports ‖∇J‖, J and accuracy, writes the checkpoint and its section of the manifest."""
    session.require_one_process("fit")
    exp = session.experiment
    exp.load_data()
    exp.hyper_parameters()
    _refuse_other_data(exp)
    warn_once(session, trained=False)
    session.note_parameters()
    recipe, notes = TrainerSettings.of(session.trainer), DataNotes(exp.datamodule)
    record: dict[str, JSON] = {
        "experiment": exp.name,
        "model_class": f"{type(exp.author_module).__module__}.{type(exp.author_module).__qualname__}",
        "seed": exp.seed,
        "recipe": recipe.identity_settings(),
        "source": notes.source_taken,
    }
    callbacks = callbacks_of(session.trainer)
    callbacks.insert(callbacks.index(exp.finish), StatedWeights(lambda: exp.datamodule.train_set.ids))
    minimum = fit_base(exp.module, exp.datamodule, session.trainer, exp.finish, exp.checkpoint, record)
    metrics = _validate(session)
    exact_match = model_answers.exact_match(exp.module, exp.datamodule)
    Manifest.at(exp.layout.manifest).record(
        "fit",
        {**exp.base_settings(), "recipe": recipe.identity_settings()},
        {
            "checkpoint": str(exp.checkpoint),
            "source": notes.source_taken,
            "source_reason": notes.source_reason,
            **notes.left_out,
            "J": minimum.value,
            "grad_norm": minimum.grad_norm,
            **{k: v for one in metrics for k, v in one.items()},
            **({"exact_match": exact_match} if exact_match else {}),
        },
    )
    tables.fitted(minimum, metrics, exp.checkpoint)
    tables.exact_match(exact_match)
    # Written just now, by this process: objects among the hyper-parameters are the user's own, and are read as such.
    session.experiment = replace(exp, base=load_base(exp.checkpoint, trusted=True))


def _validate(session: Session) -> Sequence[Mapping[str, float]]:
    """Returns the metrics that the model's own validation loop measures; none for a model without such a loop."""
    exp = session.experiment
    if not is_overridden("validation_step", exp.module):
        return []
    return session.trainer.validate(exp.module, datamodule=exp.lightning_data, verbose=False)


def _refuse_other_data(exp: Experiment) -> None:
    """Checks that a checkpoint to be kept was fitted on the present data: other data are another result.

    Raises:
        InputError: If the checkpoint was fitted on other data.
    """
    if exp.base is None or exp.base.record["fingerprint"] == exp.datamodule.fingerprint():
        return
    raise InputError(
        f"The checkpoint {exp.base.path} was fitted on other data.\n"
        "  Name another --checkpoint to keep it, or --overwrite to replace it."
    )


def influence(session: Session) -> None:
    """Writes scores and top-k ids, and prints the most helpful and most harmful training samples of each test."""
    if session.rank > 0:
        _silence()
    exp = session.experiment
    exp.restore()
    warn_once(session, trained=True)
    stage = session.influence_stage()
    if session.rank > 0:
        stage.serve()
        return
    if exp.attribution.test_ids == "all":
        count = stage.all_tests()
        stage.self_influence()
        print(f"{count} tests scored now, {len(exp.datamodule.test_set)} in all: {exp.layout.index}")
        return
    stored = stage.score_tests()
    if exp.attribution.corrected:
        known = exp.datamodule.train_set.ids.numpy()
        top = {t: read_ids(exp.layout.topk_ids(t), known).tolist() for t in exp.test_ids}
        stage.correct(stored, removals(top, controls(known, exp.refit.random, exp.refit.seed)))
    stage.score_with(exp.test_ids)
    stage.self_influence()
    for one in stored:
        tables.influence(one, exp.datamodule)


def _silence() -> None:
    """Silences a process that is not the first; it prints only if it fails before the processes are connected."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("ifloo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def loo(session: Session) -> None:
    """Refits, and prints the verdict on the predictions of their effects."""
    leave_one_out(session)
    exp = session.experiment
    reporter = _reporter(exp)
    try:
        verdict = reporter.verdict(exp.test_ids, exp.refit.top_k)
    except InputError as error:  # the refits are complete and kept; only the comparison lacks something
        log.warning("no verdict yet: %s", error)
    else:
        tables.verdict(verdict)
        tables.headline(verdict)


def leave_one_out(session: Session) -> None:
    """Refits without the top-k ids of each test and the random controls."""
    exp = session.experiment
    exp.restore()
    _refuse_missing_scores(exp)
    warn_once(session, trained=True)
    assert exp.base is not None
    recipe = TrainerSettings(**exp.base.record["recipe"], accelerator=session.accelerator)
    refuse_waiting_schedule(exp.author_module, exp.stand_in)
    if "given" in exp.base.record:
        log.info("%s.", refits_in_words(exp.base, exp.refit.init))
    session.refit_stage(recipe).leave_out_top(exp.test_ids)


def _refuse_missing_scores(exp: Experiment) -> None:
    """Checks that each test has the ids of its largest scores, which name the samples to leave out.

    Raises:
        InputError: If a test was not scored.
    """
    missing = [path for t in exp.test_ids if not (path := exp.layout.topk_ids(t)).exists()]
    if missing:
        raise InputError(
            f"There are no influence scores of this test: {missing[0]} does not exist.\n"
            "  Run `ifloo influence` with these settings first."
        )


def report(session: Session) -> None:
    """Writes the verdict, pictures, page and TensorBoard files; tests without refits appear on the page alone."""
    exp = session.experiment
    exp.restore()
    contents = contents_of(exp.datamodule.test_batch, exp.test_ids)
    refuse_other_samples(Manifest.at(exp.layout.manifest), contents, ("influence", "loo"))
    verdict = _reporter(exp).run(exp.test_ids, exp.refit.top_k)
    tables.verdict(verdict)
    tables.headline(verdict)
    if verdict:
        print(f"verdict: {exp.layout.verdict}\npictures: {exp.layout.root / 'figs'}")
    if missing := [t for t in exp.test_ids if t not in verdict]:
        print(f"not verified yet: test {', '.join(map(str, missing))} (`ifloo loo` makes the refits)")
    print(f"report: {exp.layout.report}")


def _reporter(exp: Experiment) -> Reporter:
    outcomes = model_answers.outcomes(exp.module, exp.datamodule, exp.test_ids)
    parameters = tuple(exp.attribution.parameters)
    gradients = SampleGradients(exp.module, training_loader(exp.datamodule), parameters)
    return Reporter(exp.layout, exp.datamodule, Path("lightning_logs") / exp.name, outcomes, gradients)


def pipeline(session: Session) -> None:
    """Runs all stages in turn; a base model and results that exist and match are kept.

    Raises:
        InputError: If the settings name tests or devices that refits cannot serve; checked before any work.
    """
    exp = session.experiment
    test_ids = exp.test_ids
    session.require_one_process("pipeline")
    exp.load_data()
    exp.hold_data()
    exp.datamodule.test_batch(test_ids)  # an id out of range fails before the fit, not after it
    refuse_waiting_schedule(exp.author_module, exp.stand_in)
    if exp.base is None:
        fit(session)
    else:
        known = "" if exp.base.foreign else " is there and was fitted with these settings"
        log.info("base model: %s%s", exp.checkpoint, known)
    influence(session)
    leave_one_out(session)
    report(session)


COMMANDS: Mapping[str, Callable[[Session], None]] = {
    "fit": fit,
    "influence": influence,
    "loo": loo,
    "report": report,
    "pipeline": pipeline,
    "doctor": doctor,
}
