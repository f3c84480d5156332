"""Certificate of the objective of the scores in a folder, as the manifest holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ifloo.objective.certificate import WeightTable
from ifloo.store import JSON, Layout, Manifest

ObjectiveRecord: TypeAlias = Mapping[str, JSON]  # what `ObjectiveCertificate.record` returns


def weights_of(record: ObjectiveRecord | None) -> str | None:
    """Returns a noun phrase for what the weights of the samples in J depend on; None if J is the plain mean."""
    table = None if record is None else record.get("weights")
    if not isinstance(table, Mapping):
        return None
    values = table.get("values")
    pairs = values.items() if isinstance(values, Mapping) else ()
    numbers = {name: float(value) for name, value in pairs if isinstance(value, (int, float))}
    return str(WeightTable(str(table["rule"]), numbers))


def objective_record(layout: Layout) -> ObjectiveRecord | None:
    """Reads the certificate; None where the scores were computed without one.

    Raises:
        InputError: If the manifest cannot be read.
    """
    found = Manifest.at(layout.manifest).sections().get("influence", {}).get("recorded", {}).get("objective")
    return found if isinstance(found, Mapping) else None
