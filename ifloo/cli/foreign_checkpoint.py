"""How a checkpoint that does not say how it was trained is refitted: as flags and config say, now or at its scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ifloo.cli.checkpoint_settings import RECIPE
from ifloo.errors import InputError
from ifloo.refit import TrainerSettings
from ifloo.store import Layout, Manifest


def said_recipe(
    given: Namespace, checkpoint: Path, layout: Layout, refitting: bool, overwrite: bool = False
) -> dict[str, Any]:
    """Settings of the Trainer that were said, by name; those of the scores in the folder unless said anew.

    Args:
        given: what flags and config files say, without defaults.
        checkpoint: from elsewhere.
        layout: where its scores are, if there are any.
        refitting: these scores are to be held against refits, and are not made or completed now.
        overwrite: what was said before goes with what is replaced.

    Raises:
        InputError: refits are asked for in another way than was said when the model was scored, or on part of the data.
    """
    trainer = given.get("trainer") or Namespace()
    _refuse_parts(trainer)
    asked = TrainerSettings.from_flags(trainer).identity_settings()
    now = {name: asked[name] for name in RECIPE if trainer.get(name) is not None}  # null is Lightning's default
    sections = {} if overwrite else Manifest.at(layout.manifest).sections()
    recorded = sections.get("influence", {}).get("recorded") or {}
    before = {name: value for name, value in (recorded.get("recipe") or {}).items() if name in RECIPE}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed and (refitting or "loo" in sections):  # said before anything is written
        raise InputError(
            f"{layout.manifest}: another way to train was said when the checkpoint {checkpoint}, which does not say "
            "it itself, was scored.\n"
            + "\n".join(f"  trainer.{name}: then {before[name]!r}, now {now[name]!r}" for name in changed)
            + "\n  Leave these settings out (refits then train as was said), or give them to `ifloo influence` first: "
            "it keeps the scores that are there."
        )
    return {**before, **now}


def _refuse_parts(trainer: Namespace) -> None:
    limit, overfit = trainer.get("limit_train_batches"), trainer.get("overfit_batches")
    if limit not in (None, 1.0) or overfit:
        raise InputError(
            f"Refits train on all the data, as J is over all of it; got limit_train_batches = {limit}, overfit_batches "
            f"= {overfit}.\n  To train on fewer samples limit the data module."
        )
