"""Scores by methods of attribution other than the curvature at a minimum, and their files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from ifloo.attribution import Method, Scores, TrainedModel, Unrolled
from ifloo.attribution.recorded import RecordedRun
from ifloo.data.adapted import training_loader
from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError
from ifloo.objective import Objective, preflight
from ifloo.progress import OnProgress, ticking
from ifloo.stages.certificate.examined_run import ExaminedRun
from ifloo.stages.isolation import detached
from ifloo.stages.scores.predictor import ScoredBlock
from ifloo.stages.scores.queries import QuerySamples, samples_for
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
    """Run of methods on one trained module.

    Attributes:
        module: Trained model.
        datamodule: Data module, already set up.
        settings: Settings of the attribution: parameters, precision, batch size.
        layout: Paths of the files.
        device: Device of the computation.
        recorded: Recorded training run; None if there is none.
        objective: What was found on J and the training step; None if they were not compared.
    """

    module: L.LightningModule
    datamodule: AttributionData
    settings: AttributionSettings
    layout: Layout
    device: torch.device
    recorded: RunFolder | None
    objective: ExaminedRun | None = None

    def score(
        self, method: Method, test_ids: Sequence[int], stamp: str, save: Callable[[StoredInfluences], None]
    ) -> None:
        """Scores test samples in one pass, and calls `save` with the record of each.

        Raises:
            InputError: The method does not support this model, or needs a recorded run.
            WorkError: A number cannot be trusted.
        """
        if not test_ids:
            return
        log.info("scores: %s, %d tests in one pass.", method.name, len(test_ids))
        with ticking(method.name, "part") as tick:
            found = self._scores(method, test_ids, stamp, tick)
        rule = None if self.objective is None else self.objective.rule
        for one in stored_by_method(method, found, test_ids, stamp, rule):
            save(one)

    def further(self, test_ids: Sequence[int], compared: dict[str, JSON], overwrite: bool) -> None:
        """Scores by the methods in `settings.compare_with`, each into its own folder; scores already there are kept.

        Raises:
            InputError: The folder of a method holds scores of other settings.
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
        queries = samples_for(self.trained.objective.losses, QuerySamples(self.datamodule, tuple(test_ids)))
        if not isinstance(method, Unrolled):
            return method.scores(self.trained, queries, tick)
        kept = ReverseCheckpointFile(self.layout.reverse, f"{stamp} {list(test_ids)}", self.device)
        found = method.resumed(self.trained, queries, kept, tick)
        kept.forget()
        return found

    @cached_property
    def trained(self) -> TrainedModel:
        """The trained model on its device, with its recorded run if a method needs it.

        Raises:
            InputError: A method needs a recorded run, and this checkpoint has none; or the loss of a sample depends on
                other samples.
        """
        # A copy, since refits start from the given module, in its own precision and on its device.
        module = detached(self.module).to(self.device, self.settings.torch_dtype)
        loader, found = training_loader(self.datamodule), self.objective or ExaminedRun()
        objective = Objective.of(module, loader, self.settings.parameters, self.settings.batch_size)
        objective = found.weighed(objective)
        theta = objective.losses.theta()
        # The end of a run need not be a minimum: each method defines its own derivative.
        preflight(objective, theta, found.certificate)
        return TrainedModel(objective, theta, self._run(theta))

    def _run(self, theta: Tensor) -> RecordedRun | None:
        """Reads the recorded run if a method needs it; for self-influence, if there is one."""
        if self.recorded is None:
            return None
        usable = self.settings.self_influence and self.recorded.path.is_dir()
        return self.recorded.read(theta) if usable or self.settings.needs_run else None


def scores_there(path: Path, stamp: str, layout: Layout) -> StoredInfluences | None:
    """Reads the stored scores of these settings; None if the file does not exist.

    Raises:
        InputError: The stored scores were computed with other settings.
    """
    if not path.exists():
        return None
    if (found := influences.load(path)).settings != stamp:
        raise InputError(
            f"{path} was made with other settings than {layout.manifest} says.\n"
            "  Give another --output_dir to keep it, or --overwrite to replace it."
        )
    return found


def stored_by_method(
    method: Method, scores: Scores, test_ids: Sequence[int], stamp: str, rule: str | None = None
) -> list[StoredInfluences]:
    """Converts the scores of a method to one record for each query.

    Args:
        method: Method.
        scores: Its scores.
        test_ids: Ids of the queries.
        stamp: Stamp of the settings.
        rule: Phrase for how J weighs its samples, if it has weights c_i.
    """
    ids = torch.tensor(list(test_ids), dtype=torch.int64)
    # Also of a subclass, such as MethodScores.
    scores = Scores(scores.value, scores.train_ids, ids, scores.certificate, scores.factors)
    means = torch.stack([row.double().mean() for row in scores.value])
    return stored_influences(ScoredBlock(scores, means), method.name, DEFINITIONS, stamp, scores.factors, rule)
