"""The commands: each takes the same setup, calls the stages, prints what came of it."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.model_helpers import is_overridden

from ifloo.cli import tables
from ifloo.cli.doctor import doctor, warn_once
from ifloo.cli.sample_contents import refuse_other_tests
from ifloo.cli.setup import Setup
from ifloo.data import DataNotes
from ifloo.errors import InputError
from ifloo.refit import (
    WEIGHTS,
    ExtraRefits,
    Groups,
    LeaveOneOut,
    Refitter,
    TrainerSettings,
    TrainingLoader,
    WeightSteps,
    controls,
    fit_base,
    groups,
    load_base,
    removals,
    stepped,
)
from ifloo.report import Reporter, SampleGradients
from ifloo.stages import model_answers
from ifloo.store import JSON, GroupFile, LossFile, Manifest, Section, influences, read_ids, top_k

log = logging.getLogger(__name__)


def fit(setup: Setup) -> Setup:
    """Trains the base model, reports ‖∇J‖, J and accuracy, writes the checkpoint and its section of the manifest."""
    setup.one_process("fit")
    setup.load_data()
    setup.hyper_parameters()
    _refuse_other_data(setup)
    warn_once(setup, trained=False)
    recipe, notes = TrainerSettings.of(setup.trainer), DataNotes(setup.datamodule)
    record: dict[str, JSON] = {
        "experiment": setup.experiment,
        "model_class": f"{type(setup.subject).__module__}.{type(setup.subject).__qualname__}",
        "seed": setup.seed,
        "recipe": recipe.identity_settings(),
        "source": notes.source_taken,
    }
    minimum = fit_base(setup.module, setup.datamodule, setup.trainer, setup.finish, setup.checkpoint, record)
    metrics = _validated(setup)
    right = model_answers.exact_match(setup.module, setup.datamodule)
    Manifest.at(setup.layout.manifest).record(
        "fit",
        {**setup.origin(), "recipe": recipe.identity_settings()},
        {
            "checkpoint": str(setup.checkpoint),
            "source": notes.source_taken,
            "source_reason": notes.source_reason,
            **notes.left_out,
            "J": minimum.value,
            "grad_norm": minimum.grad_norm,
            **{k: v for one in metrics for k, v in one.items()},
            **({"exact_match": right} if right else {}),
        },
    )
    tables.fitted(minimum, metrics, setup.checkpoint)
    tables.exact_match(right)
    return replace(setup, base=load_base(setup.checkpoint))


def _validated(setup: Setup) -> Sequence[Mapping[str, float]]:
    """What the model measures of its test or validation data; nothing for one that does not."""
    if not is_overridden("validation_step", setup.module):
        return []
    return setup.trainer.validate(setup.module, datamodule=setup.lightning_data, verbose=False)


def _refuse_other_data(setup: Setup) -> None:
    """A checkpoint fitted on other data is as much another result as one fitted with other settings.

    Raises:
        InputError: it was, and is not to be replaced.
    """
    if setup.base is None or setup.base.record["fingerprint"] == setup.datamodule.fingerprint():
        return
    raise InputError(
        f"The checkpoint {setup.base.path} was fitted on other data.\n"
        "  Name another --checkpoint to keep it, or --overwrite to replace it."
    )


def influence(setup: Setup) -> None:
    """Scores, top-k ids, and the table of the most helpful and harmful training samples."""
    if setup.rank > 0:
        _silence()
    setup.restore()
    warn_once(setup, trained=True)
    run = setup.influence_run(setup.layout, setup.overwrite)
    if setup.rank > 0:
        run.serve(setup.predict_trainer)
        return
    if setup.attribution.test_ids == "all":
        made = run.all_tests(setup.predict_trainer)
        run.self_influence(setup.predict_trainer)
        print(f"{made} tests scored now, {len(setup.datamodule.test_set)} in all: {setup.layout.index}")
        return
    stored = run.score_tests(setup.predict_trainer)
    if setup.attribution.corrected:
        top = {t: read_ids(setup.layout.topk_ids(t), setup.datamodule.train_set.ids.numpy()) for t in setup.test_ids}
        random = controls(setup.datamodule.train_set.ids.numpy(), setup.refit.random, setup.refit.seed)
        run.correct(stored, removals({t: found.tolist() for t, found in top.items()}, random))
    run.score_with(setup.test_ids, setup.predict_trainer)
    run.self_influence(setup.predict_trainer)
    for one in stored:
        tables.influence(one, setup.datamodule)


def _silence() -> None:
    """One process speaks for all of them; another has a word only where it fails before they have met."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("ifloo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def loo(setup: Setup) -> None:
    """Refits, and the verdict on what was predicted for them."""
    leave_one_out(setup)
    by = reporter(setup)
    try:
        verdict = by.verdict(setup.test_ids, setup.refit.top_k)
    except InputError as error:  # the refits are done and kept; only the comparison lacks something
        log.warning("no verdict yet: %s", error)
    else:
        tables.verdict(verdict)


