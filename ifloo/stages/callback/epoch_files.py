"""Scores of the epochs of a fit on disk: a folder for each, and a manifest that names those that are whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ifloo.errors import InputError
from ifloo.stages.callback.snapshot import Snapshot
from ifloo.stages.scores.other_methods import stored_by_method
from ifloo.stages.settings import settings_json
from ifloo.store import JSON, Layout, Manifest, StoredSelfInfluence, influences, self_influence, settings_stamp

RUN = "run"  # section of the manifest: what all epochs have in common
SELF_DEFINITIONS = (
    "loss[i]: l_i at the weights of this moment, nats. last_layer[i]: (1/n) grad l_i^T (H + damping I)^-1 grad l_i "
    "over the last linear layer, nats: the rise of the sample's own loss when it is removed. Large: only the sample "
    "itself speaks for its label."
)


@dataclass(frozen=True)
class EpochFolders:
    """`<root>/epoch_<e>/`, e the number of epochs done, and `<root>/manifest.json`.

    Attributes:
        root: of the fit's influence.
        compared: settings that change a number, the same for all epochs.
    """

    root: Path
    compared: Mapping[str, JSON]

    @property
    def manifest(self) -> Manifest:
        return Manifest.at(Layout(self.root).manifest)

    def of(self, epoch: int) -> Layout:
        """The files of one epoch."""
        return Layout(self.root / f"epoch_{epoch:03d}")

    def refuse_others(self, continued: bool) -> None:
        """Scores of one fit do not get among those of another.

        Args:
            continued: whether the fit goes on from a checkpoint.

        Raises:
            InputError: there are scores of an earlier fit, or of other settings.
        """
        if not (sections := self.manifest.sections()):
            return
        if continued:
            try:
                self.manifest.check(RUN, self.compared)
            except InputError as error:  # it speaks of flags; here they are arguments
                text = str(error).replace("--output_dir", "output_dir").replace("--overwrite", "overwrite=True")
                raise InputError(text) from error
            return
        kept = sorted(name for name in sections if name != RUN)
        raise InputError(
            f"{self.root} holds the influence scores of an earlier fit ({', '.join(kept[:5]) or 'unfinished'}).\n"
            "  Give InfluenceCallback another output_dir to keep them, or overwrite=True to replace them."
        )

    def clear(self) -> None:
        """Takes away what an earlier fit has left here; nothing else in these folders."""
        self.manifest.path.unlink(missing_ok=True)
        for folder in sorted(self.root.glob("epoch_*")):
            layout = Layout(folder)
            for path in (*layout.existing_scores(), layout.self_influence):
                path.unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write(self, moment: Snapshot, epoch: int, step: int) -> None:
        """Writes the files of an epoch, then its section of the manifest: what is named there is whole.

        Raises:
            WorkError: a number is not finite, or the disk is full.
        """
        layout = self.of(epoch)
        own: dict[str, JSON] = {
            **{name: value for name, value in self.compared.items() if name != "queries"},
            "method": settings_json(moment.method),
            "attributed": list(moment.parameters),
            "weights": moment.weights,
            "data": moment.data,
        }
        stamp = settings_stamp(own)
        for one in stored_by_method(moment.method, moment.scores, moment.test_ids, stamp):
            influences.save(layout.scores(one.test_id), one)
        if moment.own is not None:
            self_influence.save(layout.self_influence, self._self_influence(moment, stamp))
        if RUN not in self.manifest.sections():
            self.manifest.record(RUN, self.compared, {})
        self.manifest.record(layout.root.name, own, _recorded(moment, epoch, step))

    def _self_influence(self, moment: Snapshot, stamp: str) -> StoredSelfInfluence:
        assert moment.own is not None
        last = moment.own.last_layer
        return StoredSelfInfluence(
            train_ids=moment.scores.train_ids.cpu().numpy().astype(np.int64),
            loss=moment.own.loss.double().cpu().numpy(),
            last_layer=None if last is None else last.double().cpu().numpy(),
            tracin=None,
            damping=float(self.compared["damping"]),  # type: ignore[arg-type]
            definitions=SELF_DEFINITIONS,
            settings=stamp,
        )


def _recorded(moment: Snapshot, epoch: int, step: int) -> dict[str, JSON]:
    return {
        "epoch": epoch,
        "global_step": step,
        "test_ids": list(moment.test_ids),
        "n": len(moment.scores.train_ids),
        "precision": moment.dtype,
        "grad_norm": moment.stationarity.grad_norm,
        "sample_share": moment.stationarity.sample_share,
        "worst_residual": moment.scores.worst_residual,
        "seconds": round(moment.seconds, 3),
    }
