"""Scorer of the training samples during a fit; a trial on a few samples before the fit finds errors early.

Where nothing else is asked for, scores go through the last layer, and where that layer cannot serve, by gradient dot
products, which need no curvature: every fit has scores, and the manifest says of which method.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution import GradientDot, InfluenceFunction, Method, TrainedModel, last_layer_self, loss_ranking
from ifloo.curvature import LinearHead, LinearOperator, head_or_hessian
from ifloo.errors import InputError, WorkError, first_sentence
from ifloo.models import Adapted, unwrap
from ifloo.models.adapted import SampleLossFunction
from ifloo.objective import Batch, Objective, Stationarity, preflight, scoring, sequential
from ifloo.objective.batches import to_device
from ifloo.objective.id_rule import IdSetting
from ifloo.objective.loaders import sample_count, samples_at_once
from ifloo.objective.logits_layer import first_sample, logits_layer
from ifloo.objective.protocol import states_losses
from ifloo.params import DTYPES, author_name
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers import Auto, SolveError
from ifloo.stages.callback.fit_weights import FitWeights
from ifloo.stages.callback.moment import weights_of
from ifloo.stages.callback.objective_check import CheckedObjective
from ifloo.stages.callback.queries import Queries
from ifloo.stages.callback.snapshot import LAST_LAYER, OwnRankings, Snapshot, away_from_minimum
from ifloo.stages.scores.engine_choice import HEAD_BYTES
from ifloo.stages.scores.self_influence import last_linear_layer
from ifloo.stages.settings import settings_json
from ifloo.store import JSON, content_of

log = logging.getLogger(__name__)
TRIED = 32  # training samples in the trial before a fit
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class EpochScorer:
    """Scorer of all training samples at the weights of one point of a fit.

    The attributes have the meaning of the arguments of `InfluenceCallback`.
    """

    method: Method | None
    parameters: tuple[str, ...] | None
    damping: float
    sample_losses: SampleLossFunction | None
    l2: float
    self_influence: bool
    dtype: Literal["float64", "float32"] | None
    batch_size: int | None
    ids: IdSetting = "auto"
    accept_objective: bool = False
    draws: int = 1

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: A strength is negative or not finite, or the method needs a recorded run.
        """
        for name, strength in (("damping", self.damping), ("l2", self.l2)):
            if not 0 <= strength < float("inf"):
                raise InputError(f"InfluenceCallback: {name} must be a finite number >= 0, got {strength}.")
        if self.method is not None:
            _refuse_method(self.method)

    def identity_settings(self, queries: Queries) -> dict[str, JSON]:
        """Returns the settings that change a number; they stay the same throughout a fit."""
        return {
            "method": settings_json(self.method) or LAST_LAYER,
            "parameters": settings_json(self.parameters),
            "damping": self.damping,
            "sample_losses": settings_json(self.sample_losses),
            "l2": self.l2,
            "dtype": self.dtype,
            **({} if self.ids == "auto" else {"ids": self.ids}),
            **({} if self.draws == 1 else {"draws": self.draws}),
            "queries": {str(t): content for t, content in zip(queries.ids, queries.contents, strict=True)},
        }

    def try_on_few(self, weights: FitWeights, queries: Queries) -> EpochScorer:
        """Scores a few samples, so that errors occur before the training.

        Args:
            weights: Weights of the fit.
            queries: Test samples.

        Returns:
            This scorer, or one by gradient dot products where the last layer cannot serve.

        Raises:
            InputError: Module, data and method do not fit together.
        """
        loader = weights.loader
        few = sequential(loader, TRIED, slice(0, TRIED), self.ids)
        n = sample_count(loader)
        try:
            self.score(weights, few, queries, n)
        except WorkError as error:  # may be due to the small number of samples; a later failure is a warning of its own
            log.info("the trial of influence scores: %s", error)
        except Exception as error:
            if self._may_fall_back:
                other = self._without_curvature()
                other.try_on_few(weights, queries)
                _warn_of_fallback(error)
                return other
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"Influence scores of {min(TRIED, n)} training samples were tried before the fit, and failed: "
                f"{type(error).__name__}: {error}\n"
                "  Look at what InfluenceCallback was given (queries, sample_losses, method): it must go together with "
                f"{type(unwrap(weights.module)).__name__} and its training data."
            ) from error
        return self

    def score_somehow(
        self,
        weights: FitWeights,
        queries: Queries,
        tick: OnProgress = no_progress,
    ) -> Snapshot:
        """Scores all training samples, by gradient dot products where the last layer cannot serve.

        Args:
            weights: Weights of the fit.
            queries: Test samples.
            tick: Callback that receives the progress.

        Raises:
            InputError: Module, data and method do not fit together.
            WorkError: The scores cannot be computed.
        """
        try:
            return self.score(weights, weights.loader, queries, None, tick)
        except (InputError, WorkError) as error:
            if not self._may_fall_back:
                raise
            snapshot = self._without_curvature().score(weights, weights.loader, queries, None, tick)
            _warn_of_fallback(error)
            return snapshot

    @property
    def _may_fall_back(self) -> bool:
        return self.method is None and self.parameters is None

    def _without_curvature(self) -> EpochScorer:
        return replace(self, method=GradientDot())

    def score(
        self,
        weights: FitWeights,
        loader: DataLoader[Batch],
        queries: Queries,
        n: int | None = None,
        tick: OnProgress = no_progress,
    ) -> Snapshot:
        """Scores all samples of a loader.

        Args:
            weights: Weights of the fit.
            loader: Loader of the training data.
            queries: Test samples.
            n: Number of samples of the whole training set, if the loader holds only some of them.
            tick: Callback that receives the progress.

        Raises:
            InputError: Module, data and method do not fit together.
            SolveError: A solve failed, and float64 is not available or did not help.
        """
        start, module = time.perf_counter(), weights.copied()
        digest, module = weights_of(module), self._adapted(module)
        weights.describe_to(module)
        try:
            snapshot = self._snapshot(module, weights, loader, queries, n, tick)
        except SolveError as error:
            if self.dtype is not None or not _may_be_double(module):
                raise
            log.info("scores again, in float64. %s", str(error).splitlines()[0])
            snapshot = self._snapshot(module.double(), weights, loader, queries, n, tick)
        return replace(snapshot, weights=digest, seconds=time.perf_counter() - start)

    def _snapshot(
        self,
        module: L.LightningModule,
        weights: FitWeights,
        loader: DataLoader[Batch],
        queries: Queries,
        n: int | None,
        tick: OnProgress,
    ) -> Snapshot:
        method, patterns = self._method(module, loader)
        size = self.batch_size or samples_at_once(loader) or 1
        plain = Objective.of(module, sequential(loader, size, ids=self.ids), patterns, size)  # checks each loss first
        curved = method.uses_curvature or self.self_influence
        checked = CheckedObjective.of(module, weights, patterns, self.accept_objective, curved)
        objective = checked.weighed(plain)
        theta = objective.losses.theta()
        stationarity = preflight(objective, theta, checked.certificate)
        if self.method is None:
            _refuse_large_head(objective, n or objective.n)
        moved = to_device(queries.in_form_of(objective.losses), theta.device, theta.dtype)
        with scoring(module):
            scores = method.scores(TrainedModel(objective, theta), moved, tick)
            own = self._self_influence(objective, checked, loader, size, tick) if self.self_influence else None
        return Snapshot(
            scores=scores,
            test_ids=queries.ids,
            method=method,
            parameters=tuple(author_name(module, pattern) for pattern in patterns),
            stationarity=stationarity,
            own=own,
            data=_content_of_data(objective),
            dtype=str(theta.dtype).removeprefix("torch."),
            certificate=checked.certificate,
            notes=(away_from_minimum(stationarity),) if _claims_refits(method, stationarity) else (),
        )

    def _adapted(self, module: L.LightningModule) -> L.LightningModule:
        """Returns the module under the contract, in the requested precision; 16 bits are too few for a solve.

        Raises:
            InputError: The module defines its own losses, and others were given.
        """
        if not states_losses(module):
            return self._in_dtype(Adapted(module, self.sample_losses, l2=self.l2))
        if self.sample_losses is not None or self.l2:
            raise InputError(
                f"{type(module).__name__} states its own sample_losses and penalty, and InfluenceCallback was given "
                "others.\n  Leave sample_losses and l2 out."
            )
        return self._in_dtype(module)

    def _in_dtype(self, module: L.LightningModule) -> L.LightningModule:
        first = next(module.parameters(), None)
        dtype = self.dtype or ("float32" if first is not None and first.dtype in HALVES else None)
        return module.to(DTYPES[dtype]) if dtype else module

    def _method(self, module: L.LightningModule, loader: DataLoader[Batch]) -> tuple[Method, tuple[str, ...]]:
        if self.method is not None:
            return self.method, self.parameters or ("*",)
        patterns = self.parameters or (f"{logits_layer(module, first_sample(loader, module))}.*",)
        label = "hessian" if self.parameters else LAST_LAYER
        return InfluenceFunction(label, last_layer_curvature, self.damping, Auto()), patterns

    def _self_influence(
        self,
        objective: Objective,
        checked: CheckedObjective,
        loader: DataLoader[Batch],
        size: int,
        tick: OnProgress,
    ) -> OwnRankings:
        loss, layer = loss_ranking(objective, objective.losses.theta(), tick), last_linear_layer(objective)
        if layer is None:
            return OwnRankings(loss, None)
        part = checked.weighed(Objective.of(objective.losses.module, loader, (f"{layer}.*",), size))
        if (need := LinearHead.bytes_kept(part)) > HEAD_BYTES:
            log.warning("self-influence: none of the last layer, whose curvature would keep %.1f GiB.", need / 2**30)
            return OwnRankings(loss, None)
        return OwnRankings(loss, last_layer_self(part, part.losses.theta(), self.damping, tick=tick))


