"""Scores and refits of one test on disk, as the commands write them, and scores of further methods."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ifloo.store import Layout, LossFile, LossRow, Manifest, StoredInfluences, influences, settings_stamp

N, T = 40, 3
RNG = np.random.default_rng(1)
SCORES = RNG.standard_t(3, N).astype(np.float32) * np.float32(1e-3)
IDS = np.arange(N) * 7
REMOVED = IDS[::2]
CONTROLS = REMOVED[-8:].tolist()
ACTUAL = -SCORES[::2] * 1.03 + 1e-5 * RNG.normal(size=len(REMOVED))
CURVE = np.array([[1, 0.5], [2, 1e-3], [7, 2e-11]])
BASE: dict[str, Any] = {"weights": "a" * 8, "data": "b" * 8, "objective": {"l2_reg": 0.01}}


def stored(scores: Any, compared: dict[str, Any], **others: Any) -> StoredInfluences:
    fields: dict[str, Any] = {
        "test_id": T,
        "scores": np.asarray(scores, np.float32),
        "train_ids": IDS,
        "score_mean": float(np.mean(scores)),
        "residual": None,
        "undamped_residual": None,
        "error_bound": None,
        "steps": 0,
        "status": "no solve",
        "damping": 0.0,
        "method": "by hand",
        "definitions": "",
        "settings": settings_stamp(compared),
    }
    return StoredInfluences(**{**fields, **others})


@dataclass
class Results:
    """Folder of results, with methods that add to it."""

    layout: Layout
    removal: str = "drop"
    loss: float = 0.7
    influence: dict[str, Any] = field(default_factory=lambda: {**BASE, "solver": "CG"})

    def write(self) -> "Results":
        """Writes scores, refits without `REMOVED`, two null refits, and their sections of the manifest."""
        manifest = Manifest.at(self.layout.manifest)
        manifest.record("influence", self.influence, {})
        manifest.record("loo", {**BASE, "removal": self.removal}, {"random_ids": CONTROLS})
        influences.save(self.layout.scores(T), stored(SCORES, self.influence, residual=1e-11))
        file = LossFile(self.layout.loo_losses(T))
        file.add(LossRow(-1, self.loss))
        for i, change in zip(REMOVED.tolist(), ACTUAL.tolist(), strict=True):
            file.add(LossRow(i, self.loss + change, grad_norm=1e-11, delta_error=1e-9))
        LossFile(self.layout.null_losses(T), "draw").add(LossRow(-1, self.loss + 1e-6, extra={"draw": 1}))
        return self

    def add_method(self, name: str, scores: Any, compared: dict[str, Any] | None = None, **others: Any) -> None:
        """Adds the scores of a further method, and its section of the manifest."""
        settings = {**BASE, "method": hashlib.sha256(name.encode()).hexdigest(), **(compared or {})}
        Manifest.at(self.layout.manifest).record(f"methods/{name}", settings, {})
        influences.save(self.layout.method_scores(name, T), stored(scores, settings, **others))
