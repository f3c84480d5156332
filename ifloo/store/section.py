"""Results of one stage: opened under settings that match, or replaced once something new is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifloo.errors import InputError
from ifloo.store.atomic import JSON, write_json
from ifloo.store.former_settings import stamped_settings
from ifloo.store.manifest import Manifest

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Section:
    """A section of the manifest and the files it speaks of.

    Attributes:
        manifest: of the folder.
        name: of the section.
        compared: settings that change a number.
        recorded: the others worth knowing.
        paths: its files; an overwriting run replaces them all, also those it does not make anew.
        derived: what was drawn from them and is worth nothing without them; goes with them.
    """

    manifest: Manifest
    name: str
    compared: Mapping[str, JSON]
    recorded: Mapping[str, JSON]
    paths: Sequence[Path]
    derived: Sequence[Path] = ()

    @contextmanager
    def opened(self, overwrite: bool) -> Generator[None, None, None]:
        """Records the settings and lets the caller add results; one run at a time in a folder.

        With `overwrite` old results are set aside first, deleted when the work ends, and put back if it fails before it
        has written anything: a solve that diverges costs nobody the scores they had.

        Raises:
            InputError: there are results of other or unknown settings, and `overwrite` is not said; or another run is
                writing to this folder.
        """
        with _alone(self.manifest.path.parent):
            self.manifest.check(self.name, self.compared, overwrite)
            before = self.manifest.sections()
            if not overwrite:
                self._refuse_unknown(before)
            aside = _set_aside([*self.paths, *self.derived]) if overwrite else {}
            self.manifest.record(self.name, self.compared, self.recorded)
            try:
                yield
            except BaseException:
                if aside and not any(path.exists() for path in self.paths):
                    for path, kept in aside.items():
                        kept.rename(path)
                    write_json(self.manifest.path, before)
                raise
            finally:
                for kept in aside.values():
                    _remove(kept)

    def _refuse_unknown(self, sections: Mapping[str, Any]) -> None:
        found = [] if self.name in sections else [path for path in self.paths if path.exists()]
        if found:
            raise InputError(
                f"{found[0]} is there, and {self.manifest.path} does not say what it was made with.\n"
                "  Results of unknown settings are never added to. Move them away, give another --output_dir, or "
                "--overwrite to replace them."
            )


def settings_stamp(compared: Mapping[str, JSON]) -> str:
    """SHA-256 of the settings behind a file, for the file itself to carry; which samples were asked for is left out."""
    settings = {name: value for name, value in stamped_settings(compared).items() if name != "queries"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextmanager
def _alone(folder: Path) -> Generator[None, None, None]:
    """Holds the folder against a second run; the lock goes with the process, however it ends.

    Raises:
        InputError: another run holds it.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise InputError(
            f"Another run is writing to {folder}.\n  Wait for it to end, or give this one another --output_dir."
        ) from error
    try:
        yield
    finally:
        os.close(held)


def _set_aside(paths: Sequence[Path]) -> dict[Path, Path]:
    aside = {path: path.with_name(path.name + ".replaced") for path in paths if path.exists()}
    for path, kept in aside.items():
        _remove(kept)
        path.rename(kept)
    return aside


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
