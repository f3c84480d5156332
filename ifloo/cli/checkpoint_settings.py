"""Settings that the checkpoint completes, and settings that contradict it."""

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
        config: Settings of one command, complete with defaults.
        given: Settings in flags and config files, without defaults.
        base: Checkpoint of the base model.

    Raises:
        InputError: If the checkpoint is of another model, or was fitted with other values of given settings.
    """
    model = _class(config.model)
    fitted_as = base.record.get("model_class")  # None: the Trainer that wrote it does not record the class
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
    """Sets the missing settings of one group; returns a line for each given setting that differs."""
    given_settings, free, differing = init_args(given), _free_settings(config), []
    accepts = _accepted(_class(config))
    for name, value in stored.items():
        if not accepts(name):  # a parent class saved its own settings too; Lightning ignores them as well
            continue
        if name not in given_settings:
            config.init_args[name] = value
        elif name not in free and given_settings[name] != value:
            differing.append(f"  {group}.{name}: fitted with {value!r}, asked {given_settings[name]!r}")
    return differing


def _contradictions(given: Namespace, base: BaseCheckpoint) -> list[str]:
    """Returns a line for each given setting of the Trainer, or seed, that differs from that of the fit."""
    differing = []
    trainer = given.get("trainer") or Namespace()
    recipe = base.record.get("recipe", {})
    asked = TrainerSettings.from_flags(trainer).identity_settings()
    for name in RECIPE:
        if name in trainer and name in recipe and asked[name] != recipe[name]:
            differing.append(f"  trainer.{name}: fitted with {recipe[name]!r}, asked {asked[name]!r}")
    if "seed_everything" in given and given["seed_everything"] != base.record.get("seed"):
        differing.append(f"  seed_everything: fitted with {base.record.get('seed')}, asked {given['seed_everything']}")
    return differing


def init_args(group: object) -> dict[str, object]:
    """Returns the arguments of the class in a config, by name; none where it contains no class."""
    given = group.get("init_args") if isinstance(group, Namespace) else None
    return {} if given is None else {name: given[name] for name in given.keys(branches=True) if "." not in name}


def _accepted(class_: type) -> Callable[[str], bool]:
    """Returns a predicate: does the constructor accept a setting of this name?"""
    parameters = inspect.signature(class_).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return lambda name: anything or name in parameters


def _free_settings(group: Namespace) -> frozenset[str]:
    """Returns the settings of a data module that change no number, as its class lists them."""
    return DataNotes(_class(group)).free_settings


def _class(group: Namespace) -> type:
    module, name = group.class_path.rsplit(".", 1)
    found: type = getattr(importlib.import_module(module), name)
    return found
