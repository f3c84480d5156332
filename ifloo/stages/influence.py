"""The influence stage: from a trained module and test ids to files of scores, resumable test by test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from tqdm import tqdm

from ifloo.attribution import DEFINITIONS, Scores
from ifloo.errors import InputError
from ifloo.objective import Batch, sequential
from ifloo.objective.batches import rows, tensors_of
from ifloo.solvers import Status
from ifloo.stages.predictor import InfluencePredictor, InfluenceWriter
from ifloo.stages.settings import AttributionSettings, described, method_name
from ifloo.store import (
    JSON,
    Layout,
    Manifest,
    Section,
    StoredInfluences,
    influences,
    jsonl,
    save_topk,
    settings_stamp,
    sha256_of_tensors,
    top_k,
    write_npy,
)

log = logging.getLogger(__name__)
HASHED_AT_ONCE = 256  # test samples in memory while their content is read
MakeTrainer = Callable[[InfluenceWriter, bool], L.Trainer]  # (writer, whether to show its progress bar)


@dataclass(frozen=True)
class InfluenceRun:
    """Everything the stage needs, and where its results go.

    Attributes:
        module: the trained model, meeting the contract.
        datamodule: set up; gives `train_dataloader`, `test_batch(ids)`, `test_set`.
        settings: of the attribution.
        layout: where files go.
        origin: what the checkpoint was made from: settings that change a number (compared), by name.
        overwrite: replace results of other settings.
    """

    module: Any
    datamodule: Any
    settings: AttributionSettings
    layout: Layout
    origin: dict[str, JSON]
    overwrite: bool = False

    def listed(self, make_trainer: MakeTrainer) -> list[StoredInfluences]:
        """Scores and top-k ids of the test ids listed; those already there are read, not made again.

        Raises:
            InputError: a test id out of range, or results of other settings in the folder.
            SolveError: an inverse-HVP that cannot be trusted.
        """
        assert self.settings.test_ids != "all"
        wanted = list(self.settings.test_ids)
        replaced = [*self.layout.scores_there(), *(self.layout.scores(t) for t in wanted)]
        with self._section("influence", wanted, replaced).opened(self.overwrite):
            missing = [t for t in wanted if not self._there(t)]
            self.score(missing, make_trainer, lambda one: influences.save(self.layout.scores(one.test_id), one))
        stored = [influences.load(self.layout.scores(t)) for t in wanted]
        for one in stored:  # top_k is free to change between runs
            save_topk(self.layout.topk_ids(one.test_id), top_k(one.scores, one.train_ids, self.settings.top_k))
        return stored

    def _there(self, t: int) -> bool:
        """Whether the scores of a test are there.

        Raises:
            InputError: they are, and other settings made them.
        """
        if not self.layout.scores(t).exists():
            return False
        if influences.load(self.layout.scores(t)).settings != settings_stamp(self._compared()):
            raise InputError(
                f"{self.layout.scores(t)} was made with other settings than {self.layout.manifest} says.\n"
                "  Give another --output_dir to keep it, or --overwrite to replace it."
            )
        return True

    def all_tests(self, make_trainer: MakeTrainer) -> int:
        """One file of scores for every test sample, and the index; returns how many were made in this run.

        Raises:
            InputError: results of other settings in the folder.
            SolveError: an inverse-HVP that cannot be trusted.
        """
        ids = [int(i) for i in self.datamodule.test_set.ids]
        with self._section("all_tests", [], self.layout.all_scores_there()).opened(self.overwrite):
            contents, indexed = self._contents(ids), self._indexed()
            for t, row in indexed.items():
                if t in ids and row["content"] != contents[str(t)]:
                    raise InputError(
                        f"{self.layout.index}: the scores of test {t} are of another sample: its content has SHA-256 "
                        f"{str(contents[str(t)])[:16]}..., theirs {str(row['content'])[:16]}....\n"
                        "  Give another --output_dir to keep both, or --overwrite to replace the stored ones."
                    )
            missing = [t for t in ids if t not in indexed or not self.layout.all_scores(t).exists()]
            self.score(missing, make_trainer, lambda one: self._save_indexed(one, indexed, contents[str(one.test_id)]))
        return len(missing)

    def _indexed(self) -> dict[int, dict[str, JSON]]:
        if not self.layout.index.exists():
            return {}
        jsonl.repair(self.layout.index)
        return {row["test_id"]: row for row in jsonl.read(self.layout.index)}

    def _save_indexed(self, one: StoredInfluences, indexed: dict[int, dict[str, JSON]], content: JSON) -> None:
        path = self.layout.all_scores(one.test_id)
        write_npy(path, one.scores)
        if one.test_id in indexed:
            return
        row: dict[str, JSON] = {
            "test_id": one.test_id,
            "path": path.name,
            "content": content,
            "score_mean": one.score_mean,
            "residual": one.residual,
            "undamped_residual": one.undamped_residual,
            "error_bound": one.error_bound,
            "status": one.status,
            "method": one.method,
        }
        jsonl.append(self.layout.index, row)
        indexed[one.test_id] = row

    def _section(self, name: str, test_ids: Sequence[int], paths: Sequence[Path]) -> Section:
        """The section of the manifest: test samples already scored must be the same, others may join."""
        manifest, queries = Manifest.at(self.layout.manifest), self._contents(test_ids)
        stored = {} if self.overwrite else manifest.sections().get(name, {}).get("compared", {}).get("queries", {})
        compared = {**self._compared(), "queries": {**stored, **queries}}
        # To a manifest that lacks the new ids, only those it has are compared.
        again = {**compared, "queries": {t: queries.get(t, stored[t]) for t in stored}}
        manifest.check(name, again, self.overwrite)
        if stored and set(stored) != {**stored, **queries}.keys():
            manifest.record(name, compared, self._free())
        derived = [self.layout.verdict] if name == "influence" else []
        return Section(manifest, name, compared, self._free(), paths, derived)

    def record(self, name: str, test_ids: Sequence[int]) -> None:
        """Sets the section of the manifest for results written elsewhere, whatever it said before."""
        compared = {**self._compared(), "queries": self._contents(test_ids)}
        Manifest.at(self.layout.manifest).record(name, compared, self._free())

    def _free(self) -> dict[str, JSON]:
        ids = self.settings.test_ids
        return {
            "test_ids": ids if ids == "all" else list(ids),
            "top_k": self.settings.top_k,
            "batch_size": self.settings.batch_size,
        }

    def _compared(self) -> dict[str, JSON]:
        settings = self.settings
        return {
            **self.origin,
            "curvature": settings.curvature_name,
            "damping": settings.damping,
            "solver": described(settings.solver),
            "parameters": list(settings.parameters),
            "dtype": settings.dtype,
        }

    def _contents(self, test_ids: Sequence[int]) -> dict[str, JSON]:
        """SHA-256 of each test sample, by id; refuses ids out of range before any work."""
        contents: dict[str, JSON] = {}
        for start in range(0, len(test_ids), HASHED_AT_ONCE):
            now = test_ids[start : start + HASHED_AT_ONCE]
            batch = self.datamodule.test_batch(now)
            contents |= {str(t): _content(rows(batch, slice(k, k + 1))) for k, t in enumerate(now)}
        return contents

    def score(
        self, test_ids: Sequence[int], make_trainer: MakeTrainer, save: Callable[[StoredInfluences], None]
    ) -> None:
        """Scores test samples in blocks and hands each over; writes nothing itself.

        Raises:
            InputError: a test id out of range, or training data that no score can come from.
            SolveError: an inverse-HVP that cannot be trusted.
        """
        if not test_ids:
            return
        loader = sequential(self.datamodule.train_dataloader(), self.settings.batch_size)
        predictor = InfluencePredictor(self.module, loader, self.settings)

        def deliver(scores: Scores) -> None:
            method = method_name(predictor.engine.curvature, self.settings.solver)
            for k in range(len(scores.query_ids)):
                save(_stored(scores, k, self.settings.damping, method, settings_stamp(self._compared())))

        block = self.settings.query_block
        single = len(test_ids) <= block
        with tqdm(total=len(test_ids), desc="tests", unit="test", disable=single) as bar:
            for start in range(0, len(test_ids), block):
                now = test_ids[start : start + block]
                predictor.queries = self.datamodule.test_batch(now)
                make_trainer(InfluenceWriter(deliver), single).predict(predictor, loader, return_predictions=False)
                bar.update(len(now))


def _stored(scores: Scores, k: int, damping: float, method: str, settings: str) -> StoredInfluences:
    certificate, t = scores.certificate, int(scores.query_ids[k])
    if certificate.status[k] is Status.FIXED_STEPS:
        log.warning(_not_certified(t, certificate, k))
    return StoredInfluences(
        test_id=t,
        scores=scores.value[k].float().cpu().numpy(),
        train_ids=scores.train_ids.cpu().numpy(),
        score_mean=float(scores.mean[k]),
        residual=float(certificate.residual[k]),
        undamped_residual=float(certificate.undamped_residual[k]),
        error_bound=None if certificate.error_bound is None else float(certificate.error_bound[k]),
        steps=int(certificate.steps[k]),
        status=certificate.status[k].name,
        damping=damping,
        method=method,
        definitions=DEFINITIONS,
        settings=settings,
        repeat_error=None if certificate.repeat_error is None else float(certificate.repeat_error[k]),
    )


def _content(query: Batch) -> str:
    return sha256_of_tensors({str(i): x for i, x in enumerate(tensors_of(query))})


def _not_certified(t: int, certificate: Any, k: int) -> str:
    repeat = certificate.repeat_error
    spread = "" if repeat is None else f", standard error between repeats {float(repeat[k]):.1%} of the solution"
    return (
        f"test {t}: the solver took its fixed {int(certificate.steps[k])} steps; its true relative residual is "
        f"{float(certificate.residual[k]):.2g} (damped system), {float(certificate.undamped_residual[k]):.2g} "
        f"(undamped){spread}. Judge the scores by it; solver CG reaches 1e-10."
    )
