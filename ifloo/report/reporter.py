"""Everything a reader sees: verdict.json, pictures, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
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
from ifloo.store import CORRECTED, Layout, StoredInfluences, influences, top_k, write_json
from ifloo.verdict import (
    Comparison,
    Extremes,
    LabelErrors,
    Verdict,
    compare,
    find_label_errors,
    method_label,
    unverified_tests,
)

CAPTION, TITLE = 14, 40  # characters of a label, over a small picture and in a title


@dataclass(frozen=True)
class Reporter:
    """Reads the files of an experiment and draws what they say.

    Attributes:
        layout: where they are.
        datamodule: gives `train_set` and `test_set`, with `picture(id)` and `caption(id)` or as a `ConversationSet`.
        log_dir: TensorBoard folder of the experiment.
        outcomes: what the model made of a test sample, such as "predicted 6", shown beside its label; of a
            `ConversationSet`, what it answered.
        gradients: of the training samples, for the projector of TensorBoard; None: without it.
    """

    layout: Layout
    datamodule: SampleSets
    log_dir: Path
    outcomes: Mapping[int, str] = field(default_factory=dict)
    gradients: SampleGradients | None = None

    def verdict(self, test_ids: list[int], k: int) -> Verdict:
        """Writes the verdict on these tests.

        Args:
            test_ids: tests with scores and refits.
            k: how many ids of largest |score| are the top-k group.

        Raises:
            InputError: scores or refits are missing or do not belong together.
        """
        compared = {}
        for t in test_ids:
            stored = influences.load(self.layout.scores(t))
            compared[t] = compare(self.layout, t, top_k(stored.scores, stored.train_ids, k).tolist())
        verdict = Verdict(compared, self.mislabels())
        write_json(self.layout.verdict, verdict.to_json())
        return verdict

    def mislabels(self) -> LabelErrors | None:
        """What self-influence makes of training answers known to be wrong; None where none are."""
        return find_label_errors(self.layout, DataNotes(self.datamodule).corrupted_ids)

    def run(self, test_ids: list[int], k: int) -> Verdict:
        """Writes the verdict on these tests, their pictures, one page with all of it, and TensorBoard's files.

        Tests with scores and too few refits for a verdict are on the page alone, which says so; what is returned, and
        verdict.json, are without them. Errors as those of `verdict`.

        Raises:
            WorkError: a file could not be written.
        """
        alone = unverified_tests(self.layout, test_ids)
        verified = [t for t in test_ids if t not in alone]
        verdict = self.verdict(verified, k) if verified else Verdict({}, self.mislabels())
        figures = {t: self._figures(one, k) for t, one in verdict.items()}
        for t, named in figures.items():
            for name, figure in named.items():
                save_figure(figure, self.layout.figure(name, t))
        if verdict.mislabels:
            save_figure(label_errors(verdict.mislabels), self.layout.label_errors)
        write_html(self.layout, self.datamodule, verdict, self.outcomes, alone)
        try:
            self._to_tensorboard({t: stored for t, (stored, _) in alone.items()}, verdict, figures, k)
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
        if set(one.further) - {CORRECTED}:
            figures["methods_comparison"] = methods_comparison(
                {method_label(name): by for name, by in one.predictions.items()},
                one.actual,
                one.kinds,
                {row.method_label: row.agreement for row in one.statistics.by_method},
                title=title,
                noise_floor=one.noise_floor,
            )
        return figures

    def _of_scores(self, stored: StoredInfluences, k: int) -> dict[str, Figure]:
        """The pictures that need no refit."""
        title, top = self._title(stored.test_id), top_k(stored.scores, stored.train_ids, k)
        return {
            "influence_distribution": influence_distribution(stored.scores, stored.train_ids, top, title=title),
            **self._rows(stored, title),
        }

    def _rows(self, stored: StoredInfluences, title: str) -> dict[str, Figure]:
        """The test sample beside the training samples that matter most, drawn; nothing where none has a picture."""
        most = Extremes.of(stored)
        helpful, harmful = (
            list(zip(stored.train_ids[at].tolist(), stored.scores[at].tolist(), strict=True))
            for at in (most.helpful, most.harmful)
        )
        train, test, t = self.datamodule.train_set, self.datamodule.test_set, stored.test_id
        if isinstance(test, ConversationSet) and isinstance(train, ConversationSet):
            low, high = ([row_of(train, i, score) for i, score in rows] for rows in (helpful, harmful))
            asked = row_of(test, t, answered=self.outcomes.get(t, ""))
            return {"gallery": gallery(asked, low, high, title=title)}
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
        alone: Mapping[int, StoredInfluences],
        verdict: Verdict,
        figures: Mapping[int, Mapping[str, Figure]],
        k: int,
    ) -> None:
        scored = {**{t: one.stored for t, one in verdict.items()}, **alone}
        drawn = {**figures, **{t: self._of_scores(stored, k) for t, stored in alone.items()}}
        board = TensorBoardReport(self.layout, self.datamodule, self.log_dir, self.outcomes, self.gradients)
        board.write(scored, verdict, drawn)


def _picture(data: CaptionedSet, id_: int) -> NDArray[np.uint8]:
    """The picture of a sample; blank paper for one that has none among others that have."""
    found = data.picture(id_)
    return np.zeros((1, 1), dtype=np.uint8) if found is None else found
