"""Commands whose output files the caller names, as the scripts of the original tool do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ifloo.cli import tables
from ifloo.cli.commands import influence as influence_command
from ifloo.cli.session import Session
from ifloo.refit import TrainerSettings
from ifloo.refit.fit_termination import fit_unless_terminated
from ifloo.refit.stage import SECTION, LossFiles
from ifloo.store import Layout, StoredInfluences, influences, read_ids, save_topk, top_k, write_npy


def influence_to(npy: Path | None, topk: Path | None) -> Callable[[Session], None]:
    """Returns a command that writes the scores of one test to a named npy, with the npz beside it, and its top-k ids.

    The named files are replaced; their settings go to the manifest beside them.

    Args:
        npy: File of the scores; None: the npz in the folder of results alone.
        topk: Text file of the top-k ids; None: the default file of the folder.
    """

    def command(session: Session) -> None:
        exp = session.experiment
        exp.restore()
        (t,) = exp.test_ids
        layout = Layout(npy.parent) if npy else exp.layout
        stage = session.writing_to(layout, overwrite=True).influence_stage()
        scored: list[StoredInfluences] = []
        stage.score([t], scored.append)
        (one,) = scored
        stage.record("influence", [t])
        for stale in layout.verdict_files:
            stale.unlink(missing_ok=True)
        influences.save(layout.scores(t), one)
        if npy:
            write_npy(npy, one.scores)
        save_topk(topk or layout.topk_ids(t), top_k(one.scores, one.train_ids, exp.attribution.top_k))
        tables.influence(one, exp.datamodule)

    return command


def all_tests_to(folder: Path, resume: bool) -> Callable[[Session], None]:
    """Returns a command that writes the scores of every test to a named folder.

    Args:
        folder: Folder of the scores.
        resume: Whether scores of the same settings are kept; else all are computed again.
    """

    def command(session: Session) -> None:
        root = folder.parent if folder.name == "all_tests" else folder
        influence_command(session.writing_to(Layout(root, all_tests_in=folder), overwrite=not resume))

    return command


def loo_to(topk: Path, jsonl: Path) -> Callable[[Session], None]:
    """Returns a command that fits a base model from scratch, then refits without each id of a file.

    Losses go to a named jsonl; refits of the same settings in it are kept. The command raises an `InputError` where an
    id is no training id, or the jsonl holds refits of other settings.

    Args:
        topk: Text file of training ids.
        jsonl: File of the losses.
    """

    def command(session: Session) -> None:
        exp = session.experiment
        (t,) = exp.test_ids
        layout = Layout(jsonl.parent)
        section = SECTION if jsonl == layout.loo_losses(t) else f"{SECTION} of {jsonl.name}"
        exp.load_data()
        ids = read_ids(topk, exp.datamodule.train_set.ids.numpy()).tolist()
        fit_unless_terminated(session.trainer, exp.module, exp.lightning_data)
        assert exp.finish.minimum is not None
        tables.fitted(exp.finish.minimum, [], None)
        stage = session.writing_to(layout, session.overwrite).refit_stage(TrainerSettings.of(session.trainer))
        # The settings of the fit stand for its weights, which another machine may round otherwise.
        base_settings = {name: value for name, value in stage.base_settings.items() if name != "weights"}
        files = {t: LossFiles(jsonl, jsonl.parent / "null" / jsonl.name)}
        replace(stage, base_settings=base_settings).leave_out({t: ids}, files, section)

    return command
