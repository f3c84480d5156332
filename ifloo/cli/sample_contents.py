"""Whether scores, refits and data at hand speak of the same test samples."""

from __future__ import annotations

from ifloo.cli.setup import Setup
from ifloo.errors import InputError
from ifloo.stages.scores.records import contents_of
from ifloo.store import JSON, Manifest

_MADE = {"influence": ("scores", "`ifloo influence`"), "loo": ("refits", "`ifloo loo`")}


def refuse_other_tests(setup: Setup, *sections: str) -> dict[str, JSON]:
    """Compares the content of the test samples with that of when the results of these sections were made.

    Results that do not say what content they are of pass.

    Args:
        setup: its data loaded.
        sections: of the manifest: `influence`, `loo`.

    Returns:
        SHA-256 of each test sample at hand, by id.

    Raises:
        InputError: a test id stands for another sample than it did.
    """
    stored, now = Manifest.at(setup.layout.manifest).sections(), contents_of(setup.datamodule, setup.test_ids)
    for name in sections:
        then = stored.get(name, {}).get("compared", {}).get("queries", {})
        for t, content in now.items():
            if t in then and then[t] != content:
                results, command = _MADE[name]
                raise InputError(
                    f"{setup.layout.manifest}: the {results} of test {t} are of another sample: its content has "
                    f"SHA-256 {str(content)[:16]}..., theirs {str(then[t])[:16]}....\n"
                    f"  Give the test data of then, or make the {results} again: {command} with --overwrite, or with "
                    "another --output_dir to keep both."
                )
    return now
