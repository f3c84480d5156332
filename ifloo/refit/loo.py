"""Leave-one-out: refit without a sample, measure every test loss, append one line a test; resumes when killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ifloo.gradients import sample_gradients
from ifloo.objective import Batch, FunctionalLosses, SampleWeights, scoring
from ifloo.objective.batches import map_tensors
from ifloo.params import ParamSpace
from ifloo.refit.plan import RefitSettings
from ifloo.refit.recipe import Refit, Refitter
from ifloo.store import NULL_ID, UNSURE, LossFile, LossRow


@dataclass(frozen=True)
class LeaveOneOut:
    """Refits without each of the ids asked for, evaluated on all test samples.

    Attributes:
        base: the base module (its weights are where the test gradients are taken).
        refitter: fits again.
        queries: batch of the m test samples.
        files: one file of losses for each of them.
        null_files: one file each for the displaced null refits.
        n: training samples.
        settings: of removal and noise floor.
    """

    base: Any
    refitter: Refitter
    queries: Batch
    files: Sequence[LossFile]
    null_files: Sequence[LossFile]
    n: int
    settings: RefitSettings

    def run(self, ids: Sequence[int], control_ids: Sequence[int]) -> None:
        """Null refit, displaced null refits, then each id not yet in every file.

        Raises:
            WorkError: a refit that did not converge; everything finished before it is in the files.
        """
        done = [file.done() for file in self.files]
        draws = [file.done() for file in self.null_files]
        missing = [i for i in ids if any(i not in rows for rows in done)]
        draw = [k for k in range(1, self.settings.null_refits + 1) if any(k not in rows for rows in draws)]
        null_missing = any(NULL_ID not in rows for rows in done)
        if (missing or draw or null_missing) and self.refitter.finish.after != "never":
            self.refitter.finish.prepare(self.base, self.refitter.loader())
        with tqdm(total=len(missing) + len(draw) + null_missing, desc="refits", unit="refit") as bar:
            if null_missing:
                self._record(NULL_ID, self.refitter.fit(), done, {})
                bar.update()
            if draw:
                self._displaced(draw, draws, bar.update)
            for i in missing:
                weights = SampleWeights.removing([i], self.settings.removal, self.n)
                self._record(i, self.refitter.fit(weights), done, {"control": i in set(control_ids)})
                bar.update()

    def _record(self, i: int, refit: Refit, done: list[dict[int, LossRow]], extra: dict[str, Any]) -> None:
        losses = self._losses(refit.module)
        mu, norms = self._bound
        for k, (file, rows) in enumerate(zip(self.files, done, strict=True)):
            if i in rows:
                continue
            extras = {"steps": refit.minimum.steps, "objective": refit.minimum.value, **extra}
            bound = None
            if i != NULL_ID and mu is not None:
                null = rows[NULL_ID]
                bound = float(norms[k]) * (refit.minimum.grad_norm + (null.grad_norm or 0.0)) / mu
                extras["flagged"] = bound > UNSURE * abs(losses[k] - null.loss)
            rows[i] = LossRow(i, losses[k], refit.minimum.grad_norm, refit.seconds, bound, extras)
            file.add(rows[i])

    def _displaced(self, wanted: list[int], done: list[dict[int, LossRow]], tick: Callable[[], Any]) -> None:
        """Null refits that really move: from where the removal of a random sample would have put the weights."""
        steps = self._removal_steps(max(wanted))
        for k in wanted:
            refit = self.refitter.fit(prepare=lambda module, k=k: _displace(module, steps[k - 1]))  # type: ignore[misc]
            losses = self._losses(refit.module)
            for file, rows, loss in zip(self.null_files, done, losses, strict=True):
                if k not in rows:
                    extra = {
                        "draw": k,
                        "displacement": float(steps[k - 1].norm()),
                        "steps": refit.minimum.steps,  # none taken: a null refit that could not have failed
                    }
                    file.add(LossRow(NULL_ID, loss, refit.minimum.grad_norm, refit.seconds, None, extra))
            tick()

    def _removal_steps(self, count: int) -> Float[Tensor, "k p"]:
        """(1/n) H⁻¹∇ℓ_j of random samples j, to three digits: only its size matters."""
        objective, theta = self.refitter.finish.objective(self.base, self.refitter.loader()), _theta(self.base)
        generator = torch.Generator().manual_seed(self.settings.seed)
        with scoring(self.base):
            drawn = objective.data.draw(count, generator)  # type: ignore[attr-defined]
            gradients = sample_gradients(objective.losses, theta, drawn.batch)
            return self.refitter.finish.solve(objective, gradients, rtol=1e-3) / self.n

    def _losses(self, module: Any) -> list[float]:
        device = next(module.parameters()).device
        queries = map_tensors(lambda x: x.to(device), self.queries)
        with torch.no_grad(), scoring(module):
            return [float(x) for x in module.sample_losses(queries)]

    @cached_property
    def _bound(self) -> tuple[float | None, list[float]]:
        """Known μ of the objective, and ‖∇L_t‖ of each test at the base weights."""
        mu = getattr(self.base, "strong_convexity", lambda: None)()
        with scoring(self.base):
            gradients = sample_gradients(
                FunctionalLosses(self.base, ParamSpace.of(self.base)), _theta(self.base), self.queries
            )
        return mu, [float(x) for x in gradients.norm(dim=1)]


def _theta(module: Any) -> Float[Tensor, " p"]:
    return ParamSpace.of(module).values_of(module)


def _displace(module: Any, step: Float[Tensor, " p"]) -> None:
    ParamSpace.of(module).write_to(module, _theta(module) + step)
