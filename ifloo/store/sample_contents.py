"""SHA-256 of the content of test samples, so that results of one sample are never taken for those of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, tensors_of
from ifloo.store.atomic import JSON
from ifloo.store.fingerprint import sha256_of_tensors
from ifloo.store.manifest import Manifest

_COMMANDS = {"influence": ("scores", "`ifloo influence`"), "loo": ("refits", "`ifloo loo`")}


def content_of(sample: Batch) -> str:
    """Computes the SHA-256 of a batch of one sample."""
    return sha256_of_tensors({str(i): x for i, x in enumerate(tensors_of(sample))})


def contents_of(test_batch: Callable[[Sequence[int]], Batch], test_ids: Sequence[int]) -> dict[str, JSON]:
    """Computes the SHA-256 of each test sample, by id; each alone, since a batch may pad it to its neighbours' length.

    Args:
        test_batch: Function from ids to a batch of these test samples.
        test_ids: Ids of the samples.

    Raises:
        InputError: If an id is out of range.
    """
    return {str(t): content_of(test_batch([t])) for t in test_ids}


def refuse_other_samples(manifest: Manifest, contents: Mapping[str, JSON], sections: Sequence[str]) -> None:
    """Checks that the stored results of these sections belong to the present test samples.

    Results whose section lists no contents pass.

    Args:
        manifest: Manifest of the results.
        contents: SHA-256 of each present test sample, by id.
        sections: Names of sections: `influence`, `loo`.

    Raises:
        InputError: If a test id stood for another sample when the results were made.
    """
    stored = manifest.sections()
    for name in sections:
        then = stored.get(name, {}).get("compared", {}).get("queries", {})
        for t, content in contents.items():
            if t in then and then[t] != content:
                results, command = _COMMANDS[name]
                raise InputError(
                    f"{other_sample(manifest.path, t, results, content, then[t])}\n"
                    f"  Give the test data of these {results}, or make the {results} again: {command} with "
                    "--overwrite, or with another --output_dir to keep both."
                )


def other_sample(path: Path, test_id: str | int, results: str, now: JSON, then: JSON) -> str:
    """Describes a test sample that differs from the one that the stored results belong to."""
    return (
        f"{path}: test {test_id} is not the sample that the stored {results} belong to: its content has SHA-256 "
        f"{str(now)[:16]}..., theirs had {str(then)[:16]}...."
    )
