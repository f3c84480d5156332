"""Certificate of the objective of the scores in a folder, as the manifest holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ifloo.store import JSON, Layout, Manifest

ObjectiveRecord: TypeAlias = Mapping[str, JSON]  # what `ObjectiveCertificate.record` returns


def objective_record(layout: Layout) -> ObjectiveRecord | None:
    """Reads the certificate; None where the scores were computed without one.

    Raises:
        InputError: If the manifest cannot be read.
    """
    found = Manifest.at(layout.manifest).sections().get("influence", {}).get("recorded", {}).get("objective")
    return found if isinstance(found, Mapping) else None
