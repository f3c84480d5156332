"""Certificate of the objective of the scores in a folder, as the manifest holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ifloo.objective.certificate import WeightTable, weighing
from ifloo.store import JSON, Layout, Manifest

ObjectiveRecord: TypeAlias = Mapping[str, JSON]  # what `ObjectiveCertificate.record` returns


def weights_of(record: ObjectiveRecord | None) -> str | None:
    """Returns a phrase for how J weighs its samples; None if it is their plain mean."""
    if record is None:
        return None
    return weighing(_table(record.get("weights")), str(record.get("epoch") or ""))


def _table(table: JSON) -> WeightTable | None:
    if not isinstance(table, Mapping):
        return None
    values = table.get("values")
    pairs = values.items() if isinstance(values, Mapping) else ()
    numbers = {name: float(value) for name, value in pairs if isinstance(value, (int, float))}
    return WeightTable(str(table["rule"]), numbers)


def objective_record(layout: Layout) -> ObjectiveRecord | None:
    """Reads the certificate; None where the scores were computed without one.

    Raises:
        InputError: If the manifest cannot be read.
    """
    found = Manifest.at(layout.manifest).sections().get("influence", {}).get("recorded", {}).get("objective")
    return found if isinstance(found, Mapping) else None
