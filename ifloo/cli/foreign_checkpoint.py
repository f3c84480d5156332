"""Trainer settings for refits of a checkpoint that does not contain them: those given now or when it was scored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ifloo.cli.checkpoint_settings import RECIPE
from ifloo.errors import InputError
from ifloo.refit import BaseCheckpoint, TrainerSettings
from ifloo.refit.checkpoint import epochs_run
from ifloo.refit.checkpoint_objects import trust_notice
from ifloo.refit.selection import Init
from ifloo.refit.trainer_settings import refuse_partial_data
from ifloo.store import Layout, Manifest


@rank_zero_only  # of many processes, the first prints
def print_trust(checkpoint: Path) -> None:
    """Prints what a trusted checkpoint imports when it is read, before it is."""
    if checkpoint.is_file() and (notice := trust_notice(checkpoint)) is not None:
        print(f"--trust_checkpoint: {notice}", file=sys.stderr, flush=True)


def given_recipe(
    given: Namespace, checkpoint: Path, layout: Layout, refitting: bool, overwrite: bool = False
) -> dict[str, Any]:
    """Collects the given settings of the Trainer, by name; those recorded with the scores fill in for missing ones.

    Args:
        given: Settings in flags and config files, without defaults.
        checkpoint: File of the checkpoint.
        layout: Folder of its scores, if any exist.
        refitting: Whether refits are to be compared with these scores, which are not computed or completed now.
        overwrite: Whether the scores, and with them the recorded settings, are replaced.

    Raises:
        InputError: If a setting differs from the one given when the model was scored, or trains on part of the data.
    """
    trainer = given.get("trainer") or Namespace()
    refuse_partial_data(trainer.get("limit_train_batches"), trainer.get("overfit_batches"))
    asked = TrainerSettings.from_flags(trainer).identity_settings()
    now = {name: asked[name] for name in RECIPE if trainer.get(name) is not None}  # null is Lightning's default
    sections = {} if overwrite else Manifest.at(layout.manifest).sections()
    recorded = sections.get("influence", {}).get("recorded") or {}
    before = {name: value for name, value in (recorded.get("recipe") or {}).items() if name in RECIPE}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed and (refitting or "loo" in sections):  # fails before anything is written
        raise InputError(
            f"{layout.manifest}: other settings were given for refits of the checkpoint {checkpoint}, which does not "
            "contain its own, when it was scored.\n"
            + "\n".join(f"  trainer.{name}: then {before[name]!r}, now {now[name]!r}" for name in changed)
            + "\n  Leave these settings out (refits then train with the former ones), or give them to `ifloo "
            "influence` first: it keeps the scores that exist."
        )
    return {**before, **now}


def refits_in_words(base: BaseCheckpoint, init: Init) -> str:
    """Describes how long refits of a checkpoint train that does not hold the settings of its Trainer, and from where.

    Args:
        base: Checkpoint.
        init: Start of each refit.
    """
    recipe, given = base.record["recipe"], base.record["given"]
    start = (
        "the weights of the checkpoint (refit.init warm)" if init == "warm" else "untrained models (refit.init cold)"
    )
    if recipe["max_steps"] > 0:
        length, reason = _counted(recipe["max_steps"], "step"), "as given"
    else:
        length = _counted(recipe["max_epochs"], "epoch")
        ran = epochs_run(base.content)
        if "max_epochs" in given:
            reason = "as given"
        elif init == "cold" and ran is not None:
            reason = "as many as the checkpoint had begun"
        else:
            reason = "a default, since the checkpoint does not hold the settings of its Trainer"
            reason += f"; its fit ran {_counted(ran, 'epoch')}" if ran is not None else ""
    return f"refits: {length} each ({reason}), from {start}. --trainer.max_epochs gives another number"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
