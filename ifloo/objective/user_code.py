"""Failures of the user's code as errors of input: what failed, the exception in its own words, and the user's line."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import torch
from torch import nn

import ifloo
from ifloo.errors import IflooError, InputError
from ifloo.objective.out_of_memory import is_out_of_memory
from ifloo.objective.torch_texts import meaning_of, shortened

_FRAMEWORKS = ("torch", "functorch", "lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning")
_CHECKERS = ("torchmetrics", "jaxtyping", "beartype", "typeguard", "jsonargparse")  # never the place of a fault
_STDLIB = tuple(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))
_IFLOO, _TORCH = Path(ifloo.__file__).parent, Path(torch.__file__).parent
_WORKER = re.compile(r"^Caught \w+ in [^\n]*worker[^\n]*\.\nOriginal Traceback.*?$", re.MULTILINE)
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)


class _Place(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        """File and line; relative to the working directory where the file lies in it."""
        path = Path(self.file)
        return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{self.line}"


class RemoteError(Exception):
    """Traceback of an exception in another process, as text: the cause of the same exception in this one."""


@contextmanager
def user_code(what: str, when: str = "", remedy: str = "") -> Generator[None, None, None]:
    """Turns any exception of the user's code within the context into an InputError.

    Errors of ifloo and failed allocations pass as they are, as do interrupts, which are no `Exception`.

    Args:
        what: Name of the code, such as "training_step of Net".
        when: What it was called for, such as "on one sample".
        remedy: Sentences for the last line of the message.

    Raises:
        InputError: The code failed.

    Example:
        >>> with user_code("training_step of Net", "on one sample"):
        ...     {}["label"]
        Traceback (most recent call last):
        ifloo.errors.InputError: training_step of Net failed on one sample: KeyError: 'label'
    """
    try:
        yield
    except Exception as error:
        if passes(error):
            raise
        failure = user_error(what, when, error, remedy)
        raise failure from error


def failed_user_code(error: BaseException) -> InputError | None:
    """Returns the error of the user's code that raised an exception; None for a failure of ifloo itself.

    It is for the outermost place of a program, where exceptions of user code arrive that no `user_code` has turned.
    """
    found: BaseException | None = error
    while isinstance(found, Exception) and not passes(found):
        if entry := _entry_into_user_code(found.__traceback__):
            owner, name = entry.f_locals.get("self"), entry.f_code.co_name
            return user_error(name if owner is None else f"{name} of {type(owner).__name__}", "", found)
        found = found.__cause__ or found.__context__  # jsonargparse raises an error of its own from that of a class
    return None


def _entry_into_user_code(trace: TracebackType | None) -> FrameType | None:
    """Returns the first frame of the user's code below the last of ifloo; None if the failure is in ifloo itself."""
    entry: FrameType | None = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(_IFLOO):
            entry = None
        elif entry is None and not _of_frameworks(file) and not _installed(file):
            entry = trace.tb_frame
        trace = trace.tb_next
    return entry


def passes(error: Exception) -> bool:
    """Whether an error is none of the user's code: one that ifloo raises itself, or a failed allocation."""
    return isinstance(error, IflooError) or is_out_of_memory(error)


def user_error(what: str, when: str, error: Exception, remedy: str = "") -> InputError:
    """Builds the error of failed user code, which the caller raises from the exception itself."""
    failed = " ".join(part for part in (what, "failed", when) if part)
    return InputError(f"{failed}: {reason(error)}" + (f"\n  {remedy}" if remedy else ""))


def reason(error: Exception) -> str:
    """Returns an exception in one line: its class and text, or what the text means, and the user's file and line."""
    shown, text = _unmasked(error), _text_of(error)
    if worker := _WORKER.search(text):
        frames = [_Place(f["file"], int(f["line"])) for f in _FRAME.finditer(text)]
        text = text[worker.end() :].rstrip().splitlines()[-1].removeprefix(f"{type(error).__name__}:").strip()
    else:
        frames = _frames(error.__traceback__)
        if isinstance(error.__cause__, RemoteError):
            frames += [_Place(f["file"], int(f["line"])) for f in _FRAME.finditer(str(error.__cause__))]
        if shown is not error:
            frames, text = frames + _frames(shown.__traceback__), _text_of(shown)
    plain = meaning_of(text)
    words = plain or ": ".join(part for part in (type(shown).__name__, shortened(text)) if part)
    where = _where(frames)
    return f"{words} ({where})" if where else words


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # an exception class of the user may have a fault of its own
        return ""


def _frames(trace: TracebackType | None) -> list[_Place]:
    return [_Place(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(trace)]


def _where(frames: list[_Place]) -> str:
    """Returns the innermost line of the user's own code, followed by that of a package it called, if that failed."""
    outside = [place for place in frames if not _of_frameworks(place.file)]
    own = [place for place in outside if not _installed(place.file)]
    if own and outside[-1] is not own[-1]:
        return f"{own[-1]}, in {_within_package(outside[-1])}"
    return str(own[-1]) if own else _within_package(outside[-1]) if outside else ""


def _of_frameworks(file: str) -> bool:
    """Whether a file belongs to Python, to ifloo, or to a package that calls the user's code."""
    if file.startswith("<"):  # <stdin> and <ipython-input-...> are the user's
        return file.startswith(("<frozen", "<string", "<eval", "<__", "<@"))
    path = Path(file)
    if path.is_relative_to(_IFLOO) or path.is_relative_to(_TORCH):
        return True
    if _installed(file):
        return _package_path(path).parts[0].removesuffix(".py") in {*_FRAMEWORKS, *_CHECKERS}
    return any(path.is_relative_to(folder) for folder in _STDLIB)


def _installed(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _package_path(path: Path) -> Path:
    """Returns the part of the path of an installed file that begins with its package."""
    folder = max(k for k, part in enumerate(path.parts) if part in ("site-packages", "dist-packages"))
    return Path(*path.parts[folder + 1 :])


def _within_package(place: _Place) -> str:
    return f"{_package_path(Path(place.file))}:{place.line}" if _installed(place.file) else str(place)


def _unmasked(error: Exception) -> Exception:
    """Returns the error that a property of a module raised, where `nn.Module.__getattr__` replaced it.

    Python calls `__getattr__` where a property raises AttributeError; that of a module then reports the property itself
    as missing, and the first error is lost. The property is evaluated once more to find it.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code is not _GETATTR:
        return error
    owner, name = trace.tb_frame.f_locals["self"], trace.tb_frame.f_locals["name"]
    found = dict(inspect.getmembers(type(owner), lambda member: isinstance(member, property))).get(name)
    if found is None:
        return error
    try:
        found.fget(owner)
    except Exception as hidden:
        return _unmasked(hidden)
    return error


_GETATTR = nn.Module.__getattr__.__code__
