"""TensorBoard report: all results of an experiment in its run folder, in numbered groups that form a reading order."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ifloo.agreement import Agreement
from ifloo.data.protocol import SampleSets
from ifloo.report.figures.label_errors import label_errors
from ifloo.report.tensorboard import markdown, projector
from ifloo.report.tensorboard.gradient_projection import SampleGradients
from ifloo.report.tensorboard.hyper_parameters import hyper_parameters
from ifloo.store import Layout, Manifest, StoredInfluences, StoredSelfInfluence
from ifloo.verdict import Comparison, Verdict

SUFFIX = ".report"  # suffix of the report's event file, by which a new report replaces the old one
PERCENTILES = range(101)
STATISTICS = ("pearson", "spearman", "slope", "intercept", "median_rel_err")

GUIDE, OBJECTIVE = "0 guide", "0 objective"
VERDICT, SAMPLES, SCORES = "1 verdict", "2 helpful and harmful", "3 scores"
SELF, SOLVER, TOGETHER, BY_TEST = "4 self-influence", "5 solver", "6 statistics", "7 statistics by test"
FIGURES = {
    "influence_vs_loo": f"{VERDICT}/influence against refits",
    "methods_comparison": f"{VERDICT}/methods",
    "most_influential": f"{SAMPLES}/samples",
    "gallery": f"{SAMPLES}/samples",
    "influence_distribution": f"{SCORES}/distribution",
}
_BINS_PER_SIDE = 30
UNITS = np.linspace(-1, 1, 2 * _BINS_PER_SIDE + 1)
_CONTENT = {
    OBJECTIVE: "TEXT: whether the scored objective J is the one that was trained.",
    VERDICT: "TEXT: predicted against actual change of the test loss. IMAGES: the same, a mark for each refit.",
    SAMPLES: "IMAGES and TEXT: the training samples that help and harm a test sample most.",
    SCORES: "SCALARS: the score, nats per unit weight, by percentile, from the most helpful to the most harmful "
    "(Smoothing 0 shows it as it is). HISTOGRAMS; DISTRIBUTIONS of all tests, the step is the id of the test.",
    SELF: "SCALARS, HISTOGRAMS: what training samples do to their own loss, nats; the largest may be wrong labels. "
    "Where wrong labels are known, IMAGES and TEXT: how soon each ranking finds them.",
    SOLVER: "SCALARS: worst relative residual of the tests solved together, by step (take the logarithmic axis).",
    TOGETHER: "SCALARS: the verdict over all refits; HPARAMS shows it beside the settings of each experiment.",
    BY_TEST: "SCALARS: the verdict on each test; the step is the id of the test.",
}


@dataclass(frozen=True)
class TensorBoardReport:
    """Writer of a report for TensorBoard.

    Attributes:
        layout: Paths of the results.
        datamodule: Data module with `train_set` and `test_set`.
        log_dir: Run folder.
        outcomes: Outcome of the model by test id, such as "taken for a 6".
        gradients: Gradients of the training samples, for the projector; None leaves the projector out.
        own: Self-influences of the training samples; None leaves them out.
    """

    layout: Layout
    datamodule: SampleSets
    log_dir: Path
    outcomes: Mapping[int, str]
    gradients: SampleGradients | None = None
    own: StoredSelfInfluence | None = None

    def write(
        self,
        scored: Mapping[int, StoredInfluences],
        verdict: Verdict,
        figures: Mapping[int, Mapping[str, Figure]],
    ) -> None:
        """Writes the event file and the points of the projector, replacing those of an earlier report.

        Args:
            scored: Scores of all tests by test id, with or without refits.
            verdict: Verdict on the tests that have refits.
            figures: Figures by test id and name.

        Raises:
            InputError: If the training data are not those that were scored.
        """
        scored = dict(sorted(scored.items()))  # test ids serve as steps, which must increase
        further = self._further(scored)
        with _events(self.log_dir) as writer:
            self._verdict(writer, verdict)
            if verdict.objective:
                writer.add_text(OBJECTIVE, markdown.objective(verdict.objective))
            for t, stored in scored.items():
                for name, figure in figures.get(t, {}).items():
                    writer.add_figure(f"{FIGURES[name]}, test {t}", figure, close=False)
                text = markdown.samples(self.datamodule, stored, self.outcomes.get(t, ""))
                writer.add_text(f"{SAMPLES}/samples, test {t}", text)
                _spread(writer, SCORES, f"test {t}", stored.scores)
                _curve(writer, f"{SOLVER}/residual, test {t}", stored.residual_curve)
                if len(scored) > 1:
                    _side_by_side(writer, t, stored.scores)
            for name, values in further.items():
                _spread(writer, SELF, name.replace("_", " "), values)
            if verdict.mislabels is not None:
                writer.add_text(f"{SELF}/wrong labels", markdown.mislabels(verdict.mislabels))
                writer.add_figure(f"{SELF}/wrong labels", label_errors(verdict.mislabels), close=False)
            points = self._points(writer, list(scored.values()), further)
            written = {
                OBJECTIVE: bool(verdict.objective),
                **dict.fromkeys((SAMPLES, SCORES), True),
                **dict.fromkeys((VERDICT, TOGETHER), bool(verdict)),
                SELF: bool(further),
                SOLVER: any(one.residual_curve is not None for one in scored.values()),
                BY_TEST: len(verdict) > 1,
            }
            content = {group: text for group, text in _CONTENT.items() if written[group]}
            writer.add_text(GUIDE, markdown.guide({**content, **points}))

    def _verdict(self, writer: SummaryWriter, verdict: Verdict) -> None:
        if verdict:
            writer.add_text(VERDICT, markdown.verdict(verdict))
        found = verdict.statistics.row().agreement if verdict.statistics else None
        metrics = {f"{TOGETHER}/{name}": value for name, value in _numbers(list(verdict.values()), found).items()}
        settings = hyper_parameters(Manifest.at(self.layout.manifest).sections())
        # add_hparams would create another run below this one; its three summaries can be added to this run directly.
        events = writer.file_writer
        assert events is not None  # None only after the writer is closed
        for summary in hparams(settings, metrics):
            events.add_summary(summary)
        for tag, value in metrics.items():
            writer.add_scalar(tag, value)
        if verdict.over_all_tests is not None:
            for t, one in sorted(verdict.items()):
                for name, value in _numbers([one], one.agreement()).items():
                    writer.add_scalar(f"{BY_TEST}/{name}", value, t)

    def _further(self, scored: Mapping[int, StoredInfluences]) -> dict[str, NDArray[np.float64]]:
        """Returns self-influences and losses of the training samples by name, `[n]`, in the order of the scores."""
        if self.own is None:
            return {}
        order = next(iter(scored.values())).train_ids
        place = {i: k for k, i in enumerate(self.own.train_ids.tolist())}
        at = [place[i] for i in order.tolist()]
        return {name: values[at] for name, values in self.own.rankings.items()}

    def _points(
        self, writer: SummaryWriter, stored: Sequence[StoredInfluences], further: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, str]:
        """Writes the points of the projector and returns their description for the guide."""
        if self.gradients is None:
            return {}
        train = self.datamodule.train_set
        chosen = projector.write(writer, self.log_dir, self.gradients, stored, further, train)
        return {
            "PROJECTOR": f"{chosen.note} The gradient of its loss each, {self.gradients.size} parameters in "
            f"{self.gradients.dimensions} dimensions (random projection, seed {self.gradients.seed}). Color by a "
            "score, or by its percentile: scores are heavy-tailed."
        }


@contextmanager
def _events(folder: Path) -> Generator[SummaryWriter, None, None]:
    """Yields a writer whose file replaces those of earlier reports; on an error only the new file is deleted."""
    obsolete = before = set(folder.glob(f"*{SUFFIX}"))
    try:
        with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
            yield writer
    except BaseException:
        obsolete = set(folder.glob(f"*{SUFFIX}")) - before
        raise
    finally:
        for path in obsolete:
            path.unlink(missing_ok=True)


def _spread(writer: SummaryWriter, group: str, name: str, values: ArrayLike) -> None:
    """Writes the histogram of values, with zero as a bin edge, and their percentiles."""
    values = np.asarray(values, dtype=np.float64)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    edges = np.concatenate([np.linspace(low, 0, _BINS_PER_SIDE + 1), np.linspace(0, high, _BINS_PER_SIDE + 1)])
    writer.add_histogram(f"{group}/{name}", values, bins=np.unique(edges) if low < high else UNITS)
    for percentile, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
        writer.add_scalar(f"{group}/by percentile, {name}", value, percentile)


def _side_by_side(writer: SummaryWriter, t: int, scores: NDArray[np.float32]) -> None:
    """Writes a test's step of the histogram of all tests, in units of its largest |s|: sizes differ by magnitudes."""
    values = scores.astype(np.float64)
    largest = float(np.abs(values).max()) or 1.0
    writer.add_histogram(f"{SCORES}/all tests, in units of the largest", values / largest, t, bins=UNITS)


def _curve(writer: SummaryWriter, tag: str, curve: NDArray[np.float64] | None) -> None:
    for step, residual in () if curve is None else curve.tolist():
        writer.add_scalar(tag, residual, int(step))


def _numbers(tests: Sequence[Comparison], found: Agreement | None) -> dict[str, float]:
    """Returns statistics of the refits of some tests and the worst value of each certificate, leaving out None."""
    if not tests:
        return {}
    statistics = {name: getattr(found, name) for name in STATISTICS} if found else {}
    worst = {
        "worst_residual": [one.stored.residual for one in tests],
        "worst_grad_norm": [one.worst_grad_norm for one in tests],
        "noise_floor": [one.noise_floor for one in tests],
    }
    known = {name: max((x for x in values if x is not None), default=None) for name, values in worst.items()}
    refits = {"n_refits": float(sum(len(one.ids) for one in tests))}
    return {name: float(x) for name, x in {**statistics, **known, **refits}.items() if x is not None}
