"""The influence stage: from a trained module and test ids to files of scores, resumable test by test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from tqdm import tqdm

from ifloo.attribution import DEFINITIONS
from ifloo.data.adapted import training_loader
from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError
from ifloo.objective import sequential
from ifloo.objective.loaders import sample_count
from ifloo.params import ParamSpace
from ifloo.stages.certificate.examined_run import ExaminedRun
from ifloo.stages.distributed.process_group import ProcessGroup
from ifloo.stages.memory import in_blocks, queries_at_once
from ifloo.stages.scores.corrected_removals import correct_removals
from ifloo.stages.scores.other_methods import MethodRun, scores_there
from ifloo.stages.scores.predictor import InfluencePredictor, InfluenceWriter, ScoredBlock
from ifloo.stages.scores.queries import QuerySamples, samples_for
from ifloo.stages.scores.records import (
    indexed_test,
    stored_influences,
    warn_of_fixed_steps,
    warn_of_worst_fixed_steps,
)
from ifloo.stages.scores.self_influence import self_influences
from ifloo.stages.settings import AttributionSettings, method_name, settings_json
from ifloo.store import (
    JSON,
    AllTests,
    Layout,
    Manifest,
    RunFolder,
    ScoreFiles,
    ScoreMatrix,
    ScoreTopK,
    Section,
    StoredInfluences,
    contents_of,
    has_results,
    influences,
    save_topk,
    settings_stamp,
    top_k,
)
from ifloo.store.sample_contents import other_sample

MakeTrainer = Callable[[InfluenceWriter, bool], L.Trainer]  # (writer, whether to show its progress bar)


@dataclass(frozen=True)
class InfluenceStage:
    """Stage that scores the training samples of a trained module and writes the results.

    Attributes:
        module: Trained model, meeting the contract.
        datamodule: Data module, already set up.
        settings: Settings of the attribution.
        layout: Paths of the files.
        base_settings: Settings behind the checkpoint that change a number (compared), by name.
        make_trainer: Function that makes a Trainer for one pass over the training data, given the writer of its scores
            and whether to show a progress bar.
        overwrite: Whether results of other settings are replaced.
        recorded: Recorded training run, for methods that follow it.
        refit_recipe: Trainer settings of later refits, where the checkpoint does not hold them; recorded for these.
        objective: Comparison of J with what was trained; None for one that the stage makes itself.
    """

    module: L.LightningModule
    datamodule: AttributionData
    settings: AttributionSettings
    layout: Layout
    base_settings: Mapping[str, JSON]
    make_trainer: MakeTrainer
    overwrite: bool = False
    recorded: RunFolder | None = None
    refit_recipe: Mapping[str, JSON] = field(default_factory=dict)
    objective: ExaminedRun | None = None

    def score_tests(self) -> list[StoredInfluences]:
        """Writes and returns the scores of the listed test ids, with their top-k ids; scores already stored are kept.

        Raises:
            InputError: A test id is out of range, or the folder holds results of other settings.
            SolveError: A solve failed.
        """
        assert self.settings.test_ids != "all"
        ids = list(self.settings.test_ids)
        replaced = [
            *self.layout.existing_scores(),
            *self.layout.existing_removals(),
            *(self.layout.scores(t) for t in ids),
        ]
        with self._section("influence", ids, replaced).opened(self.overwrite):
            stamp = settings_stamp(self._identity_settings())
            stored = {t: scores_there(self.layout.scores(t), stamp, self.layout) for t in ids}
            found = {t: one for t, one in stored.items() if one is not None}

            def save(one: StoredInfluences) -> None:
                influences.save(self.layout.scores(one.test_id), one)
                found[one.test_id] = one

            self.score([t for t in ids if t not in found], save)
        for t in ids:  # top_k may change between runs
            save_topk(self.layout.topk_ids(t), top_k(found[t].scores, found[t].train_ids, self.settings.top_k))
        return [found[t] for t in ids]

    def all_tests(self) -> int:
        """Writes the scores of every test sample in the form of the settings, and the index.

        Returns:
            Number of test samples scored in this run.

        Raises:
            InputError: The folder holds results of other settings, or in another form.
            SolveError: A solve failed.
        """
        ids = [int(i) for i in self.datamodule.test_set.ids]
        with self._section("all_tests", [], self.layout.existing_all_scores()).opened(self.overwrite):
            contents, folder = contents_of(self.datamodule.test_batch, ids), self._folder(ids)
            for t, row in folder.rows.items():
                if str(t) in contents and row["content"] != contents[str(t)]:
                    raise InputError(
                        f"{other_sample(self.layout.index, t, 'scores', contents[str(t)], row['content'])}\n"
                        "  Give another --output_dir to keep both, or --overwrite to replace the stored ones."
                    )

            def deliver(block: ScoredBlock) -> None:
                records = self._records(block)
                warn_of_worst_fixed_steps(records)
                tests = [indexed_test(one, contents[str(one.test_id)]) for one in records]
                folder.add(tests, block.scores.value.numpy())

            missing = folder.missing
            self._blocks(missing, deliver)
            folder.finish()
        return len(missing)

    def correct(self, scored: Sequence[StoredInfluences], ids: Sequence[int]) -> None:
        """Predicts the removals of these ids with leverage; raises the errors of `correct_removals`."""
        samples = QuerySamples(self.datamodule, tuple(one.test_id for one in scored))
        solves = len(scored) * (1 + self.settings.top_k)
        engine = self._predictor.build_engine(solves)
        queries, rule = samples_for(engine.objective.losses, samples), self._predictor.examined().rule
        correct_removals(engine, queries, scored, ids, self.layout, rule)

    def score_with(self, test_ids: Sequence[int]) -> None:
        """Scores by the methods in `settings.compare_with`; raises the errors of `MethodRun.further`."""
        if self.settings.compare_with:
            self._methods.further(test_ids, self._model(), self.overwrite)

    def self_influence(self) -> None:
        """Writes self-influence if the settings request it; raises the errors of `self_influences`."""
        if self.settings.self_influence:
            self_influences(self._methods, self._model(), self.overwrite)

    def _model(self) -> dict[str, JSON]:
        """Returns the settings that all methods share: those of the model and of its parameters."""
        model = {**self.base_settings, "parameters": list(self.settings.parameters), "dtype": self.settings.dtype}
        return {**model, **self._epoch()}

    @cached_property
    def _methods(self) -> MethodRun:
        """Run of the methods other than curvature and solver, which share the data that they read and check."""
        device = self._device
        examined = self._predictor.examined()
        return MethodRun(self.module, self.datamodule, self.settings, self.layout, device, self.recorded, examined)

    @cached_property
    def _device(self) -> torch.device:
        return self.make_trainer(InfluenceWriter(lambda block: None), False).strategy.root_device

    def serve(self) -> None:
        """Works as a process other than the first, which names the tests to score; writes nothing."""
        self._blocks(None, lambda block: None)

    def _folder(self, ids: Sequence[int]) -> AllTests:
        train_ids = self.datamodule.train_set.ids.numpy()
        if self.settings.topk_only:
            return ScoreTopK(self.layout, ids, train_ids, self.settings.top_k)
        return (ScoreMatrix if self.settings.matrix else ScoreFiles)(self.layout, ids, train_ids)

    def _section(self, name: str, test_ids: Sequence[int], paths: Sequence[Path]) -> Section:
        """Returns the section of the manifest: tests already scored must be the same samples, others may join."""
        manifest, queries = Manifest.at(self.layout.manifest), contents_of(self.datamodule.test_batch, test_ids)
        afresh = self.overwrite or not has_results(paths)
        compared = manifest.joined(name, self._identity_settings(), queries, self._free_settings(), afresh)
        derived = self.layout.verdict_files if name == "influence" else []
        return Section(manifest, name, compared, self._free_settings(), paths, derived)

    def record(self, name: str, test_ids: Sequence[int]) -> None:
        """Replaces the section of the manifest for results that were written by other code."""
        compared = {**self._identity_settings(), "queries": contents_of(self.datamodule.test_batch, test_ids)}
        Manifest.at(self.layout.manifest).record(name, compared, self._free_settings())

    def _free_settings(self) -> dict[str, JSON]:
        ids = self.settings.test_ids
        return {
            "test_ids": ids if ids == "all" else list(ids),
            "top_k": self.settings.top_k,
            "batch_size": self.settings.batch_size,
            "objective": self._objective(),
            **({"recipe": dict(self.refit_recipe)} if self.refit_recipe else {}),
        }

    def _objective(self) -> JSON:
        """Returns the certificate of the objective as plain values."""
        certificate = self._predictor.examined().certificate
        return None if certificate is None else certificate.record()

    def _identity_settings(self) -> dict[str, JSON]:
        settings = self.settings
        return {
            **self.base_settings,
            **(
                {"method": settings_json(settings.method)}
                if settings.method
                else {
                    "curvature": settings.curvature_name,
                    "damping": settings.damping,
                    "solver": settings_json(settings.solver),
                }
            ),
            "parameters": list(settings.parameters),
            "dtype": settings.dtype,
            # Omitted if it equals the precision of the solve, as in manifests older than this setting.
            **({"scores_dtype": settings.products_dtype} if settings.products_dtype else {}),
            **self._epoch(),
        }

    def _epoch(self) -> dict[str, JSON]:
        """Returns what changes the weights in J beside the data; nothing where J has those of one batch of all."""
        weights = self._predictor.examined().weights
        return {} if weights is None or not weights.batches else {"epoch": weights.batches}

    def score(self, test_ids: Sequence[int], save: Callable[[StoredInfluences], None]) -> None:
        """Scores test samples in blocks and calls `save` with the record of each; writes nothing itself.

        Raises:
            InputError: A test id is out of range, or the training data cannot be scored.
            SolveError: A solve failed.
        """
        if self.settings.method is not None:
            stamp = settings_stamp(self._identity_settings())
            self._methods.score(self.settings.method, test_ids, stamp, save)
            return

        def deliver(block: ScoredBlock) -> None:
            records = self._records(block)
            warn_of_fixed_steps(records)
            for one in records:
                save(replace(one, scores=one.scores.copy()))  # the memory of the block is reused

        self._blocks(test_ids, deliver)

    def _records(self, block: ScoredBlock) -> list[StoredInfluences]:
        factors, rule = self._predictor.engine.objective.factors, self._predictor.examined().rule
        stamp = settings_stamp(self._identity_settings())
        return stored_influences(block, self._method(), DEFINITIONS, stamp, factors, rule)

    def _method(self) -> str:
        engine = self._predictor.engine
        return method_name(engine.curvature, engine.solver, self.module)

    @cached_property
    def _predictor(self) -> InfluencePredictor:
        own = training_loader(self.datamodule)
        predictor = InfluencePredictor(self.module, sequential(own, self.settings.batch_size), self.settings)
        predictor.objective_request = replace(predictor.objective_request, loader=own, device=self._device)
        if self.objective is not None:
            predictor.assume(self.objective)
        return predictor

    def _blocks(self, test_ids: Sequence[int] | None, deliver: Callable[[ScoredBlock], None]) -> None:
        """Prepares the solver once, then solves, scores and delivers block by block, in all processes of the Trainer.

        Args:
            test_ids: Ids of the tests; None in all processes but the first.
            deliver: Function of each finished block, called in the first process.
        """
        predictor, dtype = self._predictor, torch.float32 if self.settings.test_ids == "all" else None
        size, n = self._block_size(8 if dtype is None else 4), sample_count(predictor.loader)
        single = test_ids is not None and len(test_ids) <= size and self.settings.test_ids != "all"
        with tqdm(
            total=len(test_ids or ()) * n,
            desc="tests x training samples",
            unit="pair",
            unit_scale=True,
            disable=single or not test_ids,
        ) as bar:
            writer = InfluenceWriter(deliver, dtype, bar.update)
            trainer = self.make_trainer(writer, single)
            if test_ids is not None and not test_ids and not ProcessGroup.waiting(trainer):
                return
            world = ProcessGroup.connect(trainer)
            ids = world.broadcast(test_ids) or ()
            corrected = self.settings.top_k if self.settings.corrected and self.settings.test_ids != "all" else 0
            predictor.share_runs(world, len(ids) * (1 + corrected))

            def work(now: Sequence[int]) -> None:
                bar.n = ids.index(now[0]) * n  # the pairs of a failed block are counted again
                queries = QuerySamples(self.datamodule, tuple(now))
                with world.watch_peers():
                    predictor.explain(queries, self.make_trainer(writer, single))

            try:
                in_blocks(ids, size, work)
            finally:
                world.close()

    def _block_size(self, score_bytes: int) -> int:
        if self.settings.query_block is not None:
            return self.settings.query_block
        predictor = self._predictor
        space = ParamSpace.of(predictor.module, self.settings.parameters)
        n = sample_count(predictor.loader)
        return queries_at_once(n, space.size, score_bytes, space.dtype.itemsize)
