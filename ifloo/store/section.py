"""Results of one stage: opened under settings that match, or replaced once something new is there."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ifloo.store.atomic import JSON, write_json
from ifloo.store.manifest import Manifest


@dataclass(frozen=True)
class Section:
    """A section of the manifest and the files it speaks of.

    Attributes:
        manifest: of the folder.
        name: of the section.
        compared: settings that change a number.
        recorded: the others worth knowing.
        paths: files and folders that an overwriting run replaces.
    """

    manifest: Manifest
    name: str
    compared: Mapping[str, JSON]
    recorded: Mapping[str, JSON]
    paths: Sequence[Path]

    @contextmanager
    def opened(self, overwrite: bool) -> Generator[None, None, None]:
        """Records the settings and lets the caller add results.

        With `overwrite` old results are set aside first, deleted when the work ends, and put back if it fails before it
        has written anything: a solve that diverges costs nobody the scores they had.

        Raises:
            InputError: there are results of other settings, and `overwrite` is not said.
        """
        self.manifest.check(self.name, self.compared, overwrite)
        before = self.manifest.sections()
        aside = {path: path.with_name(path.name + ".replaced") for path in self.paths} if overwrite else {}
        for path, kept in aside.items():
            if path.exists():
                _remove(kept)
                path.rename(kept)
        self.manifest.record(self.name, self.compared, self.recorded)
        try:
            yield
        except BaseException:
            if aside and not any(path.exists() for path in aside):
                for path, kept in aside.items():
                    if kept.exists():
                        kept.rename(path)
                write_json(self.manifest.path, before)
            raise
        for kept in aside.values():
            _remove(kept)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
