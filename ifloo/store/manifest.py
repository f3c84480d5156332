"""Manifest of the settings of stored results, compared before results are added, so that settings are never mixed."""

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ifloo
from ifloo.errors import InputError
from ifloo.store.atomic import JSON, encode_json, write_json
from ifloo.store.former_settings import current_settings

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "lightning", "numpy")


@dataclass(frozen=True)
class Manifest:
    """File `manifest.json` of an output folder: one section per stage and folder of results.

    Every call reads the file again and `record` replaces it atomically, so that a killed run leaves the old or the new
    file.

    A section has two parts, `compared` and `recorded`. Settings in `compared` change a number; they must be equal
    before results are added. Settings in `recorded` (paths, versions, number of controls) change none.

    Attributes:
        path: Path of the file.
    """

    path: Path

    @classmethod
    def at(cls, path: Path | str) -> "Manifest":
        """Returns the manifest with this path; the file may not exist yet."""
        return cls(Path(path))

    def sections(self) -> dict[str, dict[str, Any]]:
        """Reads all sections, `{name: {"compared": {...}, "recorded": {...}}}`; a missing file has none.

        Raises:
            InputError: If the file is not a manifest.
        """
        try:
            sections = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(self._unreadable(error.strerror or str(error))) from error
        except ValueError as error:
            raise InputError(self._unreadable(f"not JSON ({error})")) from error
        if not isinstance(sections, dict):
            raise InputError(self._unreadable("not a JSON object"))
        for name, section in sections.items():
            if not (isinstance(section, dict) and isinstance(section.get("compared"), dict)):
                raise InputError(self._unreadable(f"section {name} has no settings to compare"))
        return sections

    def check(self, section: str, compared: Mapping[str, JSON], overwrite: bool = False) -> None:
        """Checks that results may be added to `section`: it has none yet, or their settings are equal.

        Different versions of packages are logged as a warning.

        Args:
            section: Name of the section.
            compared: Settings that change a number.
            overwrite: Whether the caller replaces the results; every setting is then accepted.

        Raises:
            InputError: If stored settings differ; the message shows both values of each.
        """
        if overwrite or (stored := self.sections().get(section)) is None:
            return
        old = flattened(current_settings(stored["compared"]))
        new = flattened(json.loads(encode_json(compared, self.path)))
        lines = [
            f"  {name}: stored {_shown(old, name)}, asked {_shown(new, name)}"
            for name in dict.fromkeys([*old, *new])
            if name not in old or name not in new or old[name] != new[name]
        ]
        if lines:
            raise InputError(
                f"{self.path}: the {section} results there were made with other settings.\n"
                + "\n".join(lines)
                + "\n  Results of different settings are never mixed. Give another --output_dir to keep both, "
                "or --overwrite to replace the stored ones."
            )
        self._warn_of_versions(section, stored.get("recorded") or {})

    def joined(
        self,
        section: str,
        compared: Mapping[str, JSON],
        queries: Mapping[str, JSON],
        recorded: Mapping[str, JSON],
        overwrite: bool = False,
    ) -> dict[str, JSON]:
        """Adds the content of test samples to the settings of a section.

        Stored samples must have the same content; new samples are added. Results that were stored before the content of
        samples was recorded continue without it.

        Args:
            section: Name of the section.
            compared: All other settings that change a number.
            queries: SHA-256 of each requested test sample, by id.
            recorded: Settings that change no number, for `record` if samples are added.
            overwrite: Whether the stored samples are replaced.

        Returns:
            Settings to compare: `compared`, and `queries` of stored and new samples.

        Raises:
            InputError: If a stored setting or sample differs.
        """
        stored = None if overwrite else self.sections().get(section)
        if stored is None:
            return {**compared, "queries": {**queries}}
        if "queries" not in stored["compared"]:
            return {**compared}
        before = stored["compared"]["queries"]
        # New ids are not in the manifest yet, so only the stored ones are compared.
        self.check(section, {**compared, "queries": {t: queries.get(t, before[t]) for t in before}})
        together: dict[str, JSON] = {**compared, "queries": {**before, **queries}}
        if queries.keys() - before.keys():
            self.record(section, together, recorded)
        return together

    def record(self, section: str, compared: Mapping[str, JSON], recorded: Mapping[str, JSON]) -> None:
        """Writes `section` and keeps all others; adds the result of `environment` to `recorded`."""
        entry = {"compared": compared, "recorded": {**environment(), **recorded}}
        write_json(self.path, {**self.sections(), section: entry})

    def _warn_of_versions(self, section: str, recorded: Mapping[str, Any]) -> None:
        old, new = recorded.get("versions") or {}, _versions()
        changed = [f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name]]
        if changed:
            log.warning("%s: the %s results were made with other versions: %s.", self.path, section, ", ".join(changed))

    def _unreadable(self, reason: str) -> str:
        return (
            f"{self.path} is no manifest of ifloo: {reason}.\n"
            "  It says what the results beside it were made with. Restore it, or move the folder away and run again."
        )


def environment() -> dict[str, JSON]:
    """Describes the environment: versions, platform, time (UTC), git revision of ifloo's checkout or None."""
    return {
        "versions": _versions(),
        "platform": platform.platform(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": _git_revision(Path(ifloo.__file__).resolve().parent.parent),
    }


def _versions() -> dict[str, str | None]:
    return {
        "ifloo": ifloo.__version__,
        **{name: _installed(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)  # from the package's metadata: importing lightning takes seconds
    except PackageNotFoundError:
        return None


def _git_revision(checkout: Path) -> str | None:
    """Reads HEAD from git's own files, since git may not be installed and takes time to start."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a linked worktree: "gitdir: <folder>"
            git = checkout / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        for folder in (git, common):
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
        packed = (line.split(" ") for line in (common / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if words[1:] == [name]), None)
    except (OSError, ValueError):
        return None


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names: {"data": {"limit": 5}} -> {"data.limit": 5}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "nothing"
