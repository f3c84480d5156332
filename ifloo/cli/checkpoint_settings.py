"""Settings that the checkpoint completes, and settings that contradict it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import Namespace

from ifloo.cli.checkpoint_values import Foreign, is_plain
from ifloo.data import DataNotes
from ifloo.errors import InputError
from ifloo.refit import BaseCheckpoint, TrainerSettings

log = logging.getLogger(__name__)
RECIPE = [f.name for f in dataclasses.fields(TrainerSettings) if f.name != "accelerator"]


@dataclass
class Inherited:
    """Arguments that a checkpoint completed.

    Attributes:
        filled: Values by group and name, those of the defaults left out.
        objects: Values that no config can hold, by group and name: their classes are made with them directly.
    """

    filled: dict[str, dict[str, object]] = field(default_factory=dict)
    objects: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """All values in one line."""
        return ", ".join(
            f"{group}.{name} = {textwrap.shorten(repr(value), 60)}"
            for group, values in self.filled.items()
            for name, value in values.items()
        )


def inherit(
    config: Namespace, given: Namespace, base: BaseCheckpoint, own: bool = True, trusted: bool = False
) -> Inherited:
    """Completes `config`, in place, with the model and data settings the base model was fitted with.

    Args:
        config: Settings of one command, complete with defaults.
        given: Settings in flags and config files, without defaults.
        base: Checkpoint of the base model.
        own: Whether the checkpoint is one of the user's runs; from another no path of built-in data is taken, and no
            name of what is to be imported.
        trusted: Whether one that is not may name what is to be imported.

    Raises:
        InputError: If the checkpoint is of another model, was fitted with other values of given settings, or names
            what is to be imported.
    """
    found = Inherited()
    differing: list[str] = []

    def foreign(group: str) -> Foreign | None:
        return None if own else Foreign(class_of(config[group]), group, base.path, trusted)

    if config.model is not None:
        refuse_other_class(base, class_of(config.model))
        differing += _completed("model", config.model, given.get("model"), base.model, found, foreign("model"))
    if config.data is not None:
        stored = base.data if own else _without_paths(base, class_of(config.data), init_args(given.get("data")))
        differing += _completed("data", config.data, given.get("data"), stored, found, foreign("data"))
    differing += _contradictions(given, base)
    if differing:
        raise InputError(
            f"The checkpoint {base.path} was fitted with other settings.\n"
            + "\n".join(differing)
            + "\n  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or "
            "fit again (`ifloo fit` or `ifloo pipeline` with --overwrite)."
        )
    return found


def refuse_other_class(base: BaseCheckpoint, model: type) -> None:
    """Checks that the checkpoint is of this class, where it records one; the Trainer of a project records none.

    Raises:
        InputError: If it is of another class.
    """
    fitted_as = base.record.get("model_class")
    if (asked := f"{model.__module__}.{model.__qualname__}") != fitted_as and fitted_as is not None:
        raise InputError(
            f"The checkpoint {base.path} is of another model: it was fitted as {base.record.get('model_class')}, asked "
            f"{asked}.\n  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one."
        )


def refuse_missing(config: Namespace, given: Namespace, inherited: Inherited, checkpoint: Path | None) -> None:
    """Checks that model and data module have all the arguments that they require.

    Raises:
        InputError: If some are neither given nor in the checkpoint.
    """
    for group in ("model", "data"):
        if config[group] is None:
            continue
        known = {*init_args(given.get(group)), *inherited.filled.get(group, ()), *inherited.objects.get(group, ())}
        parameters = inspect.signature(class_of(config[group])).parameters.values()
        required = [one.name for one in parameters if one.default is one.empty and one.kind not in _VARIADIC]
        if missing := [name for name in required if name not in known]:
            where = "" if checkpoint is None else f", and {checkpoint} does not hold them"
            raise InputError(
                f"{config[group].class_path}: the following arguments are required: {', '.join(missing)}{where}.\n"
                f"  Give them: {' '.join(f'--{group}.{name}=...' for name in missing)}; or --build my_project.make, a "
                "function that returns (module, datamodule)."
            )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _without_paths(base: BaseCheckpoint, data: type, given: Mapping[str, object]) -> dict[str, object]:
    """Leaves out the paths of built-in data modules: a file from elsewhere must not choose what is read here.

    Raises:
        InputError: If the fit read other paths than the default ones, and none are given.
    """
    paths, parameters = DataNotes(data).path_settings, inspect.signature(data).parameters
    stored = {name: value for name, value in base.data.items() if name in paths}
    if asked := {k: v for k, v in stored.items() if k not in given and v != parameters[k].default}:
        raise InputError(
            f"The fit of {base.path} read {', '.join(f'data.{name} = {value}' for name, value in asked.items())}; "
            f"paths are not taken from --ckpt_path.\n  Give them: {' '.join(f'--data.{name}=...' for name in asked)}."
        )
    return {name: value for name, value in base.data.items() if name not in paths}


def _completed(
    group: str,
    config: Namespace,
    given: object,
    stored: Mapping[str, object],
    found: Inherited,
    foreign: Foreign | None,
) -> list[str]:
    """Sets the missing settings of one group; returns a line for each given setting that differs.

    Args:
        group: `model` or `data`.
        config: Settings of the group.
        given: Those in flags and config files.
        stored: Those in the checkpoint.
        found: Arguments that the checkpoint completed, to be added to.
        foreign: Arguments of a checkpoint from elsewhere; None where the user's own run wrote it.
    """
    given_settings, free, differing = init_args(given), _free_settings(config), []
    defaults = {one.name: one.default for one in inspect.signature(class_of(config)).parameters.values()}
    accepts = _accepted(class_of(config))
    for name, value in stored.items():
        if not accepts(name):  # a parent class saved its own settings too; Lightning ignores them as well
            continue
        if name not in given_settings:
            if is_plain(value) if foreign is None else foreign.parsed(name, value):
                config.init_args[name] = value
            else:
                found.objects.setdefault(group, {})[name] = value
            if not (is_plain(value) and name in defaults and defaults[name] == value):
                found.filled.setdefault(group, {})[name] = value
        elif name in free or given_settings[name] == value:
            continue
        elif foreign is not None and foreign.imports(name, value):  # two names of one function or class may differ
            log.info("%s.%s is that given; %s has %r.", group, name, foreign.checkpoint, value)
        else:
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
    return DataNotes(class_of(group)).free_settings


def class_of(group: Namespace) -> type:
    """Imports the class of a config."""
    module, name = group.class_path.rsplit(".", 1)
    found: type = getattr(importlib.import_module(module), name)
    return found