def leave_one_out(setup: Setup) -> None:
    """Refits without the top-k ids of each test and the random controls."""
    setup.restore()
    warn_once(setup, trained=True)
    assert setup.base is not None
    contents = refuse_other_tests(setup, "influence", *(() if setup.overwrite else ("loo",)))
    ids = setup.test_ids
    known = setup.datamodule.train_set.ids.numpy()
    top = {t: read_ids(setup.layout.topk_ids(t), known)[: setup.refit.top_k].tolist() for t in ids}
    for t, found in top.items():
        if len(found) < setup.refit.top_k:
            log.warning(
                "%s holds %d ids, refit.top_k asks for %d.", setup.layout.topk_ids(t), len(found), setup.refit.top_k
            )
    files = {t: LossFiles(setup.layout.loo_losses(t), setup.layout.null_losses(t)) for t in ids}
    recipe = TrainerSettings(**setup.base.record["recipe"], accelerator=setup.accelerator)
    refits(setup, recipe, setup.origin(), files, top, "loo", contents)


class LossFiles(NamedTuple):
    """Where the refits of one test go, and its displaced null refits."""

    losses: Path
    nulls: Path


def refits(
    setup: Setup,
    recipe: TrainerSettings,
    origin: dict[str, JSON],
    paths: Mapping[int, LossFiles],
    top: Mapping[int, list[int]],
    section: str,
    contents: Mapping[str, JSON],
) -> None:
    """Refits a trained module without the `top` ids of each test and the controls; resumes what is there and matches.

    Args:
        setup: its module has the weights of the base model, its data are loaded.
        recipe: of each refit.
        origin: what the base model is.
        paths: where they go, by test.
        top: ids to leave out, by test.
        section: of the manifest.
        contents: SHA-256 of each test sample, by id.

    Raises:
        InputError: the folder holds refits of other settings.
        WorkError: a refit that did not converge.
    """
    random = controls(setup.datamodule.train_set.ids.numpy(), setup.refit.random, setup.refit.seed)
    start = functools.partial(copy.deepcopy, setup.module) if setup.refit.init == "warm" else setup.fresh_model()
    leaving = LeaveOneOut(
        base=setup.module,
        # A base fit that decays weights was recorded, or it would have been refused: refits may do as it did.
        refitter=Refitter(start, TrainingLoader(setup.datamodule), recipe, setup.finish, setup.fit_seed, decays=True),
        queries=setup.datamodule.test_batch(list(paths)),
        files=[LossFile(pair.losses) for pair in paths.values()],
        null_files=[LossFile(pair.nulls, "draw") for pair in paths.values()],
        n=len(setup.datamodule.train_set),
        settings=setup.refit,
        extra_refits=extra_refits(setup, list(paths), top, random) if section == "loo" else (),
        seed_files=[LossFile(setup.layout.seed_losses(t), "draw") for t in paths] if section == "loo" else (),
    )
    recorded: dict[str, JSON] = {
        **{"test_ids": list(paths), "top_k": setup.refit.top_k, "random_ids": list(random)},
        **leaving.recorded(),
    }
    named = [path for pair in paths.values() for path in pair]
    replaced = named if section != "loo" else [*setup.layout.existing_losses(), *named]
    manifest, settings = Manifest.at(setup.layout.manifest), {**origin, **_compared(setup, recipe)}
    compared = manifest.joined(section, settings, contents, recorded, setup.overwrite)
    opening = Section(manifest, section, compared, recorded, replaced, derived=setup.layout.verdict_files)
    with opening.opened(setup.overwrite):
        leaving.run(removals(top, random), random)


