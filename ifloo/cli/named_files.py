"""Commands whose output files the caller names: what the scripts of the original tool ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ifloo.cli import tables
from ifloo.cli.commands import LossFiles, refits
from ifloo.cli.commands import influence as influence_command
from ifloo.cli.setup import Setup
from ifloo.refit import TrainerSettings
from ifloo.stages.scores.records import contents_of
from ifloo.store import Layout, StoredInfluences, influences, read_ids, save_topk, top_k, write_npy


def influence_to(npy: Path | None, topk: Path | None) -> Callable[[Setup], None]:
    """Scores of one test to a named npy, the npz beside it, and its top-k ids to a named text file.

    The files named are replaced; their settings go to the manifest beside them.
    """

    def work(setup: Setup) -> None:
        setup.restore()
        (t,) = setup.test_ids
        layout = Layout(npy.parent) if npy else setup.layout
        run = setup.influence_run(layout, overwrite=True)
        found: list[StoredInfluences] = []
        run.score([t], setup.predict_trainer, found.append)
        (one,) = found
        run.record("influence", [t])
        for stale in layout.verdict_files:
            stale.unlink(missing_ok=True)
        influences.save(layout.scores(t), one)
        if npy:
            write_npy(npy, one.scores)
        save_topk(topk or layout.topk_ids(t), top_k(one.scores, one.train_ids, setup.attribution.top_k))
        tables.influence(one, setup.datamodule)

    return work


def all_tests_to(folder: Path, resume: bool) -> Callable[[Setup], None]:
    """Scores of every test to a named folder, resumed where they match or made anew."""

    def work(setup: Setup) -> None:
        root = folder.parent if folder.name == "all_tests" else folder
        influence_command(replace(setup, layout=Layout(root, all_tests_in=folder), overwrite=not resume))

    return work


def loo_to(topk: Path, jsonl: Path) -> Callable[[Setup], None]:
    """Fits a base model from scratch, then refits without each id of a file; losses to a named jsonl, resumed.

    Raises:
        InputError: the ids are no training ids, or the jsonl holds refits of other settings.
    """

    def work(setup: Setup) -> None:
        (t,) = setup.test_ids
        layout = Layout(jsonl.parent)
        section = "loo" if jsonl == layout.loo_losses(t) else f"loo of {jsonl.name}"
        setup.load_data()
        ids = read_ids(topk, setup.datamodule.train_set.ids.numpy()).tolist()
        setup.trainer.fit(setup.module, datamodule=setup.lightning_data)
        assert setup.finish.minimum is not None
        tables.fitted(setup.finish.minimum, [], None)
        # The settings of the fit stand for its weights, which another machine may round otherwise.
        origin = {name: value for name, value in setup.origin().items() if name != "weights"}
        paths = {t: LossFiles(jsonl, jsonl.parent / "null" / jsonl.name)}
        recipe, contents = TrainerSettings.of(setup.trainer), contents_of(setup.datamodule, [t])
        refits(replace(setup, layout=layout), recipe, origin, paths, {t: ids}, section, contents)

    return work
