"""The names of all files ifloo writes. No other module spells one."""

from dataclasses import dataclass
from pathlib import Path

CORRECTED = "leverage_corrected"
"""Name of the method, in files and verdicts, that counts in the leverage of the removed sample."""

WEIGHTS = (0.9, 1.1)
"""Of the refits with one sample at a small step to either side of 1."""


@dataclass(frozen=True)
class Layout:
    """Files of one experiment, by default `outputs/<exp>`. `t` is the id of a test sample."""

    root: Path
    all_tests_in: Path | None = None  # another folder than root/all_tests for the scores of all tests

    @classmethod
    def of(cls, experiment: str) -> "Layout":
        return cls(Path("outputs") / experiment)

    @staticmethod
    def checkpoint(experiment: str) -> Path:
        """Where fit puts the base model; it stands outside `root` because several output folders may share it."""
        return Path("models") / f"{experiment}_base.pth"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict.json"

    @property
    def report(self) -> Path:
        """The page that shows everything in one file."""
        return self.root / "report.html"

    @property
    def verdict_files(self) -> list[Path]:
        """What is drawn from scores and refits together, and is of none once either is replaced."""
        return [self.verdict, self.report]

    def scores(self, t: int) -> Path:
        return self.root / f"influences_test_{t}.npz"

    def topk_ids(self, t: int) -> Path:
        return self.root / f"topk_ids_test_{t}.txt"

    def existing_scores(self) -> list[Path]:
        """The score files of all tests, whichever they are."""
        return sorted(self.root.glob("influences_test_*.npz"))

    def existing_losses(self) -> list[Path]:
        """The files of refits of all kinds of all tests, whichever they are."""
        name, kinds = "loo_losses_test_*.jsonl", ("null", "seeds", "weight_*")
        others = [path for kind in kinds for path in sorted(self.root.glob(f"{kind}/{name}"))]
        return [*sorted(self.root.glob(name)), *others, *sorted(self.root.glob("group_losses_test_*.jsonl"))]

    @property
    def all_tests(self) -> Path:
        return self.all_tests_in or self.root / "all_tests"

    def all_scores(self, t: int, suffix: str = ".npy") -> Path:
        return self.all_tests / f"if_scores_test_{t}{suffix}"

    def existing_all_scores(self) -> list[Path]:
        """The index and the score files in `all_tests`, of whichever form; nothing else there is ours."""
        others = [self.index, self.all_scores_matrix, self.all_scores_begun, self.all_topk]
        return [*others, *sorted(self.all_tests.glob("if_scores_test_*.npy"))]

    @property
    def index(self) -> Path:
        """One row per test id whose scores lie in `all_tests`."""
        return self.all_tests / "index.jsonl"

    @property
    def all_scores_matrix(self) -> Path:
        return self.all_tests / "if_scores.npy"

    @property
    def all_scores_begun(self) -> Path:
        """The matrix until its last row is in."""
        return self.all_tests / "if_scores.npy.part"

    @property
    def all_topk(self) -> Path:
        return self.all_tests / "topk.npz"

    def loo_losses(self, t: int) -> Path:
        return self.root / f"loo_losses_test_{t}.jsonl"

    def group_losses(self, t: int) -> Path:
        return self.root / f"group_losses_test_{t}.jsonl"

    def null_losses(self, t: int) -> Path:
        """Refits with nothing removed that start from displaced weights: the noise floor."""
        return self.folder("null").loo_losses(t)

    def weight_losses(self, weight: float, t: int) -> Path:
        """Refits with one sample at another weight than 1, as by `loo_losses` with weight 0."""
        return self.folder(f"weight_{weight:g}").loo_losses(t)

    def seed_losses(self, t: int) -> Path:
        """Refits with nothing removed from other seeds."""
        return self.folder("seeds").loo_losses(t)

    def folder(self, kind: str) -> "Layout":
        """Give the same names in a folder of their own, for another kind of refit (`warm`, `null`, ...)."""
        return Layout(self.root / kind)

    def method_scores(self, name: str, t: int) -> Path:
        """Scores of a further attribution method."""
        return Layout(self.root / "methods" / name).scores(t)

    def existing_method_scores(self, name: str) -> list[Path]:
        """Those of one method on all tests, whichever they are."""
        return Layout(self.root / "methods" / name).existing_scores()

    def existing_methods(self, t: int) -> dict[str, Path]:
        """Score files of further methods on one test, by the name of the method."""
        found = sorted((self.root / "methods").glob(f"*/{self.scores(t).name}"))
        return {path.parent.name: path for path in found}

    def removals(self, t: int) -> Path:
        """Removals predicted with the leverage of the removed sample counted in."""
        return self.root / "methods" / CORRECTED / f"removals_test_{t}.npz"

    def existing_removals(self) -> list[Path]:
        """Those of all tests, whichever they are."""
        return sorted(self.removals(0).parent.glob("removals_test_*.npz"))

    @property
    def self_influence(self) -> Path:
        """What each training sample does to its own loss."""
        return self.root / "self_influence.npz"

    @property
    def label_errors(self) -> Path:
        """The picture of how fast each ranking finds labels known to be wrong."""
        return self.root / "figs" / "label_errors.png"

    @property
    def reverse(self) -> Path:
        """A reverse pass over a training run, while it is under way."""
        return self.root / "reverse.npz.part"

    def figure(self, name: str, t: int) -> Path:
        return self.root / "figs" / f"{name}_test_{t}.png"
