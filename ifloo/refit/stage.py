"""Leave-one-out stage: from a trained module and its scores to files of losses, resumable refit by refit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ifloo.data.protocol import AttributionData, SingleQueries
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule
from ifloo.objective import Batch
from ifloo.objective.kept_state import copied
from ifloo.refit.execution.job import TrainingLoader
from ifloo.refit.extra_refits import ExtraRefits, Groups, WeightSteps
from ifloo.refit.loo import LeaveOneOut
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.refitter import Refitter
from ifloo.refit.selection import RefitSettings, controls, groups, removals, stepped
from ifloo.refit.trainer_settings import TrainerSettings
from ifloo.store import (
    JSON,
    WEIGHTS,
    GroupFile,
    Layout,
    LossFile,
    Manifest,
    Section,
    contents_of,
    has_results,
    influences,
    read_ids,
    refuse_other_samples,
    top_k,
)

log = logging.getLogger(__name__)
SECTION = "loo"


class LossFiles(NamedTuple):
    """Files of the refits of one test.

    Attributes:
        losses: File of the refits without one sample.
        nulls: File of the displaced null refits.
    """

    losses: Path
    nulls: Path


@dataclass(frozen=True)
class RefitStage:
    """Refits of scored tests, recorded in a folder of results and its manifest.

    Attributes:
        module: Module with the weights of the base model.
        datamodule: Data module, set up.
        settings: Settings of the refits.
        layout: Files of results.
        base_settings: Settings behind the base model that change a number (compared), by name.
        trainer_settings: Trainer settings of each refit.
        finish: Callback that ends each refit.
        seed: Random seed of the base fit, and so of each refit.
        make_model: Function that makes the untrained model; refits with `init = cold` start from it.
        overwrite: Whether results of other settings are replaced.
    """

    module: SampleLossModule
    datamodule: AttributionData
    settings: RefitSettings
    layout: Layout
    base_settings: Mapping[str, JSON]
    trainer_settings: TrainerSettings
    finish: NewtonFinish
    seed: int
    make_model: Callable[[], SampleLossModule] | None = None
    overwrite: bool = False

    def leave_out_top(self, test_ids: Sequence[int]) -> None:
        """Makes the refits of scored tests: without top-k ids, without controls, and the other kinds in the settings.

        Stored refits are kept.

        Args:
            test_ids: Ids of tests with scores in the folder.

        Raises:
            InputError: If scores are missing, or the folder holds results of other settings or other test samples.
            WorkError: If a refit did not converge.
        """
        contents = contents_of(self.datamodule.test_batch, test_ids)
        afresh = self.overwrite or not has_results(self.layout.existing_losses())
        sections = ("influence",) if afresh else ("influence", SECTION)
        refuse_other_samples(Manifest.at(self.layout.manifest), contents, sections)
        top = {t: self._top_ids(t) for t in test_ids}
        files = {t: LossFiles(self.layout.loo_losses(t), self.layout.null_losses(t)) for t in test_ids}
        seed_files = [LossFile(self.layout.seed_losses(t), "draw") for t in test_ids]
        refits = self._leave_one_out(files, self._extra_refits(top), seed_files)
        self._run(refits, SECTION, files, top, contents)

    def leave_out(self, ids: Mapping[int, Sequence[int]], files: Mapping[int, LossFiles], section: str) -> None:
        """Makes the refits without these ids and the controls, into files with given names; stored refits are kept.

        Args:
            ids: Training ids to leave out, by test id.
            files: Files of the refits, by test id.
            section: Name of their section in the manifest.

        Raises:
            InputError: If the files hold refits of other settings or other test samples.
            WorkError: If a refit did not converge.
        """
        contents = contents_of(self.datamodule.test_batch, list(files))
        self._run(self._leave_one_out(files), section, files, ids, contents)

    def _top_ids(self, test_id: int) -> list[int]:
        """Reads the ids of the top-k refits of a test."""
        path, k = self.layout.topk_ids(test_id), self.settings.top_k
        ids: list[int] = read_ids(path, self.datamodule.train_set.ids.numpy())[:k].tolist()
        if len(ids) < k:
            log.warning(
                "refits of test %d: of the %d ids in %s alone; refit.top_k = %d needs as large an attribution.top_k.",
                test_id,
                len(ids),
                path,
                k,
            )
        return ids

    @property
    def _control_ids(self) -> list[int]:
        """Ids of the random controls."""
        return controls(self.datamodule.train_set.ids.numpy(), self.settings.random, self.settings.seed)

    def _leave_one_out(
        self,
        files: Mapping[int, LossFiles],
        extra_refits: Sequence[ExtraRefits] = (),
        seed_files: Sequence[LossFile] = (),
    ) -> LeaveOneOut:
        loader = TrainingLoader(self.datamodule)
        return LeaveOneOut(
            base=self.module,
            # A base fit with decoupled weight decay was recorded, or refused: its refits may take the same steps.
            refitter=Refitter(
                self._start(), loader, self.trainer_settings, self.finish, self.seed, allow_decoupled_decay=True
            ),
            queries=self._queries(list(files)),
            files=[LossFile(pair.losses) for pair in files.values()],
            null_files=[LossFile(pair.nulls, "draw") for pair in files.values()],
            n=len(self.datamodule.train_set),
            settings=self.settings,
            extra_refits=extra_refits,
            seed_files=seed_files,
        )

    def _queries(self, test_ids: Sequence[int]) -> Batch:
        """Returns the tests: one by one where a loss is that of a training step, which some modules take alone only."""
        data = self.datamodule
        if isinstance(self.module, Adapted) and self.module.one_by_one and isinstance(data, SingleQueries):
            return data.test_singles(test_ids)
        return data.test_batch(test_ids)

    def _start(self) -> Callable[[], SampleLossModule]:
        if self.settings.init == "warm":
            return functools.partial(copied, self.module)
        if self.make_model is None:
            raise InputError(
                "Refits with init = cold start from an untrained model, and RefitStage was given none to start from.\n"
                "  Give make_model, a function that makes the model, such as functools.partial(Model, ...); or init = "
                "warm."
            )
        return self.make_model

    def _extra_refits(self, top: Mapping[int, list[int]]) -> tuple[ExtraRefits, ...]:
        """Builds the kinds of refit that the settings add to removals of one sample."""
        kinds: list[ExtraRefits] = []
        if self.settings.weight_steps:
            files = {w: [LossFile(self.layout.weight_losses(w, t)) for t in top] for w in WEIGHTS}
            kinds.append(WeightSteps(stepped(top, self._control_ids, self.settings.weight_steps), files))
        if self.settings.groups:
            stored = {t: influences.load(self.layout.scores(t)) for t in top}
            ranked = {t: top_k(one.scores, one.train_ids, len(one.train_ids)) for t, one in stored.items()}
            named = groups(ranked, self.settings.groups, self.settings.seed)
            kinds.append(Groups(named, [GroupFile(self.layout.group_losses(t)) for t in top]))
        return tuple(kinds)

    def _run(
        self,
        refits: LeaveOneOut,
        section: str,
        files: Mapping[int, LossFiles],
        top: Mapping[int, Sequence[int]],
        contents: Mapping[str, JSON],
    ) -> None:
        """Runs the refits that are missing, under their section of the manifest.

        Args:
            refits: Refits of all kinds.
            section: Name of the section.
            files: Files of the plain removals, by test id.
            top: Training ids to leave out, by test id.
            contents: SHA-256 of each test sample, by id.
        """
        random = self._control_ids
        recorded: dict[str, JSON] = {
            "test_ids": list(files),
            "top_k": self.settings.top_k,
            "random_ids": list(random),
            **refits.recorded(),
        }
        named = [path for pair in files.values() for path in pair]
        replaced = [*self.layout.existing_losses(), *named] if section == SECTION else named
        manifest = Manifest.at(self.layout.manifest)
        afresh = self.overwrite or not has_results(replaced)
        compared = manifest.joined(section, self._identity_settings(), contents, recorded, afresh)
        opening = Section(manifest, section, compared, recorded, replaced, derived=self.layout.verdict_files)
        with opening.opened(self.overwrite):
            refits.run(removals(top, random), random)

    def _identity_settings(self) -> dict[str, JSON]:
        """Settings that change a number."""
        return {
            **self.base_settings,
            "removal": self.settings.removal,
            "init": self.settings.init,
            "recipe": self.trainer_settings.identity_settings(),
            "finish": {"after": self.finish.after, "tolerance": self.finish.tolerance},
            "controls_seed": self.settings.seed,
        }
