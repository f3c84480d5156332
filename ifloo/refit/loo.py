"""Leave-one-out losses: refits without one sample each, the losses of all tests appended to files; resumable."""

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
from ifloo.objective.batches import to_module, without_ids
from ifloo.objective.functional import Path
from ifloo.objective.singles import Singles
from ifloo.params import ParamSpace
from ifloo.refit.execution.job import RefitRequest, RefitResult, RefitWork, test_losses
from ifloo.refit.execution.runner import FailedUnit, InProcess, Runner
from ifloo.refit.extra_refits import ExtraRefits
from ifloo.refit.refitter import Refitter
from ifloo.refit.selection import RefitSettings
from ifloo.store import FLAG_RATIO, JSON, NULL_ID, LossFile, LossRow

MAX_DRIFT = 1e-3  # relative to the weights; rounding errors amplified by a smooth training stay far below it
Rows = list[dict[int, LossRow]]  # rows by id, one dictionary for each test sample


@dataclass(frozen=True)
class LeaveOneOut:
    """Refits without one sample each, evaluated on all test samples and recorded in files.

    If a μ > 0 with ∇²J ⪰ μI is known, each row has `delta_error` = ‖∇L_t‖ (‖∇J_refit‖ + ‖∇J_null‖) / μ, nats: to
    first order the largest error of its change in loss, since a μ-strongly convex J has its minimum within ‖∇J‖ / μ.

    Attributes:
        base: Base module; test gradients are taken at its weights.
        refitter: Refitter of the base fit.
        queries: Batch of the m test samples.
        files: Loss files, one for each test sample.
        null_files: Files of the displaced null refits, one for each test sample.
        n: Number of training samples.
        settings: Settings of removal, noise floor and worker processes.
        extra_refits: Refits of other kinds, each with its files.
        seed_files: Files of the refits from other seeds, one for each test sample.
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
        """Data and settings of the refits, given to each process that refits."""
        return RefitWork(self.base, self.refitter, self.queries, self.n, self.settings)

    def recorded(self) -> dict[str, JSON]:
        """Returns strategy and place of the refits for the manifest; they change no number."""
        strategy, settings = self.work.strategy, self.settings
        return {
            "devices": settings.devices,
            "cluster": settings.cluster,
            "path": strategy.name,
            "unit": strategy.max_at_once,
        }

    def run(self, ids: Sequence[int], control_ids: Sequence[int]) -> None:
        """Makes all refits that a file lacks: null refits, removals, the extra refits, and those from other seeds.

        Args:
            ids: Ids of the samples to remove.
            control_ids: Ids to mark as random controls in their rows.

        Raises:
            InputError: If a sample to remove has the id that the files give to the refit with nothing removed.
            WorkError: If a refit does not converge; all refits finished before are in the files.
        """
        _refuse_null_id(ids)
        done, draws = [file.done() for file in self.files], [file.done() for file in self.null_files]
        requests = [
            *([RefitRequest(NULL_ID)] if any(NULL_ID not in rows for rows in done) else []),
            *(RefitRequest(NULL_ID, k) for k in self._draws() if any(k not in rows for rows in draws)),
            *(RefitRequest(i) for i in ids if any(i not in rows for rows in done)),
            *(request for extra in self.extra_refits for request in extra.missing()),
        ]
        if requests:
            self._run_requests(requests, done, draws, set(control_ids))
        self._other_seeds()

    def _run_requests(self, requests: Sequence[RefitRequest], done: Rows, draws: Rows, controls: set[int]) -> None:
        failed_units: list[FailedUnit] = []
        waiting: list[RefitResult] = []  # results that cannot be recorded before the null refit
        outcomes = runner_of(self.work).run(requests)
        with closing(outcomes), tqdm(total=len(requests), desc="refits", unit="refit") as bar:
            for outcome in outcomes:
                if isinstance(outcome, FailedUnit):
                    failed_units.append(outcome)
                    if RefitRequest(NULL_ID) in outcome.unit:
                        break  # without the null refit no change in loss can be computed
                    continue
                waiting = self._recorded([*waiting, *outcome], done, draws, controls)
                bar.update(len(outcome))
        if failed_units:
            raise WorkError(_failure_message(failed_units))

    def _draws(self) -> range:
        return range(1, self.settings.null_refits + 1)

    def _recorded(self, results: list[RefitResult], done: Rows, draws: Rows, controls: set[int]) -> list[RefitResult]:
        """Adds results to the files; returns those that have to wait for the null refit."""
        waiting = []
        for result in sorted(results, key=lambda x: x.request != RefitRequest(NULL_ID)):
            if any(extra.record(result) for extra in self.extra_refits):
                continue
            if result.request.draw:
                self._record_draw(result, draws)
            elif result.request.id == NULL_ID:
                self._refuse_drift(result)
                self._record(result, done, {} if result.drift is None else {"astray": result.drift})
            elif all(NULL_ID in rows for rows in done):
                self._record(result, done, {"control": result.request.id in controls})
            else:
                waiting.append(result)
        return waiting

    def _refuse_drift(self, null: RefitResult) -> None:
        """Checks that a null refit from scratch ends at the base model; if not, refits say nothing about the base fit.

        A strongly convex J has one minimum, so the check is not needed there.

        Raises:
            WorkError: If the null refit ends more than `MAX_DRIFT` away.
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

    def _record(self, result: RefitResult, done: Rows, extra: dict[str, JSON]) -> None:
        i, norm = result.request.id, result.grad_norm
        mu, norms = self._bound
        for k, (file, rows) in enumerate(zip(self.files, done, strict=True)):
            if i in rows:
                continue
            extras: dict[str, JSON] = {"steps": result.steps, "objective": result.objective, **extra}
            bound = None
            if i != NULL_ID and mu is not None:
                null = rows[NULL_ID]
                bound = norms[k] * (norm + (null.grad_norm or 0.0)) / mu
                extras["flagged"] = bound > FLAG_RATIO * abs(result.losses[k] - null.loss)
            rows[i] = LossRow(i, result.losses[k], norm, result.seconds, bound, extras)
            file.add(rows[i])

    def _record_draw(self, result: RefitResult, draws: Rows) -> None:
        draw = result.request.draw
        for file, rows, loss in zip(self.null_files, draws, result.losses, strict=True):
            if draw not in rows:
                extra: dict[str, JSON] = {
                    "draw": draw,
                    "displacement": result.displacement,
                    "steps": result.steps,  # 0 shows a null refit that never moved and so could not have failed
                }
                rows[draw] = LossRow(NULL_ID, loss, result.grad_norm, result.seconds, None, extra)
                file.add(rows[draw])

    def _other_seeds(self) -> None:
        """Repeats the whole fit with nothing removed from other seeds, one by one: replicas of one fit share a seed."""
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
        """The known μ of the objective (None if unknown), and ‖∇L_t‖ of each test at the base weights."""
        mu = self.base.strong_convexity()
        space = ParamSpace.of(self.base)
        with scoring(self.base):
            queries = to_module(self.queries, self.base)
            path = Path.LOOP if isinstance(without_ids(queries), Singles) else Path.FORWARD
            losses = FunctionalLosses(self.base, space, path)
            gradients = sample_gradients(losses, space.values_of(self.base), queries)
        return mu, [float(x) for x in gradients.norm(dim=1)]


