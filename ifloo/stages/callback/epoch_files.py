"""Files of the scores of a fit: a folder for each epoch, and a manifest that names the completed ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ifloo.attribution import weighted_definitions
from ifloo.errors import InputError, arguments_named
from ifloo.stages.callback.moment import Moment
from ifloo.stages.callback.snapshot import Snapshot
from ifloo.stages.scores.other_methods import stored_by_method
from ifloo.stages.settings import settings_json
from ifloo.store import JSON, Layout, Manifest, StoredSelfInfluence, influences, self_influence, settings_stamp

RUN = "run"  # section of the manifest with the settings that all epochs share
SELF_DEFINITIONS = (
    "loss[i]: l_i at the weights of this moment, nats. last_layer[i]: (1/n) grad l_i^T (H + damping I)^-1 grad l_i "
    "over the last linear layer, nats: the rise of the sample's own loss when it is removed. Large: only the sample "
    "itself speaks for its label."
)


@dataclass(frozen=True)
class EpochFolders:
    """Folders `<root>/epoch_<e>/`, e the number of completed epochs, `<root>/best/`, and `<root>/manifest.json`.

    Attributes:
        root: Folder of the scores of one fit.
        compared: Settings that change a number, the same for all epochs.
    """

    root: Path
    compared: Mapping[str, JSON]

    @property
    def manifest(self) -> Manifest:
        return Manifest.at(Layout(self.root).manifest)

    def of(self, moment: Moment) -> Layout:
        """Returns the paths of the files of one moment of the fit."""
        return Layout(self.root / moment.folder)

    def refuse_others(self, continued: bool) -> None:
        """Checks that the folder holds no scores of another fit.

        Args:
            continued: Whether the fit continues from a checkpoint.

        Raises:
            InputError: The folder holds scores of an earlier fit, or of other settings.
        """
        if not (sections := self.manifest.sections()):
            return
        if continued:
            try:
                self.manifest.check(RUN, self.compared)
            except InputError as error:
                raise InputError(arguments_named(str(error))) from error
            return
        kept = sorted(name for name in sections if name != RUN)
        raise InputError(
            f"{self.root} holds the influence scores of an earlier fit ({', '.join(kept[:5]) or 'unfinished'}).\n"
            "  Give InfluenceCallback another output_dir to keep them, or overwrite=True to replace them."
        )

    def clear(self) -> None:
        """Deletes the files of an earlier fit, and no other files in these folders."""
        self.manifest.path.unlink(missing_ok=True)
        for folder in sorted((*self.root.glob("epoch_*"), *self.root.glob("best"))):
            layout = Layout(folder)
            for path in (*layout.existing_scores(), layout.self_influence):
                path.unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write(self, snapshot: Snapshot, moment: Moment) -> None:
        """Writes the files of a moment, then its section of the manifest, which marks them as complete.

        Raises:
            WorkError: A number is not finite, or the disk is full.
        """
        layout = self.of(moment)
        own = self._settings(snapshot)
        stamp = settings_stamp(own)
        for one in stored_by_method(snapshot.method, snapshot.scores, snapshot.test_ids, stamp, _rule(snapshot)):
            influences.save(layout.scores(one.test_id), one)
        if snapshot.own is not None:
            self_influence.save(layout.self_influence, self._self_influence(snapshot, stamp))
        if RUN not in self.manifest.sections():
            self.manifest.record(RUN, self.compared, {})
        self.manifest.record(layout.root.name, own, _recorded(snapshot, moment))

    def write_label(self, snapshot: Snapshot, moment: Moment) -> None:
        """Records that scores written before are those of another moment, whose weights are the same."""
        self.manifest.record(moment.folder, self._settings(snapshot), _recorded(snapshot, moment))

    def _settings(self, snapshot: Snapshot) -> dict[str, JSON]:
        return {
            **{name: value for name, value in self.compared.items() if name != "queries"},
            "method": settings_json(snapshot.method),
            "attributed": list(snapshot.parameters),
            "weights": snapshot.weights,
            "data": snapshot.data,
        }

    def _self_influence(self, snapshot: Snapshot, stamp: str) -> StoredSelfInfluence:
        assert snapshot.own is not None
        last = snapshot.own.last_layer
        return StoredSelfInfluence(
            train_ids=snapshot.scores.train_ids.cpu().numpy().astype(np.int64),
            loss=snapshot.own.loss.double().cpu().numpy(),
            last_layer=None if last is None else last.double().cpu().numpy(),
            tracin=None,
            damping=float(self.compared["damping"]),  # type: ignore[arg-type]
            definitions=weighted_definitions(SELF_DEFINITIONS, _rule(snapshot)),
            settings=stamp,
        )


def _rule(snapshot: Snapshot) -> str | None:
    """Returns a phrase for how J weighs its samples; None if it is their plain mean."""
    return snapshot.certificate.weighing


def _recorded(snapshot: Snapshot, moment: Moment) -> dict[str, JSON]:
    return {
        "epoch": moment.epoch,
        "global_step": moment.step,
        "scored": moment.weights,
        "objective": snapshot.certificate.record(),
        "notes": list(snapshot.notes),
        "test_ids": list(snapshot.test_ids),
        "n": len(snapshot.scores.train_ids),
        "precision": snapshot.dtype,
        "grad_norm": snapshot.stationarity.grad_norm,
        "sample_share": snapshot.stationarity.sample_share,
        "worst_residual": snapshot.scores.worst_residual,
        "seconds": round(snapshot.seconds, 3),
    }
