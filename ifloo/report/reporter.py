"""Everything a reader sees: verdict.json, pictures, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ifloo.errors import WorkError
from ifloo.report.comparison import methods_comparison
from ifloo.report.digits import TrainingPicture, digit_grid
from ifloo.report.figures import influence_distribution, influence_vs_loo, save_figure
from ifloo.report.gallery import ConversationSet, gallery, row_of
from ifloo.report.mislabels import Mislabels, mislabels
from ifloo.report.pooled import pooled
from ifloo.report.verdict import DEFINITIONS, Comparison, compare
from ifloo.store import CORRECTED, JSON, Layout, StoredInfluences, influences, top_k, write_json

SUFFIX = ".report"  # of our event file, so that a new report replaces the old one
MAIN = "influence scores"  # as pictures of several methods call ours
SHOWN = 8  # training samples of each kind in the picture


@dataclass(frozen=True)
class Reporter:
    """Reads the files of an experiment and draws what they say.

    Attributes:
        layout: where they are.
        datamodule: gives `train_set` and `test_set`, with `picture(id)` and `caption(id)` or as a `ConversationSet`.
        log_dir: TensorBoard folder of the experiment.
        outcomes: what the model made of a test sample, such as "predicted 6", shown beside its label; of a
            `ConversationSet`, what it answered.
    """

    layout: Layout
    datamodule: Any
    log_dir: Path
    outcomes: Mapping[int, str] = field(default_factory=dict)

    def verdict(self, test_ids: list[int], k: int) -> dict[int, Comparison]:
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
        together, found = pooled(compared), self.mislabels()
        verdict: dict[str, JSON] = {
            "tests": {str(t): one.to_json() for t, one in compared.items()},
            **({"all_tests": together.to_json()} if together else {}),
            **({"mislabels": found.to_json()} if found else {}),
            "definitions": DEFINITIONS,
        }
        write_json(self.layout.verdict, verdict)
        return compared

    def mislabels(self) -> Mislabels | None:
        """What self-influence makes of training answers known to be wrong; None where none are."""
        return mislabels(self.layout, self.datamodule)

    def run(self, test_ids: list[int], k: int) -> dict[int, Comparison]:
        """Writes the verdict on these tests, their pictures, and both to TensorBoard; errors as those of `verdict`.

        Raises:
            WorkError: a file could not be written.
        """
        compared = self.verdict(test_ids, k)
        figures = {t: self._figures(one, k) for t, one in compared.items()}
        for t, named in figures.items():
            for name, figure in named.items():
                save_figure(figure, self.layout.figure(name, t))
        try:
            self._to_tensorboard(compared, figures)
        except OSError as error:
            raise WorkError(
                f"TensorBoard's files could not be written to {self.log_dir}: {error.strerror or error}.\n"
                "  The verdict and the pictures are whole; free space or permissions there and run the report again."
            ) from error
        return compared

    def _figures(self, one: Comparison, k: int) -> dict[str, Figure]:
        stored, title = one.stored, self._title(one.stored.test_id)
        top = top_k(stored.scores, stored.train_ids, k)
        together = one.agreement()
        assert together is not None  # compare() refuses fewer rows than a statistic needs
        figures = {
            "influence_distribution": influence_distribution(stored.scores, stored.train_ids, top, title=title),
            "influence_vs_loo": influence_vs_loo(
                one.predicted,
                one.actual,
                one.kinds,
                together,
                title=title,
                ids=one.ids.tolist(),
                noise_floor=one.noise_floor,
            ),
        }
        if set(one.further) - {CORRECTED}:
            figures["methods_comparison"] = methods_comparison(
                {MAIN: one.predicted, **one.further},
                one.actual,
                one.kinds,
                {MAIN: together, **{name: groups["all"] for name, groups in one.methods().items()}},
                title=title,
                noise_floor=one.noise_floor,
            )
        name, figure = self._rows(stored, title)
        return {**figures, name: figure}

    def _rows(self, stored: StoredInfluences, title: str) -> tuple[str, Figure]:
        """The picture of the test sample beside the training samples that matter most, with its name."""
        order = np.argsort(stored.scores, kind="stable")
        by_id = dict(zip(stored.train_ids.tolist(), stored.scores.tolist(), strict=True))
        helpful = [i for i in stored.train_ids[order[:SHOWN]].tolist() if by_id[i] < 0]
        harmful = [i for i in stored.train_ids[order[::-1][:SHOWN]].tolist() if by_id[i] > 0]
        train, test, t = self.datamodule.train_set, self.datamodule.test_set, stored.test_id
        if isinstance(test, ConversationSet):
            low, high = ([row_of(train, i, by_id[i]) for i in ids] for ids in (helpful, harmful))
            asked = row_of(test, t, answered=self.outcomes.get(t, ""))
            return "gallery", gallery(asked, low, high, title=title)
        first, last = (
            [TrainingPicture(i, train.picture(i), train.caption(i), by_id[i]) for i in ids]
            for ids in (helpful, harmful)
        )
        return "most_influential", digit_grid(test.picture(t), test.caption(t), first, last, title=title)

    def _title(self, t: int) -> str:
        if isinstance(self.datamodule.test_set, ConversationSet):
            return f"test {t}"
        outcome = f", {self.outcomes[t]}" if t in self.outcomes else ""
        return f"test {t}, label {self.datamodule.test_set.caption(t)}{outcome}"

    def _to_tensorboard(self, compared: Mapping[int, Comparison], figures: Mapping[int, Mapping[str, Figure]]) -> None:
        for old in self.log_dir.glob(f"*{SUFFIX}"):
            old.unlink()
        with SummaryWriter(str(self.log_dir), filename_suffix=SUFFIX) as writer:
            for t, one in compared.items():
                writer.add_histogram(f"influence/test_{t}", one.stored.scores, bins="auto")
                for name, figure in figures[t].items():
                    writer.add_figure(f"{name}/test_{t}", figure, close=False)
                for name, value in one.to_json().items():
                    if isinstance(value, (int, float)) and not isinstance(value, bool):
                        writer.add_scalar(f"verdict_test_{t}/{name}", value)
