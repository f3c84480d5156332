"""Results that resume: a section of the manifest with its files, opened only under equal settings, or replaced."""

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
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Section:
    """Section of the manifest and the files whose settings it holds.

    Attributes:
        manifest: Manifest of the folder.
        name: Name of the section.
        compared: Settings that change a number; they must equal the stored ones before results are added.
        recorded: Settings that change no number; they are stored and not compared.
        paths: Files of results; a run that overwrites replaces all of them, including those that it does not write.
        derived: Files computed from `paths`, removed together with them.
    """

    manifest: Manifest
    name: str
    compared: Mapping[str, JSON]
    recorded: Mapping[str, JSON]
    paths: Sequence[Path]
    derived: Sequence[Path] = ()

    @contextmanager
    def opened(self, overwrite: bool) -> Generator[None, None, None]:
        """Records the settings and lets the caller add results; only one run at a time may write to a folder.

        With `overwrite` the old results are moved aside first. They are deleted when the block ends, and restored if it
        fails before it has written a file, so that a diverging solve does not destroy existing scores.

        A section without results holds nothing that could be mixed: its settings are replaced, not compared. A block
        that fails before its first result leaves no section, so that its own remedy, another setting, is not refused.

        Args:
            overwrite: Whether the block replaces existing results.

        Yields:
            Nothing; the caller writes its results inside the block.

        Raises:
            InputError: If results of other or unknown settings exist and `overwrite` is false, or another run is
                writing to this folder.
        """
        with _locked(self.manifest.path.parent):
            self.manifest.check(self.name, self.compared, overwrite or not has_results(self.paths))
            before = self.manifest.sections()
            if not overwrite:
                self._refuse_unknown(before)
            aside = _moved_aside([*self.paths, *self.derived]) if overwrite else {}
            self.manifest.record(self.name, self.compared, self.recorded)
            try:
                yield
            except BaseException:
                if not has_results(self.paths):
                    for path, kept in aside.items():
                        _remove(path)  # a file without content
                        kept.rename(path)
                    self._restore_section(before)
                raise
            finally:
                for kept in aside.values():
                    _remove(kept)

    def _restore_section(self, before: Mapping[str, Any]) -> None:
        """Gives the section the settings of its earlier results, or removes it if it has none."""
        sections = self.manifest.sections()
        if self.name in before and has_results(self.paths):
            sections[self.name] = before[self.name]
        else:
            sections.pop(self.name, None)
        write_json(self.manifest.path, sections)

    def _refuse_unknown(self, sections: Mapping[str, Any]) -> None:
        found = [] if self.name in sections else [path for path in self.paths if path.exists()]
        if found:
            raise InputError(
                f"{found[0]} exists, but {self.manifest.path} does not record its settings.\n"
                "  Results of unknown settings are never added to. Move them away, give another --output_dir, or "
                "--overwrite to replace them."
            )


def has_results(paths: Sequence[Path]) -> bool:
    """Returns whether one of these files or folders holds anything; a file is empty if its first write was cut off."""
    return any(any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0 for path in paths)


def settings_stamp(compared: Mapping[str, JSON]) -> str:
    """Computes the SHA-256 of the settings of a file, stored in the file itself; the set of queries is left out."""
    settings = {name: value for name, value in stamped_settings(compared).items() if name != "queries"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Locks the folder against a second run; the lock ends with the process in any case.

    Raises:
        InputError: If another run holds the lock.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"Another run is writing to {folder}.\n  Wait for it to end, or give this one another --output_dir."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _moved_aside(paths: Sequence[Path]) -> dict[Path, Path]:
    aside = {path: path.with_name(path.name + ".replaced") for path in paths if path.exists()}
    for path, kept in aside.items():
        _remove(kept)
        path.rename(kept)
    return aside


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
