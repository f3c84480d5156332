"""Completion scripts for shells: the commands, the settings of each, and values of some settings.

shtab writes the script from a plain argparse parser, which is copied here from the parsers of the command line. The
script of jsonargparse itself follows each class that a setting may name into the classes of its arguments, and does
not end with those of Lightning.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

import ifloo
from ifloo import attribution, curvature, data, models, solvers
from ifloo.cli.help import COMMANDS
from ifloo.cli.lightning_cli import IflooCLI
from ifloo.errors import InputError

_ROOMS = (models, data, curvature, solvers, attribution)
# Classes that ifloo wraps around a class in the config; a config does not name them.
_WRAPPERS = (models.Adapted, data.AdaptedData)
_ADDS = "+"  # `--key+ VALUE` adds to the list `--key`; in zsh a plus at the end of an option has another meaning

# A config is a file, or the name of one that comes with ifloo.
_CONFIGS = {
    "bash": '_ifloo_config_file() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": '_ifloo_config() {{ _alternative "names:config:({names})" "files:file:_files" }}',
}
_COMPLETE = {
    "bash": "_ifloo_config_file",
    "zsh": "_ifloo_config",
    "fish": "{names} (__fish_complete_path (commandline -ct))",
}


def completion(words: Sequence[str]) -> int:
    """Prints the script for the shell in `words`; returns the exit code (2: wrong input)."""
    try:
        print(script(words), end="")
    except InputError as error:
        print(f"ifloo: error: {error}", file=sys.stderr)
        return 2
    return 0


def script(words: Sequence[str]) -> str:
    """Returns the completion script of this version for a shell.

    Args:
        words: Words after `--completion`: the name of one shell.

    Raises:
        InputError: If shtab is not installed or does not support the shell.
    """
    if find_spec("shtab") is None:
        raise InputError(
            "--completion: the script is written by the package shtab, which is not installed.\n"
            "  Install it with: pip install 'ifloo[completion]'"
        )
    import shtab

    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        raise InputError(
            f"--completion: expected the name of one shell, came {' '.join(words) or 'nothing'}.\n"
            f"  Give one of {', '.join(shtab.SUPPORTED_SHELLS)}."
        )
    (shell,) = words
    names = " ".join(sorted(path.stem for path in (Path(ifloo.__file__).parent / "configs").glob("*.yaml")))
    parser = _Listing().plain(names, shtab.SUPPORTED_SHELLS)
    return shtab.complete(parser, shell, preamble=_CONFIGS.get(shell, "").format(names=names)) + "\n"


class _Listing(IflooCLI):
    """Command line that only builds its parsers; it parses, instantiates and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = Namespace(subcommand=None, seed_everything=False)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def plain(self, configs: str, shells: Sequence[str]) -> argparse.ArgumentParser:
        """Returns a plain argparse parser of all commands and settings, with the values that may follow each."""
        parser = argparse.ArgumentParser("ifloo")
        parser.add_argument("--version", action="store_true", help="the version")
        parser.add_argument("--completion", choices=shells, help="a script that completes commands and settings on TAB")
        commands = parser.add_subparsers()
        for name, text in COMMANDS.items():
            _copy(self._parser(name), commands.add_parser(name, help=text, description=text), configs)
        return parser


def _copy(parser: ArgumentParser, to: argparse.ArgumentParser, configs: str) -> None:
    """Copies the options of a parser of the command line, and the settings of the classes that they may name."""
    for action in parser._actions:
        options = [option for option in action.option_strings if not option.endswith(_ADDS)]
        if not options or "--help" in options:  # a plain parser adds --help itself
            continue
        text = str(action.help or "").split("\n")[0].replace("%", "%%")
        if action.nargs == 0 or "--print_config" in options:  # its optional value follows a `=`
            to.add_argument(*options, action="store_true", help=text)
            continue
        hint, is_help = getattr(action, "_typehint", None), options[0].endswith(".help")
        added = to.add_argument(*options, nargs="?" if is_help else None, help=text)
        _complete(added, hint, configs if "--config" in options else None)
        if not is_help:
            _copy_settings(options[0], _classes(hint), to)


def _copy_settings(option: str, classes: Mapping[str, Mapping[str, object]], to: argparse.ArgumentParser) -> None:
    """Adds the settings of the classes that an option may name; a setting of several classes is added once."""
    kinds: dict[str, Any] = {}
    for settings in classes.values():
        for name, kind in settings.items():
            kinds[name] = kinds[name] | kind if name in kinds else kind
    for name, kind in kinds.items():
        owners = [one.rpartition(".")[2] for one, settings in classes.items() if name in settings]
        _complete(to.add_argument(f"{option}.{name}", help=f"of {', '.join(owners)}"), kind)


def _complete(action: argparse.Action, hint: object, configs: str | None = None) -> None:
    """Sets the values that may follow an option: those of its type, else files where a text may name one."""
    import shtab

    if configs is not None:
        action.complete = {shell: text.format(names=configs) for shell, text in _COMPLETE.items()}  # type: ignore[attr-defined]
    elif offered := [*_values(hint), *_classes(hint)]:
        action.choices = offered
    elif hint is None or {str, Path} & set(_alternatives(hint)):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _alternatives(hint: object) -> Iterator[object]:
    """Yields the members of a union, or the type itself; items of a list are no value of the option, `[...]` is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _alternatives(one)
    else:
        yield hint


def _values(hint: object) -> list[str]:
    """Lists the words that a type accepts: those of booleans and literals."""
    found: list[str] = []
    for one in _alternatives(hint):
        if one is bool:
            found += ["true", "false"]
        elif typing.get_origin(one) is typing.Literal:
            found += [str(value) for value in typing.get_args(one)]
    return list(dict.fromkeys(found))


def _classes(hint: object) -> dict[str, dict[str, object]]:
    """Lists classes of ifloo that a setting of this type may name, each with its settings and their types."""
    found: dict[str, dict[str, object]] = {}
    for one in _alternatives(hint):
        given, base = typing.get_args(one) if typing.get_origin(one) is Callable else ([], one)
        if inspect.isclass(base) and base.__module__ != "builtins":
            found |= {
                name: settings
                for name, class_ in _public_classes()
                if issubclass(class_, base) and (settings := _settings(class_, given)) is not None
            }
    return found


def _settings(class_: type, given: Sequence[type]) -> dict[str, object] | None:
    """Returns the arguments of a constructor after those that ifloo gives it; None if it takes others than these."""
    kinds = typing.get_type_hints(class_.__init__)  # type: ignore[misc]
    names = list(inspect.signature(class_).parameters)
    if given and (not names or kinds[names[0]] is not given[0]):
        return None
    return {name: kinds[name] for name in names[len(given) :]}


def _public_classes() -> Iterator[tuple[str, type]]:
    """Yields name and class of each public class that a config may name."""
    for room in _ROOMS:
        for name in room.__all__:
            class_ = getattr(room, name)
            if inspect.isclass(class_) and not inspect.isabstract(class_) and class_ not in _WRAPPERS:
                yield f"{room.__name__}.{name}", class_
