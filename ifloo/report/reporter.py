"""Writer of all reports of an experiment: verdict.json, figures, the page, and the files of TensorBoard."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ifloo.data.protocol import CaptionedSet, ConversationSet, DataNotes, SampleSets
from ifloo.errors import WorkError
from ifloo.report.figures.conversation_gallery import gallery, row_of
from ifloo.report.figures.image_grid import TrainingPicture, digit_grid
from ifloo.report.figures.influence import influence_distribution, influence_vs_loo, save_figure
from ifloo.report.figures.label_errors import label_errors
from ifloo.report.figures.methods import methods_comparison
from ifloo.report.html import write_html
from ifloo.report.safe_text import drawn
from ifloo.report.tensorboard.event_file import TensorBoardReport
from ifloo.report.tensorboard.gradient_projection import SampleGradients
from ifloo.store import CORRECTED, Layout, StoredInfluences, StoredSelfInfluence, influences, top_k, write_json
from ifloo.verdict import (
    Comparison,
    Extremes,
    Verdict,
    compare,
    find_label_errors,
    method_label,
    unverified_tests,
)
from ifloo.verdict.label_errors import self_influences
from ifloo.verdict.objective_record import objective_record

CAPTION, TITLE = 14, 40  # largest length of a label above a small picture and in a title, characters


@dataclass(frozen=True)
class Reporter:
    """Writer of all reports of an experiment from its files.

    Attributes:
        layout: Paths of the files.
        datamodule: Data module with `train_set` and `test_set`, each with `picture(id)` and `caption(id)` or a
            `ConversationSet`.
        log_dir: TensorBoard folder of the experiment.
        outcomes: Outcome of the model by test id, such as "predicted 6", shown beside the label; the model's answer for
            a `ConversationSet`.
        gradients: Gradients of the training samples, for the projector of TensorBoard; None leaves the projector out.
    """

    layout: Layout
    datamodule: SampleSets
    log_dir: Path
    outcomes: Mapping[int, str] = field(default_factory=dict)
    gradients: SampleGradients | None = None

    def verdict(self, test_ids: list[int], k: int) -> Verdict:
        """Writes verdict.json for these tests and returns the verdict.

        Args:
            test_ids: Ids of tests with scores and refits.
            k: Number of ids of largest |score| in the top-k group.

        Raises:
            InputError: If scores or refits are missing, or do not belong together.
        """
        return self._verdict(test_ids, k, self_influences(self.layout) if self._wrong_ids else None)

    def _verdict(self, test_ids: list[int], k: int, own: StoredSelfInfluence | None) -> Verdict:
        comparisons = {}
        for t in test_ids:
            stored = influences.load(self.layout.scores(t))
            comparisons[t] = compare(self.layout, t, top_k(stored.scores, stored.train_ids, k).tolist())
        verdict = self._of(comparisons, own)
        write_json(self.layout.verdict, verdict.to_json())
        return verdict

    def _of(self, comparisons: Mapping[int, Comparison], own: StoredSelfInfluence | None) -> Verdict:
        return Verdict(comparisons, find_label_errors(own, self._wrong_ids), objective_record(self.layout))

    @property
    def _wrong_ids(self) -> Collection[int]:
        """Ids of the training samples whose label is known to be wrong."""
        return DataNotes(self.datamodule).corrupted_ids

    def run(self, test_ids: list[int], k: int) -> Verdict:
        """Writes verdict.json, the figures, the page, and the files of TensorBoard.

        Tests with scores but too few refits for a verdict appear only in the page and in TensorBoard, as not verified.

        Args:
            test_ids: Ids of tests with scores.
            k: Number of ids of largest |score| in the top-k group.

        Returns:
            Verdict on the tests with enough refits.

        Raises:
            WorkError: If a file could not be written; the errors of `verdict` are raised too.
        """
        pending, own = unverified_tests(self.layout, test_ids), self_influences(self.layout)
        verified = [t for t in test_ids if t not in pending]
        verdict = self._verdict(verified, k, own) if verified else self._of({}, own)
        figures = {t: self._figures(one, k) for t, one in verdict.items()}
        for t, named in figures.items():
            for name, figure in named.items():
                save_figure(figure, self.layout.figure(name, t))
        if verdict.mislabels:
            save_figure(label_errors(verdict.mislabels), self.layout.label_errors)
        write_html(self.layout, self.datamodule, verdict, self.outcomes, pending)
        try:
            self._to_tensorboard({t: stored for t, (stored, _) in pending.items()}, verdict, figures, k, own)
        except OSError as error:
            raise WorkError(
                f"TensorBoard's files could not be written to {self.log_dir}: {error.strerror or error}.\n"
                "  The verdict and the pictures are whole; free space or permissions there and run the report again."
            ) from error
        return verdict

    def _figures(self, one: Comparison, k: int) -> dict[str, Figure]:
        stored, title = one.stored, self._title(one.stored.test_id)
        figures = {
            **self._of_scores(stored, k),
            "influence_vs_loo": influence_vs_loo(
                one.predicted,
                one.actual,
                one.kinds,
                one.agreement(),
                title=title,
                ids=one.ids.tolist(),
                noise_floor=one.noise_floor,
            ),
        }
        if set(one.other_methods) - {CORRECTED}:
            figures["methods_comparison"] = methods_comparison(
                {method_label(name): changes for name, changes in one.predictions.items()},
                one.actual,
                one.kinds,
                {row.method_label: row.agreement for row in one.statistics.by_method},
                title=title,
                noise_floor=one.noise_floor,
            )
        return figures

    def _of_scores(self, stored: StoredInfluences, k: int) -> dict[str, Figure]:
        """Draws the figures that need no refit."""
        title, top = self._title(stored.test_id), top_k(stored.scores, stored.train_ids, k)
        return {
            "influence_distribution": influence_distribution(stored.scores, stored.train_ids, top, title=title),
            **self._rows(stored, title),
        }

    def _rows(self, stored: StoredInfluences, title: str) -> dict[str, Figure]:
        """Draws the test sample beside its most influential training samples; empty if the samples have no pictures."""
        most = Extremes.of(stored)
        helpful, harmful = (
            list(zip(stored.train_ids[positions].tolist(), stored.scores[positions].tolist(), strict=True))
            for positions in (most.helpful, most.harmful)
        )
        train, test, t = self.datamodule.train_set, self.datamodule.test_set, stored.test_id
        if isinstance(test, ConversationSet) and isinstance(train, ConversationSet):
            low, high = ([row_of(train, i, score) for i, score in rows] for rows in (helpful, harmful))
            test_row = row_of(test, t, answered=self.outcomes.get(t, ""))
            return {"gallery": gallery(test_row, low, high, title=title)}
        assert isinstance(test, CaptionedSet)
        assert isinstance(train, CaptionedSet)
        if test.picture(t) is None:
            return {}
        caption = drawn(test.caption(t), CAPTION)
        first, last = (
            [TrainingPicture(i, _picture(train, i), drawn(train.caption(i), CAPTION), score) for i, score in rows]
            for rows in (helpful, harmful)
        )
        return {"most_influential": digit_grid(_picture(test, t), caption, first, last, title=title)}

    def _title(self, t: int) -> str:
        tests = self.datamodule.test_set
        if isinstance(tests, ConversationSet):
            return f"test {t}"
        outcome = f", {drawn(self.outcomes[t], TITLE)}" if t in self.outcomes else ""
        return f"test {t}, label {drawn(tests.caption(t), TITLE)}{outcome}"

    def _to_tensorboard(
        self,
        pending: Mapping[int, StoredInfluences],
        verdict: Verdict,
        figures: Mapping[int, Mapping[str, Figure]],
        k: int,
        own: StoredSelfInfluence | None,
    ) -> None:
        scored = {**{t: one.stored for t, one in verdict.items()}, **pending}
        all_figures = {**figures, **{t: self._of_scores(stored, k) for t, stored in pending.items()}}
        board = TensorBoardReport(self.layout, self.datamodule, self.log_dir, self.outcomes, self.gradients, own)
        board.write(scored, verdict, all_figures)


def _picture(data: CaptionedSet, id_: int) -> NDArray[np.uint8]:
    """Returns the picture of a sample; a blank one for a sample without picture in a set that has pictures."""
    found = data.picture(id_)
    return np.zeros((1, 1), dtype=np.uint8) if found is None else found
