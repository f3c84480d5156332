"""Leave-one-out: refit without a sample, measure every test loss, append one line a test; resumes when killed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

from tqdm import tqdm

from ifloo.errors import InputError, WorkError
from ifloo.gradients import sample_gradients
from ifloo.models import SampleLossModule
from ifloo.objective import Batch, FunctionalLosses, scoring
from ifloo.objective.batches import to_module
from ifloo.params import ParamSpace
from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, test_losses
from ifloo.refit.execution.runner import GivenUp, InProcess, Runner
from ifloo.refit.extra_refits import ExtraRefits
from ifloo.refit.recipe import Refitter
from ifloo.refit.selection import RefitSettings
from ifloo.store import JSON, NULL_ID, UNSURE, LossFile, LossRow

MAX_DRIFT = 1e-3  # of the weights: rounding that a smooth training run amplifies stays far below it
Rows = list[dict[int, LossRow]]  # of each test sample


@dataclass(frozen=True)
class LeaveOneOut:
    """Refits without each of the ids asked for, evaluated on all test samples.

    Where a μ > 0 with ∇²J ⪰ μI is known, each row has `delta_error` = ‖∇L_t‖ (‖∇J_refit‖ + ‖∇J_null‖) / μ, nats: to
    first order the largest error of its change of loss, since a μ-strongly convex J has its minimum within ‖∇J‖ / μ.

    Attributes:
        base: the base module (its weights are where the test gradients are taken).
        refitter: fits again.
        queries: batch of the m test samples.
        files: one file of losses for each of them.
        null_files: one file each for the displaced null refits.
        n: training samples.
        settings: of removal and noise floor, and of who works.
        shelves: for refits of other kinds.
        seed_files: one file each for the refits from other seeds.
    """

    base: SampleLossModule
    refitter: Refitter
    queries: Batch
    files: Sequence[LossFile]
    null_files: Sequence[LossFile]
    n: int
    settings: RefitSettings
    extra_refits: Sequence[ExtraRefits] = ()
    seed_files: Sequence[LossFile] = ()

    @cached_property
    def work(self) -> RefitWork:
        """What each process that refits is given."""
        return RefitWork(self.base, self.refitter, self.queries, self.n, self.settings)

    def recorded(self) -> dict[str, JSON]:
        """How and where the refits are made, which changes no number."""
        path, settings = self.work.path, self.settings
        return {"devices": settings.devices, "cluster": settings.cluster, "path": path.name, "unit": path.at_once}

    def run(self, ids: Sequence[int], control_ids: Sequence[int]) -> None:
        """Null refit, displaced null refits, each id not yet in every file, other kinds, and other seeds.

        Raises:
            WorkError: a refit that did not converge; everything finished before it is in the files.
        """
        done, draws = [file.done() for file in self.files], [file.done() for file in self.null_files]
        wanted = [
            *([RefitRequest(NULL_ID)] if any(NULL_ID not in rows for rows in done) else []),
            *(RefitRequest(NULL_ID, k) for k in self._draws() if any(k not in rows for rows in draws)),
            *(RefitRequest(i) for i in ids if any(i not in rows for rows in done)),
            *(wanted for shelf in self.extra_refits for wanted in shelf.missing()),
        ]
        if wanted:
            self._make(wanted, done, draws, set(control_ids))
        self._other_seeds()

    def _make(self, wanted: Sequence[RefitRequest], done: Rows, draws: Rows, controls: set[int]) -> None:
        given_up: list[GivenUp] = []
        waiting: list[RefitResult] = []  # for the null refit
        results = runner_of(self.work).run(wanted)
        with closing(results), tqdm(total=len(wanted), desc="refits", unit="refit") as bar:
            for result in results:
                if isinstance(result, GivenUp):
                    given_up.append(result)
                    if RefitRequest(NULL_ID) in result.unit:
                        break  # nothing can be held against it
                    continue
                waiting = self._recorded([*waiting, *result], done, draws, controls)
                bar.update(len(result))
        if given_up:
            raise WorkError(_given_up(given_up))

    def _draws(self) -> range:
        return range(1, self.settings.null_refits + 1)

    def _recorded(self, outcomes: list[RefitResult], done: Rows, draws: Rows, controls: set[int]) -> list[RefitResult]:
        """Adds outcomes to the files; returns those that must wait until the null refit is there."""
        waiting = []
        for outcome in sorted(outcomes, key=lambda x: x.request != RefitRequest(NULL_ID)):
            if any(shelf.record(outcome) for shelf in self.extra_refits):
                continue
            if outcome.request.draw:
                self._record_draw(outcome, draws)
            elif outcome.request.id == NULL_ID:
                self._refuse_drift(outcome)
                self._record(outcome, done, {} if outcome.drift is None else {"astray": outcome.drift})
            elif all(NULL_ID in rows for rows in done):
                self._record(outcome, done, {"control": outcome.request.id in controls})
            else:
                waiting.append(outcome)
        return waiting

    def _refuse_drift(self, null: RefitResult) -> None:
        """A training from scratch that does not end at the base model is of another run, and tells nothing about it.

        Raises:
            WorkError: it does not; where J is convex the way there does not matter.
        """
        if self._bound[0] is None and null.drift is not None and not null.drift <= MAX_DRIFT:
            raise WorkError(
                f"The refit with nothing removed ended {null.drift:.1e} away from the base model, relative to its "
                f"weights ({MAX_DRIFT:g} is allowed): refits do not repeat the base fit, and no score can predict "
                "them.\n"
                "  Training must depend on the seed alone: look for randomness that does not (a sampler of its own, "
                "augmentation), or a base model fitted by another version; `ifloo fit --overwrite` fits it "
                "again, refit.init warm starts from its weights."
            )

    def _record(self, outcome: RefitResult, done: Rows, extra: dict[str, JSON]) -> None:
        i, norm = outcome.request.id, outcome.grad_norm
        mu, norms = self._bound
        for k, (file, rows) in enumerate(zip(self.files, done, strict=True)):
            if i in rows:
                continue
            extras: dict[str, JSON] = {"steps": outcome.steps, "objective": outcome.objective, **extra}
            bound = None
            if i != NULL_ID and mu is not None:
                null = rows[NULL_ID]
                bound = norms[k] * (norm + (null.grad_norm or 0.0)) / mu
                extras["flagged"] = bound > UNSURE * abs(outcome.losses[k] - null.loss)
            rows[i] = LossRow(i, outcome.losses[k], norm, outcome.seconds, bound, extras)
            file.add(rows[i])

    def _record_draw(self, outcome: RefitResult, draws: Rows) -> None:
        draw = outcome.request.draw
        for file, rows, loss in zip(self.null_files, draws, outcome.losses, strict=True):
            if draw not in rows:
                extra: dict[str, JSON] = {
                    "draw": draw,
                    "displacement": outcome.displacement,
                    "steps": outcome.steps,  # none taken: a null refit that could not have failed
                }
                rows[draw] = LossRow(NULL_ID, loss, outcome.grad_norm, outcome.seconds, None, extra)
                file.add(rows[draw])

    def _other_seeds(self) -> None:
        """The whole fit with nothing removed, one by one: no two replicas of a fit have different seeds."""
        done = [file.done() for file in self.seed_files]
        missing = [k for k in range(1, self.settings.seeds + 1) if any(k not in rows for rows in done)]
        for k in tqdm(missing, desc="other seeds", unit="refit", leave=False, disable=not missing):
            refit = replace(self.refitter, seed=self.refitter.seed + k).fit()
            losses = test_losses(refit.module, self.queries)
            for file, rows, loss in zip(self.seed_files, done, losses, strict=True):
                if k not in rows:
                    rows[k] = LossRow(NULL_ID, loss, refit.minimum.grad_norm, refit.seconds, None, {"draw": k})
                    file.add(rows[k])

    @cached_property
    def _bound(self) -> tuple[float | None, list[float]]:
        """Known μ of the objective, and ‖∇L_t‖ of each test at the base weights."""
        mu = self.base.strong_convexity()
        space = ParamSpace.of(self.base)
        with scoring(self.base):
            losses, queries = FunctionalLosses(self.base, space), to_module(self.queries, self.base)
            gradients = sample_gradients(losses, space.values_of(self.base), queries)
        return mu, [float(x) for x in gradients.norm(dim=1)]


def runner_of(work: RefitWork) -> Runner:
    """Gives the runner that the settings ask for.

    Raises:
        InputError: a cluster is asked for, and `dask.distributed` is not installed.
    """
    if work.settings.in_process:
        return InProcess(work)
    try:
        from ifloo.refit.execution.dask_runner import OnCluster  # loads dask, which most refits do without
    except ImportError as error:
        raise InputError(
            f"refit.devices > 1 and refit.cluster need dask.distributed, which cannot be imported: {error}.\n"
            "  Install it: pip install 'ifloo[cluster]'"
        ) from error
    return OnCluster(work)


def _given_up(failed: Sequence[GivenUp]) -> str:
    ids = [one.name or one.id for unit in failed for one in unit.unit if not one.draw]
    draws = [one.draw for unit in failed for one in unit.unit if one.draw]
    named = [f"ids {ids}"] * bool(ids) + [f"displaced null refits {draws}"] * bool(draws)
    return (
        f"Given up after three tries each: refits with {' and '.join(named)}.\n  The last error: {failed[-1].reason}\n"
        "  What is finished is kept; the same command tries these again."
    )