def refuse_below_one(**counts: int | None) -> None:
    """Checks that counts are at least 1 or None.

    Raises:
        InputError: A count is below 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"InfluenceCallback: {name} must be >= 1, got {count}.")


def last_layer_curvature(objective: Objective, theta: Tensor) -> LinearOperator:
    """Returns H of one layer: a `LinearHead` if the inputs of the layer are known, else the Hessian by products."""
    return head_or_hessian(objective, theta, lambda why: log.info("last layer: its Hessian by products. %s", why))


def _warn_of_fallback(error: Exception) -> None:
    log.warning(
        "Influence is scored by gradient dot products of all parameters, not through the last layer: %s.",
        first_sentence(error),
    )


def _refuse_method(method: object) -> None:
    if not isinstance(method, Method):
        raise InputError(
            "InfluenceCallback: method must be a Method of ifloo.attribution, such as GradientDot() (with its "
            f"parentheses); got {method!r}."
        )
    if method.needs_run:
        raise InputError(
            f"InfluenceCallback: method {method.name} needs the recorded training run, which is whole after the fit.\n"
            "  Leave method out (the last layer), give one that needs no run, such as GradientDot(), or give a "
            "InfluenceFunction its damping."
        )


def _claims_refits(method: Method, stationarity: Stationarity) -> bool:
    return isinstance(method, InfluenceFunction) and stationarity.warning is not None


def _may_be_double(module: L.LightningModule) -> bool:
    first = next(module.parameters())
    return first.dtype == torch.float32 and first.device.type != "mps"


def _refuse_large_head(objective: Objective, n: int) -> None:
    need = LinearHead.bytes_kept(objective) * n / objective.n
    if need > HEAD_BYTES:
        raise InputError(
            f"Influence through the last layer would keep {need / 2**30:.1f} GiB of its inputs and curvatures for "
            f"{n:,} training samples.\n  Give another method: method=GradientDot() of ifloo.attribution keeps nothing."
        )


def _content_of_data(objective: Objective) -> str:
    digest = hashlib.sha256()
    for _, batch in objective.data.with_ids():
        digest.update(content_of(batch).encode())
    return digest.hexdigest()
