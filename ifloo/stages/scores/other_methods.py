"""Scores by any method of attribution, into files: the way of those that are not the curvature at a minimum."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from ifloo.attribution import Method, Scores, TrainedModel, Unrolled
from ifloo.attribution.recorded import RecordedRun
from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError
from ifloo.objective import Objective, preflight
from ifloo.progress import OnProgress, ticking
from ifloo.stages.isolation import detached
from ifloo.stages.scores.predictor import ScoredBlock
from ifloo.stages.scores.records import stored_influences
from ifloo.stages.scores.reverse_checkpoint import ReverseCheckpointFile
from ifloo.stages.settings import AttributionSettings, settings_json
from ifloo.store import (
    JSON,
    Layout,
    Manifest,
    RunFolder,
    Section,
    StoredInfluences,
    influences,
    settings_stamp,
)

log = logging.getLogger(__name__)

DEFINITIONS = (
    "scores[i] estimates dL_t/dw_i, the derivative of test loss L_t in the weight of training sample i, by the method "
    "named; negative = helpful, positive = harmful; setting w_i to 0 while n stays is predicted to change L_t by "
    "-scores[i]. Nats per unit weight, except for methods without a unit (cosine, random). residual: of the solve, or "
    "the relative distance between replayed and recorded weights; left out where there was neither."
)


@dataclass(frozen=True)
class MethodRun:
    """Runs methods on one trained module.

    Attributes:
        module: the trained model.
        datamodule: set up; gives `train_dataloader` and `test_batch(ids)`.
        settings: of the attribution: parameters, precision, batch size.
        layout: where files go.
        device: to work on.
        recorded: the training run, if it was recorded.
    """

    module: L.LightningModule
    datamodule: AttributionData
    settings: AttributionSettings
    layout: Layout
    device: torch.device
    recorded: RunFolder | None

    def score(
        self, method: Method, test_ids: Sequence[int], stamp: str, save: Callable[[StoredInfluences], None]
    ) -> None:
        """Scores test samples in one pass and hands each over.

        Raises:
            InputError: the method needs what this model or run does not have.
            WorkError: a number that cannot be trusted.
        """
        if not test_ids:
            return
        log.info("scores: %s, %d tests in one pass.", method.name, len(test_ids))
        with ticking(method.name, "part") as tick:
            found = self._scores(method, test_ids, stamp, tick)
        for one in stored_by_method(method, found, test_ids, stamp):
            save(one)

    def further(self, test_ids: Sequence[int], compared: dict[str, JSON], overwrite: bool) -> None:
        """Scores of the further methods, each into a folder of its own; what is there is kept.

        Raises:
            InputError: a method's folder holds scores of other settings.
        """
        for method in self.settings.compare_with:
            settings = {**compared, "method": settings_json(method)}
            stamp = settings_stamp(settings)
            paths = {t: self.layout.method_scores(method.name, t) for t in test_ids}
            section = Section(
                Manifest.at(self.layout.manifest),
                f"methods/{method.name}",
                settings,
                {"test_ids": list(test_ids)},
                [*self.layout.existing_method_scores(method.name), *paths.values()],
                self.layout.verdict_files,
            )
            with section.opened(overwrite):
                missing = [t for t, path in paths.items() if scores_there(path, stamp, self.layout) is None]
                self.score(method, missing, stamp, lambda one, to=paths: influences.save(to[one.test_id], one))  # type: ignore[misc]

    def _scores(self, method: Method, test_ids: Sequence[int], stamp: str, tick: OnProgress) -> Scores:
        queries = self.datamodule.test_batch(test_ids)
        if not isinstance(method, Unrolled):
            return method.scores(self.trained, queries, tick)
        kept = ReverseCheckpointFile(self.layout.reverse, f"{stamp} {list(test_ids)}", self.device)
        found = method.resumed(self.trained, queries, kept, tick)
        kept.forget()
        return found

    @cached_property
    def trained(self) -> TrainedModel:
        """The model where it is scored, with its run where that was recorded.

        Raises:
            InputError: a method needs the run, and there is none of this checkpoint; or a sample's loss is not its own.
        """
        # A copy: refits start from the module that was given, in its own precision and where it was.
        module = detached(self.module).to(self.device, self.settings.torch_dtype)
        loader = self.datamodule.train_dataloader()
        objective = Objective.of(module, loader, self.settings.parameters, self.settings.batch_size)
        theta = objective.losses.theta()
        preflight(objective, theta)  # the end of a run need be no minimum: each method says what it is a derivative of
        return TrainedModel(objective, theta, self._run(theta))

    def _run(self, theta: Tensor) -> RecordedRun | None:
        """The training run where a method needs it, and for self-influence where there is one."""
        if self.recorded is None:
            return None
        there = self.settings.self_influence and self.recorded.path.is_dir()
        return self.recorded.read(theta) if there or self.settings.needs_run else None


def scores_there(path: Path, stamp: str, layout: Layout) -> StoredInfluences | None:
    """The scores of these settings that are there; None: none.

    Raises:
        InputError: scores are, and other settings made them.
    """
    if not path.exists():
        return None
    if (found := influences.load(path)).settings != stamp:
        raise InputError(
            f"{path} was made with other settings than {layout.manifest} says.\n"
            "  Give another --output_dir to keep it, or --overwrite to replace it."
        )
    return found


def stored_by_method(method: Method, scores: Scores, test_ids: Sequence[int], stamp: str) -> list[StoredInfluences]:
    """The scores of a method, one record of each query; these are the tests with these ids."""
    scores = replace(scores, query_ids=torch.tensor(list(test_ids), dtype=torch.int64))
    means = torch.stack([row.double().mean() for row in scores.value])
    return stored_influences(ScoredBlock(scores, means), method.name, DEFINITIONS, stamp)
