"""Settings that come from the checkpoint, and settings that contradict it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping

from jsonargparse import Namespace

from ifloo.data import DataNotes
from ifloo.errors import InputError
from ifloo.refit import BaseCheckpoint, TrainerSettings

RECIPE = [f.name for f in dataclasses.fields(TrainerSettings) if f.name != "accelerator"]


def inherit(config: Namespace, given: Namespace, base: BaseCheckpoint) -> None:
    """Completes `config`, in place, with the model and data settings the base model was fitted with.

    Args:
        config: of one command, complete with defaults.
        given: the part of it that flags and config files said.
        base: the checkpoint.

    Raises:
        InputError: the checkpoint is of another model, or something given is not what it was fitted with.
    """
    model = _class(config.model)
    fitted_as = base.record.get("model_class")  # None: by a Trainer that does not say it
    if (asked := f"{model.__module__}.{model.__qualname__}") != fitted_as and fitted_as is not None:
        raise InputError(
            f"The checkpoint {base.path} is of another model: it was fitted as {base.record.get('model_class')}, asked "
            f"{asked}.\n  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one."
        )
    differing = [
        *_completed("model", config.model, given.get("model"), base.model),
        *_completed("data", config.data, given.get("data"), base.data),
        *_contradictions(given, base),
    ]
    if differing:
        raise InputError(
            f"The checkpoint {base.path} was fitted with other settings.\n"
            + "\n".join(differing)
            + "\n  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or "
            "fit again (`ifloo fit` or `ifloo pipeline` with --overwrite)."
        )


def _completed(group: str, config: Namespace, given: object, stored: Mapping[str, object]) -> list[str]:
    """Sets what was not said of one group; returns a line for each thing said that differs."""
    said, free, differing = init_args(given), _free_settings(config), []
    taken = _taken(_class(config))
    for name, value in stored.items():
        if not taken(name):  # a parent class that notes its own settings too; Lightning leaves them out as well
            continue
        if name not in said:
            config.init_args[name] = value
        elif name not in free and said[name] != value:
            differing.append(f"  {group}.{name}: fitted with {value!r}, asked {said[name]!r}")
    return differing


def _contradictions(given: Namespace, base: BaseCheckpoint) -> list[str]:
    """A line for each setting of the Trainer, or seed, that was said and is not that of the fit."""
    differing = []
    said_trainer = given.get("trainer") or Namespace()
    recipe = base.record.get("recipe", {})
    asked = TrainerSettings.from_flags(said_trainer).identity_settings()
    for name in RECIPE:
        if name in said_trainer and name in recipe and asked[name] != recipe[name]:
            differing.append(f"  trainer.{name}: fitted with {recipe[name]!r}, asked {asked[name]!r}")
    if "seed_everything" in given and given["seed_everything"] != base.record.get("seed"):
        differing.append(f"  seed_everything: fitted with {base.record.get('seed')}, asked {given['seed_everything']}")
    return differing


def init_args(group: object) -> dict[str, object]:
    """The arguments of a class that a config names, by name; none where it names no class."""
    given = group.get("init_args") if isinstance(group, Namespace) else None
    return {} if given is None else {name: given[name] for name in given.keys(branches=True) if "." not in name}


def _taken(made: type) -> Callable[[str], bool]:
    """Whether a constructor takes a setting of this name."""
    parameters = inspect.signature(made).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return lambda name: anything or name in parameters


def _free_settings(group: Namespace) -> frozenset[str]:
    """Settings of a data module that change no number, as its class says."""
    return DataNotes(_class(group)).free_settings


def _class(group: Namespace) -> type:
    module, name = group.class_path.rsplit(".", 1)
    found: type = getattr(importlib.import_module(module), name)
    return found
