"""The engine as a LightningModule: `Trainer.predict` walks over the training data, each batch gives its scores."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ifloo.attribution import Directions, InfluenceEngine, Scores
from ifloo.objective import Batch, Objective, Stationarity, preflight
from ifloo.objective.batches import map_tensors
from ifloo.stages.settings import AttributionSettings

log = logging.getLogger(__name__)


class InfluencePredictor(L.LightningModule):
    """Scores training batches against the present queries.

    Attributes:
        queries: batch of test samples to explain; set anew before each predict run.
        directions: H⁻¹∇L_t of those queries, from the start of a run on.
        stationarity: what preflight measured.
    """

    def __init__(self, module: Any, loader: DataLoader, settings: AttributionSettings) -> None:
        """Wraps a module that meets the contract.

        Args:
            module: gives `sample_losses` and `penalty`; its weights are θ̂.
            loader: all training samples in order (see `sequential`).
            settings: of the attribution.
        """
        super().__init__()
        # A copy where the precision is another: whoever gave the module goes on with it as it was.
        self.module = copy.deepcopy(module).to(settings.torch_dtype) if settings.torch_dtype else module
        self.loader, self.settings = loader, settings
        self.queries: Batch = None
        self.directions: Directions | None = None
        self.stationarity: Stationarity | None = None
        self._engine: InfluenceEngine | None = None

    def on_predict_start(self) -> None:
        """Solves for the directions; everything after is one pass over the data."""
        engine = self.engine
        queries = map_tensors(
            lambda x: x.to(engine.theta.device, engine.theta.dtype if x.is_floating_point() else None), self.queries
        )
        with solver_progress(engine):
            self.directions = engine.directions(queries)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.directions is not None
        return self.engine.of(self.directions, batch)

    @property
    def engine(self) -> InfluenceEngine:
        """Made at first use, when the module is on its device; kept for further queries."""
        if self._engine is None:
            settings = self.settings
            objective = Objective.of(self.module, self.loader, settings.parameters, settings.batch_size)
            theta = objective.losses.theta()
            self.stationarity = preflight(objective, theta)
            if self.stationarity.warning:
                log.warning(self.stationarity.warning)
            curvature = settings.curvature_at(objective, theta)
            known = getattr(self.module, "strong_convexity", lambda: None)()
            self._engine = InfluenceEngine(objective, theta, curvature, settings.solver, known)
        return self._engine


class InfluenceWriter(BasePredictionWriter):
    """Hands the scores of a finished predict run over as one `Scores`."""

    def __init__(self, deliver: Callable[[Scores], None]) -> None:
        super().__init__(write_interval="epoch")
        self.deliver = deliver

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        assert isinstance(pl_module, InfluencePredictor)
        assert pl_module.directions is not None
        directions, ids = pl_module.directions, pl_module.engine.objective.data.ids
        self.deliver(Scores(torch.cat(list(predictions), dim=1), ids, directions.query_ids, directions.certificate))


@contextmanager
def solver_progress(engine: InfluenceEngine) -> Generator[None, None, None]:
    """A progress line for the solve: steps, and the worst residual as the recurrence sees it."""
    with tqdm(desc="inverse-HVP", unit="step", leave=False, mininterval=0.5) as bar:

        def show(step: int, residual: float) -> None:
            if residual == residual:  # a stochastic recursion has none of its own
                bar.set_postfix_str(f"residual {residual:.1e}", refresh=False)
            bar.update(max(0, step - bar.n))

        engine.prepared.progress = show
        try:
            yield
        finally:
            engine.prepared.progress = None
