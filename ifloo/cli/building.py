"""Module and data module made by a function of the user, in place of classes with settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import lightning as L
from jsonargparse import Namespace

from ifloo.cli.adaptation import dotted
from ifloo.cli.checkpoint_settings import class_of, init_args
from ifloo.cli.experiment import Build
from ifloo.cli.parser import IflooParser
from ifloo.errors import InputError, in_one_line
from ifloo.models.lightning_classes import is_data_module, is_module
from ifloo.objective.user_code import user_code


def build_of(config: Namespace, given: Namespace) -> Build | None:
    """Returns the function that --build names; None where the settings name classes.

    Raises:
        InputError: If both ways are given or neither is, or there is no such function.
    """
    if config.build is None:
        if config.model is None:
            raise InputError(
                "No model is given.\n  Give --model my_project.MyModule (and --data), or --build my_project.make, a "
                "function that returns (module, datamodule)."
            )
        return None
    if both := [f"--{name}" for name in ("model", "data") if given.get(name) is not None]:
        raise InputError(
            f"--build {config.build} makes module and data; {' and '.join(both)} would make others.\n  Give one of the "
            "two ways."
        )
    make = dotted(config.build, "build")
    return _Checked(config.build, make)


def made_with(group: Namespace, objects: Mapping[str, object]) -> object:
    """Makes the class of a config with further arguments that no config can hold."""
    class_ = class_of(group)
    parser = IflooParser(exit_on_error=False)
    parser.add_class_arguments(class_, "made", fail_untyped=False, instantiate=False, skip=set(objects))
    plain = Namespace({name: value for name, value in init_args(group).items() if name not in objects})
    arguments = parser.instantiate_classes(Namespace(made=plain)).made
    return class_(**{**dict(arguments.items(branches=True, nested=False)), **objects})


def misfits(group: Namespace, values: Mapping[str, object]) -> list[str]:
    """Lists the arguments whose values the parser does not accept for the class of a config, with its reason."""
    parser = IflooParser(exit_on_error=False)
    parser.add_class_arguments(class_of(group), "made", fail_untyped=False, instantiate=False)
    found = []
    for name, value in values.items():
        try:
            parser.validate(Namespace(made=Namespace({name: value})), skip_required=True)
        except Exception as error:  # a value from a file may be anything
            found.append(f"{name} = {textwrap.shorten(repr(value), 60)} ({textwrap.shorten(in_one_line(error), 160)})")
    return found


class _Checked:
    """A function of the user whose result is checked."""

    def __init__(self, name: str, make: Build) -> None:
        self.name, self.make = name, make

    def __call__(self) -> tuple[L.LightningModule, L.LightningDataModule | None]:
        """Makes module and data module.

        Raises:
            InputError: If the function fails, or returns something else.
        """
        with user_code(f"--build {self.name}", remedy="It must need no arguments and return (module, datamodule)."):
            made: object = self.make()
        module, data = made if isinstance(made, (tuple, list)) and len(made) == 2 else (made, None)
        if is_module(module) and (data is None or is_data_module(data)):
            return module, data
        found = f"({', '.join(type(one).__name__ for one in made)})" if isinstance(made, tuple) else type(made).__name__
        raise InputError(
            f"--build {self.name} returned {found}.\n  It must return (module, datamodule): a LightningModule and a "
            "LightningDataModule, or None where the module has its own loaders."
        )