def _compared(setup: Setup, recipe: TrainerSettings) -> dict[str, JSON]:
    """The settings of refits that change a number."""
    return {
        "removal": setup.refit.removal,
        "init": setup.refit.init,
        "recipe": recipe.identity_settings(),
        "finish": {"after": setup.finish.after, "tolerance": setup.finish.tolerance},
        "controls_seed": setup.refit.seed,
    }


def extra_refits(
    setup: Setup, test_ids: list[int], top: Mapping[int, list[int]], random: Sequence[int]
) -> tuple[ExtraRefits, ...]:
    """The refits asked for beside plain removals."""
    made: list[ExtraRefits] = []
    if setup.refit.weight_steps:
        files = {w: [LossFile(setup.layout.weight_losses(w, t)) for t in test_ids] for w in WEIGHTS}
        made.append(WeightSteps(stepped(top, random, setup.refit.weight_steps), files))
    if setup.refit.groups:
        stored = {t: influences.load(setup.layout.scores(t)) for t in test_ids}
        ranked = {t: top_k(one.scores, one.train_ids, len(one.train_ids)) for t, one in stored.items()}
        named = groups(ranked, setup.refit.groups, setup.refit.seed)
        made.append(Groups(named, [GroupFile(setup.layout.group_losses(t)) for t in test_ids]))
    return tuple(made)


def report(setup: Setup) -> None:
    """The verdict, its table, the pictures, the page and TensorBoard; scores alone make a page without a verdict."""
    setup.restore()
    refuse_other_tests(setup, "influence", "loo")
    verdict = reporter(setup).run(setup.test_ids, setup.refit.top_k)
    tables.verdict(verdict)
    if verdict:
        print(f"verdict: {setup.layout.verdict}\npictures: {setup.layout.root / 'figs'}")
    if missing := [t for t in setup.test_ids if t not in verdict]:
        print(f"not verified yet: test {', '.join(map(str, missing))} (`ifloo loo` makes the refits)")
    print(f"report: {setup.layout.report}")


def reporter(setup: Setup) -> Reporter:
    outcomes = model_answers.outcomes(setup.module, setup.datamodule, setup.test_ids)
    parameters = tuple(setup.attribution.parameters)
    gradients = SampleGradients(setup.module, setup.datamodule.train_dataloader(), parameters)
    log_dir = Path("lightning_logs") / setup.experiment
    return Reporter(setup.layout, setup.datamodule, log_dir, outcomes, gradients)


def pipeline(setup: Setup) -> None:
    """Everything in turn; a base model and results that are already there and match are kept.

    Raises:
        InputError: tests or devices are asked for that refits cannot serve; said before any work.
    """
    _ = setup.test_ids
    setup.one_process("pipeline")
    setup.load_data()
    setup.datamodule.test_batch(setup.test_ids)  # an id out of range is said before the fit, not after
    if setup.base is None:
        setup = fit(setup)
    else:
        log.info("base model: %s is there and was fitted with these settings", setup.checkpoint)
    influence(setup)
    leave_one_out(setup)
    report(setup)


COMMANDS: Mapping[str, Callable[[Setup], object]] = {
    "fit": fit,
    "influence": influence,
    "loo": loo,
    "report": report,
    "pipeline": pipeline,
    "doctor": doctor,
}
