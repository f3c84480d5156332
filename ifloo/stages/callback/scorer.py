"""Scorer of the training samples during a fit; a trial on a few samples before the fit finds errors early."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution import InfluenceFunction, Method, TrainedModel, last_layer_self, loss_ranking
from ifloo.curvature import LinearHead, LinearOperator, head_or_hessian
from ifloo.errors import InputError, WorkError
from ifloo.models import Adapted, unwrap
from ifloo.models.adapted import SampleLossFunction
from ifloo.objective import Batch, Objective, preflight, scoring, sequential
from ifloo.objective.batches import batch_size, slice_batch, to_device
from ifloo.objective.loaders import sample_count
from ifloo.objective.protocol import states_losses
from ifloo.params import DTYPES, author_name
from ifloo.solvers import Auto, SolveError
from ifloo.stages.callback.snapshot import OwnRankings, Snapshot, ids_of
from ifloo.stages.scores.engine_choice import HEAD_BYTES
from ifloo.stages.scores.self_influence import NO_LAST_LAYER, last_linear_layer
from ifloo.stages.settings import settings_json
from ifloo.store import JSON, content_of, sha256_of_tensors

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

    def identity_settings(self, queries: Batch) -> dict[str, JSON]:
        """Returns the settings that change a number; they stay the same throughout a fit."""
        return {
            "method": settings_json(self.method) or "last_layer",
            "parameters": settings_json(self.parameters),
            "damping": self.damping,
            "sample_losses": settings_json(self.sample_losses),
            "l2": self.l2,
            "dtype": self.dtype,
            "queries": {str(t): content for t, content in zip(ids_of(queries), _contents(queries), strict=True)},
        }

    def try_on_few(self, module: L.LightningModule, loader: DataLoader[Batch], queries: Batch) -> None:
        """Scores a few samples, so that errors occur before the training.

        Args:
            module: Copy of the user's module, which is not used again.
            loader: Loader of the training data.
            queries: Test samples.

        Raises:
            InputError: Module, data and method do not fit together.
        """
        few = sequential(loader, TRIED, slice(0, TRIED))
        n = sample_count(loader)
        try:
            self.score(module, few, queries, n)
        except InputError:
            raise
        except WorkError as error:  # may be due to the small number of samples; a later failure is a warning of its own
            log.info("the trial of influence scores: %s", error)
        except Exception as error:
            raise InputError(
                f"Influence scores of {min(TRIED, n)} training samples were tried before the fit, and failed: "
                f"{type(error).__name__}: {error}\n"
                "  Look at what InfluenceCallback was given (queries, sample_losses, method): it must go together with "
                f"{type(unwrap(module)).__name__} and its training data."
            ) from error

    def score(
        self, module: L.LightningModule, loader: DataLoader[Batch], queries: Batch, n: int | None = None
    ) -> Snapshot:
        """Scores all samples of a loader.

        Args:
            module: Copy of the user's module, which may be changed.
            loader: Loader of the training data.
            queries: Test samples.
            n: Number of samples of the whole training set, if the loader holds only some of them.

        Raises:
            InputError: Module, data and method do not fit together.
            SolveError: A solve failed, and float64 is not available or did not help.
        """
        start, weights = time.perf_counter(), sha256_of_tensors(module.state_dict())
        module = self._adapted(module)
        try:
            snapshot = self._snapshot(module, loader, queries, n)
        except SolveError as error:
            if self.dtype is not None or not _may_be_double(module):
                raise
            log.info("scores again, in float64. %s", str(error).splitlines()[0])
            snapshot = self._snapshot(module.double(), loader, queries, n)
        return replace(snapshot, weights=weights, seconds=time.perf_counter() - start)

    def _snapshot(
        self, module: L.LightningModule, loader: DataLoader[Batch], queries: Batch, n: int | None
    ) -> Snapshot:
        method, patterns = self._method(module)
        size = self.batch_size or loader.batch_size or 1
        objective = Objective.of(module, loader, patterns, size)
        theta = objective.losses.theta()
        stationarity = preflight(objective, theta)
        if self.method is None:
            _refuse_large_head(objective, n or objective.n)
        queries = objective.losses.in_form(to_device(queries, theta.device, theta.dtype))
        with scoring(module):
            scores = method.scores(TrainedModel(objective, theta), queries)
            own = self._self_influence(module, objective, loader, size) if self.self_influence else None
        return Snapshot(
            scores=scores,
            test_ids=ids_of(queries),
            method=method,
            parameters=tuple(author_name(module, pattern) for pattern in patterns),
            stationarity=stationarity,
            own=own,
            data=_content_of_data(objective),
            dtype=str(theta.dtype).removeprefix("torch."),
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

    def _method(self, module: L.LightningModule) -> tuple[Method, tuple[str, ...]]:
        if self.method is not None:
            return self.method, self.parameters or ("*",)
        patterns = self.parameters or (f"{last_layer(module)}.*",)
        label = "hessian" if self.parameters else "last_layer"
        return InfluenceFunction(label, last_layer_curvature, self.damping, Auto()), patterns

    def _self_influence(
        self, module: L.LightningModule, objective: Objective, loader: DataLoader[Batch], size: int
    ) -> OwnRankings:
        loss, layer = loss_ranking(objective, objective.losses.theta()), last_linear_layer(module)
        if layer is None:
            log.info(NO_LAST_LAYER)
            return OwnRankings(loss, None)
        part = Objective.of(module, loader, (f"{layer}.*",), size)
        if (need := LinearHead.bytes_kept(part)) > HEAD_BYTES:
            log.warning("self-influence: none of the last layer, whose curvature would keep %.1f GiB.", need / 2**30)
            return OwnRankings(loss, None)
        return OwnRankings(loss, last_layer_self(part, part.losses.theta(), self.damping))


def refuse_below_one(**counts: int | None) -> None:
    """Checks that counts are at least 1 or None.

    Raises:
        InputError: A count is below 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"InfluenceCallback: {name} must be >= 1, got {count}.")


def last_layer(module: L.LightningModule) -> str:
    """Returns the name of the last linear layer.

    Raises:
        InputError: The module has no last linear layer with trainable weights that it shares with no other layer.
    """
    if (layer := last_linear_layer(module)) is not None:
        return layer
    raise InputError(
        "InfluenceCallback scores through the last linear layer by default, and "
        f"{type(unwrap(module)).__name__} ends in none with trainable weights of its own.\n"
        "  Give another method, such as method=GradientDot() of ifloo.attribution, or parameters=['name.*'] of one "
        "nn.Linear."
    )


def last_layer_curvature(objective: Objective, theta: Tensor) -> LinearOperator:
    """Returns H of one layer: a `LinearHead` if the inputs of the layer are known, else the Hessian by products."""
    return head_or_hessian(objective, theta, lambda why: log.info("last layer: its Hessian by products. %s", why))


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


def _contents(queries: Batch) -> Sequence[str]:
    return [content_of(slice_batch(queries, slice(k, k + 1))) for k in range(batch_size(queries))]


def _content_of_data(objective: Objective) -> str:
    digest = hashlib.sha256()
    for _, batch in objective.data.with_ids():
        digest.update(content_of(batch).encode())
    return digest.hexdigest()