def _refuse_null_id(ids: Sequence[int]) -> None:
    if NULL_ID in ids:
        raise InputError(
            f"A training sample has id {NULL_ID}, which in the files of refits (loo_losses) stands for the refit with "
            "nothing removed: the two results could not be told apart.\n"
            "  Give this sample another id, use positions (adapt.ids positions), or leave it out of the ids to remove."
        )


def runner_of(work: RefitWork) -> Runner:
    """Returns the runner that the settings select.

    Raises:
        InputError: If they select a cluster and `dask.distributed` is not installed.
    """
    if work.settings.in_process:
        return InProcess(work)
    try:
        from ifloo.refit.execution.dask_runner import OnCluster  # loads dask, which most refits do not need
    except ImportError as error:
        raise InputError(
            f"refit.devices > 1 and refit.cluster need dask.distributed, which cannot be imported: {error}.\n"
            "  Install it: pip install 'ifloo[cluster]'"
        ) from error
    return OnCluster(work)


def _failure_message(failed: Sequence[FailedUnit]) -> str:
    """Describes the refits of failed units."""
    ids = [one.name or one.id for unit in failed for one in unit.unit if not one.draw]
    draws = [one.draw for unit in failed for one in unit.unit if one.draw]
    named = [f"ids {ids}"] * bool(ids) + [f"displaced null refits {draws}"] * bool(draws)
    return (
        f"Given up after three tries each: refits with {' and '.join(named)}.\n  The last error: {failed[-1].reason}\n"
        "  What is finished is kept; the same command tries these again."
    )
