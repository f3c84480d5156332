"""kronfluence: EK-FAC factors of the single layer, pairwise scores, the penalty as damping."""

from __future__ import annotations

from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task as KronfluenceTask
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.peers import plain
from bench.problem import Outcome, Problem
from bench.task import Task

BATCH = 4096


class Classification(KronfluenceTask):
    """Task with cross-entropy as training loss and as measurement."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        x, y = batch
        logits = model(x)
        if sample:
            with torch.no_grad():
                y = torch.multinomial(torch.softmax(logits.detach(), 1), 1).squeeze(1)
        return cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def ekfac(problem: Problem, task: Task) -> Outcome:
    tests, described = problem.tests(task.work), Classification()
    train, queries = plain.train_set(problem), plain.test_set(problem, tests)
    analyzer = Analyzer(
        f"{task.work}_kronfluence",
        prepare_model(plain.model(problem), described),
        described,
        cpu=problem.device == "cpu",
        disable_tqdm=True,
        output_dir=task.folder,
    )
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=False)
    analyzer.fit_all_factors(
        "ekfac", train, per_device_batch_size=BATCH, factor_args=factors, overwrite_output_dir=True
    )
    analyzer.compute_pairwise_scores(
        "pairwise",
        "ekfac",
        queries,
        train,
        per_device_query_batch_size=len(tests),
        per_device_train_batch_size=BATCH,
        score_args=ScoreArguments(damping_factor=problem.l2),
        overwrite_output_dir=True,
    )
    scores = analyzer.load_pairwise_scores("pairwise")  # compute_pairwise_scores only writes them to disk
    return plain.found(problem, tests, scores["all_modules"])
