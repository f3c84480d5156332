"""Names of all files that ifloo writes; other modules take them from here."""

from dataclasses import dataclass
from pathlib import Path

CORRECTED = "leverage_corrected"
"""Name, in files and verdicts, of the method that takes the leverage of the removed sample into account."""

WEIGHTS = (0.9, 1.1)
"""Weights of the refits with one sample at a small step to either side of 1."""


@dataclass(frozen=True)
class Layout:
    """Paths of the files of one experiment; argument `t` is the id of a test sample.

    Attributes:
        root: Folder of the experiment, by default `outputs/<exp>`.
        all_tests_in: Folder for the scores of all tests; None for `all_tests` in `root`.
    """

    root: Path
    all_tests_in: Path | None = None

    @classmethod
    def of(cls, experiment: str) -> "Layout":
        return cls(Path("outputs") / experiment)

    @staticmethod
    def checkpoint(experiment: str) -> Path:
        """Returns the path of the base model, which is outside `root` since several output folders may share it."""
        return Path("models") / f"{experiment}_base.pth"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict.json"

    @property
    def report(self) -> Path:
        """Page with the whole report in one file."""
        return self.root / "report.html"

    @property
    def verdict_files(self) -> list[Path]:
        """Files computed from scores and refits together, which become obsolete when either is replaced."""
        return [self.verdict, self.report]

    def scores(self, t: int) -> Path:
        return self.root / f"influences_test_{t}.npz"

    def topk_ids(self, t: int) -> Path:
        return self.root / f"topk_ids_test_{t}.txt"

    def existing_scores(self) -> list[Path]:
        """Lists the existing score files of all tests."""
        return sorted(self.root.glob("influences_test_*.npz"))

    def existing_losses(self) -> list[Path]:
        """Lists the existing files of refits of all kinds, of all tests."""
        name, kinds = "loo_losses_test_*.jsonl", ("null", "seeds", "weight_*")
        others = [path for kind in kinds for path in sorted(self.root.glob(f"{kind}/{name}"))]
        return [*sorted(self.root.glob(name)), *others, *sorted(self.root.glob("group_losses_test_*.jsonl"))]

    @property
    def all_tests(self) -> Path:
        return self.all_tests_in or self.root / "all_tests"

    def all_scores(self, t: int, suffix: str = ".npy") -> Path:
        return self.all_tests / f"if_scores_test_{t}{suffix}"

    def existing_all_scores(self) -> list[Path]:
        """Lists the index and the score files in `all_tests`, in all forms: the only files there that ifloo writes."""
        others = [self.index, self.all_scores_matrix, self.all_scores_begun, self.all_topk]
        return [*others, *sorted(self.all_tests.glob("if_scores_test_*.npy"))]

    @property
    def index(self) -> Path:
        """Index with one row per test whose scores are in `all_tests`."""
        return self.all_tests / "index.jsonl"

    @property
    def all_scores_matrix(self) -> Path:
        return self.all_tests / "if_scores.npy"

    @property
    def all_scores_begun(self) -> Path:
        """Matrix of scores before its last row is written."""
        return self.all_tests / "if_scores.npy.part"

    @property
    def all_topk(self) -> Path:
        return self.all_tests / "topk.npz"

    def loo_losses(self, t: int) -> Path:
        return self.root / f"loo_losses_test_{t}.jsonl"

    def group_losses(self, t: int) -> Path:
        return self.root / f"group_losses_test_{t}.jsonl"

    def null_losses(self, t: int) -> Path:
        """Returns the path of refits with nothing removed from displaced weights, which give the noise floor."""
        return self.folder("null").loo_losses(t)

    def weight_losses(self, weight: float, t: int) -> Path:
        """Returns the path of refits with one sample at this weight; `loo_losses` are those at weight 0."""
        return self.folder(f"weight_{weight:g}").loo_losses(t)

    def seed_losses(self, t: int) -> Path:
        """Returns the path of refits with nothing removed from other seeds."""
        return self.folder("seeds").loo_losses(t)

    def folder(self, kind: str) -> "Layout":
        """Returns the layout of a subfolder for another kind of refit (`warm`, `null`, ...)."""
        return Layout(self.root / kind)

    def method_scores(self, name: str, t: int) -> Path:
        """Returns the path of the scores by a further method."""
        return Layout(self.root / "methods" / name).scores(t)

    def existing_method_scores(self, name: str) -> list[Path]:
        """Lists the existing score files of one further method."""
        return Layout(self.root / "methods" / name).existing_scores()

    def existing_methods(self, t: int) -> dict[str, Path]:
        """Finds the score files of further methods on one test, by method name."""
        found = sorted((self.root / "methods").glob(f"*/{self.scores(t).name}"))
        return {path.parent.name: path for path in found}

    def removals(self, t: int) -> Path:
        """Returns the path of the leverage-corrected predictions of removals."""
        return self.root / "methods" / CORRECTED / f"removals_test_{t}.npz"

    def existing_removals(self) -> list[Path]:
        """Lists the existing files of leverage-corrected predictions, of all tests."""
        return sorted(self.removals(0).parent.glob("removals_test_*.npz"))

    @property
    def self_influence(self) -> Path:
        """Self-influences of the training samples."""
        return self.root / "self_influence.npz"

    @property
    def label_errors(self) -> Path:
        """Figure of how fast each ranking finds labels known to be wrong."""
        return self.root / "figs" / "label_errors.png"

    @property
    def reverse(self) -> Path:
        """Checkpoint of an unfinished reverse pass over a training run."""
        return self.root / "reverse.npz.part"

    def figure(self, name: str, t: int) -> Path:
        return self.root / "figs" / f"{name}_test_{t}.png"
