"""Output of a snapshot of scores: to the loggers of the fit, and as one short table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from numpy.typing import NDArray

from ifloo.stages.callback.moment import RAW, Moment
from ifloo.stages.callback.objective_check import in_arguments
from ifloo.stages.callback.snapshot import Snapshot

log = logging.getLogger(__name__)
QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
SHOWN = 3  # training samples of each kind in the table


class SnapshotLog:
    """Writer of scores to loggers; a logger that fails causes one warning and is skipped afterwards."""

    def __init__(self) -> None:
        """Starts without failed loggers."""
        self._failed_loggers: set[int] = set()

    def log(self, loggers: Sequence[Logger], snapshot: Snapshot, step: int) -> None:
        """Writes histograms and quantiles to TensorBoard, and quantiles to any other logger.

        Args:
            loggers: Loggers of the Trainer.
            snapshot: Scores to write.
            step: Number of optimizer steps so far, the axis of the other curves of the fit.
        """
        for logger in loggers:
            if id(logger) in self._failed_loggers:
                continue
            try:
                _log_snapshot(logger, snapshot, step)
            except Exception as error:  # a logger may raise anything, and training goes on
                self._failed_loggers.add(id(logger))
                log.warning(
                    "%s takes no influence scores (%s: %s); they are in the output folder only.",
                    type(logger).__name__,
                    type(error).__name__,
                    error,
                )


def _log_snapshot(logger: Logger, snapshot: Snapshot, step: int) -> None:
    columns = dict(_columns(snapshot))
    if isinstance(logger, TensorBoardLogger):
        for name, values in columns.items():
            logger.experiment.add_histogram(name, values, step)
        logger.experiment.add_text("influence/objective", in_arguments(snapshot.certificate.text), step)
    points = [float(q) for q in QUANTILES.values()]
    logger.log_metrics(
        {
            f"{name}/{point}": float(value)
            for name, values in columns.items()
            for point, value in zip(QUANTILES, np.quantile(values, points), strict=True)
        },
        step,
    )


def _columns(snapshot: Snapshot) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yields name and values of each distribution over the training samples."""
    for t, row in zip(snapshot.test_ids, snapshot.scores.value.double().cpu().numpy(), strict=True):
        yield f"influence/test_{t}", row
    if snapshot.own is not None:
        own = snapshot.own.loss if snapshot.own.last_layer is None else snapshot.own.last_layer
        name = "loss" if snapshot.own.last_layer is None else "self_influence"
        yield f"influence/{name}", own.double().cpu().numpy()


def table(snapshot: Snapshot, moment: Moment, folder: str) -> str:
    """Returns a table of the most helpful and most harmful training samples of each query, and notes on the scores."""
    found, far = snapshot.scores, snapshot.stationarity
    ids, value, certificate = found.train_ids.tolist(), found.value.double().cpu().numpy(), found.certificate
    rows: list[tuple[str, ...]] = [("test", "most helpful (id score)", "most harmful (id score)", "residual")]
    for k, t in enumerate(snapshot.test_ids):
        order = np.argsort(value[k], kind="stable")
        helpful = [i for i in order[:SHOWN] if value[k][i] < 0]
        harmful = [i for i in order[::-1][:SHOWN] if value[k][i] > 0]
        residual = "" if certificate is None else f"{float(certificate.residual[k]):.0e}"
        cells = ["  ".join(f"{ids[i]} {value[k][i]:+.1e}" for i in some) or "none" for some in (helpful, harmful)]
        rows.append((str(t), *cells, residual))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    damped = f", damping {certificate.damping:g}" if certificate is not None and certificate.damping else ""
    head = (
        f"Influence {moment}{_kind(moment)}: {snapshot.method.name} ({', '.join(snapshot.parameters)}){damped}, "
        f"{len(ids):,} training samples, nats per unit weight; |grad J| = {far.grad_norm:.1e}, one sample's share "
        f"{far.sample_share:.1e}"
    )
    objective = f"Objective: {in_arguments(snapshot.certificate.text)}."
    return "\n".join([head, *lines, f"Files: {folder}", objective, *(f"Note: {note}" for note in snapshot.notes)])


def _kind(moment: Moment) -> str:
    """Returns the kind of the weights for the head of a table; nothing for those that the fit ends with."""
    if moment.best:
        return f" ({moment.weights.removeprefix('best checkpoint ')}, epoch {moment.epoch}, step {moment.step})"
    return f" ({RAW})" if moment.weights == RAW else ""
