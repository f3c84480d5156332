"""The page of former names, docs/renames.md, written from the tables that answer to these names.

python -m scripts.site.renames
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ifloo.cli.former_settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ifloo"
PAGE = ROOT / "docs" / "renames.md"

MEMBERS: dict[str, dict[str, str]] = {  # members of public classes, which do not answer to their former names
    "ifloo.curvature.LinearHead": {"head": "layer"},
    "ifloo.doctor.Finding": {"weight": "severity"},
    "ifloo.models.Adapted": {"still": "skip_training"},
    "ifloo.models.AdaptedOutputs": {"still": "skip_training"},
    "ifloo.refit.ExtraRefits": {"takes": "record"},
    "ifloo.refit.LeaveOneOut": {"shelves": "extra_refits"},
    "ifloo.refit.RefitWork": {"path": "strategy"},
    "ifloo.refit.Refitter": {"decays": "allow_decoupled_decay", "recipe": "trainer_settings"},
    "ifloo.refit.TrainerSettings": {"compared": "identity_settings", "said": "from_flags"},
    "ifloo.solvers.Prepared": {"at_once": "efficient_rows", "sandwich": "quadratic_forms"},
    "ifloo.solvers.Solver": {"chosen": "resolve"},
    "ifloo.stages.AttributionSettings": {"further": "compare_with"},
    "ifloo.stages.InfluenceStage": {
        "further": "score_with",
        "listed": "score_tests",
        "said": "refit_recipe",
        "origin": "base_settings",
        "take_part": "serve",
    },
    "ifloo.store.Layout": {
        "all_scores_there": "existing_all_scores",
        "judged": "verdict_files",
        "losses_there": "existing_losses",
        "method_scores_there": "existing_method_scores",
        "methods_there": "existing_methods",
        "removals_there": "existing_removals",
        "scores_there": "existing_scores",
    },
    "ifloo.verdict.Comparison": {"further": "other_methods"},
}
"""Present name of each renamed member, by dotted path of its class and former name."""

USES: dict[str, str] = {
    "InfluenceRun(module, datamodule, settings, layout, origin, overwrite)": (
        "InfluenceStage(module, datamodule, settings, layout, base_settings, make_trainer, overwrite)"
    ),
    "InfluenceRun(...).listed(make_trainer)": "InfluenceStage(..., make_trainer).score_tests()",
    "scores.residual": "scores.certificate.residual",
    "scores.undamped_residual": "scores.certificate.undamped_residual",
    "scores.steps": "scores.certificate.steps",
    "scores.status": "scores.certificate.status",
    "scores.damping": "scores.certificate.damping",
    "scores.curves": "scores.certificate.curves",
    "operator.cost": "operator.structure.cost",
    "operator.core(tick)": "operator.structure.dense.build(tick)",
    "operator.is_dense": "operator.structure.dense.is_built()",
    "operator.streamed(V)": "operator.structure.dense.streamed(V)",
    "operator.has_kronecker": "operator.structure.kronecker is not None",
    "operator.kronecker()": "operator.structure.kronecker()",
    "isinstance(operator, StochasticOperator)": "operator.sampler is not None",
    "operator.subsampled(rows, generator)": "operator.sampler.subsampled(rows, generator)",
    "operator.draw(repeats, batch, generator)": "operator.sampler.draw(repeats, batch, generator)",
    "predictor.engine": "predictor.build_engine()",
}
"""Present form of each other use that must be changed, by its former form."""

TEXT = """\
# Former names

The public names below changed after the first development version of ifloo 0.1. This page is written by
`scripts/site/renames.py` from the tables that answer to the former names; a test fails when it is out of date.

## Classes and functions

A former name still works. It gives the present object and warns once with `FormerNameWarning`, which states the
present name. Class paths in configs and flags follow the same rule.

{names}

## Settings

A former key works in YAML and as a flag, with one warning. Output folders, checkpoints and recorded runs that were
written under the former names are read, and a command that finds them computes nothing again.

{settings}

## Attributes, methods and arguments

These members of public classes have no alias: code that uses a former name must be changed.

{members}

The argument `still` of `Adapted` and `AdaptedOutputs` is the exception: it is taken by keyword, with one warning.

Other uses that must be changed, where `scores` is the result of a method (formerly a `MethodScores`), `operator` a
curvature, and `predictor` an `InfluencePredictor`:

{uses}

- `scores.certificate` is None for a method that solves and replays nothing. `steps` and `status` are those of each
  query.
- `make_trainer` is a required argument of `InfluenceStage`, before `overwrite`; its methods no longer take it.
- `operator.structure.dense` and `operator.structure.kronecker` are None where the operator has no such form.
- An operator class that defines one of the hooks `core`, `cost`, `has_kronecker`, `is_dense`, `kronecker` and
  `streamed` must state them in `structure`; a class that does not is refused when it is defined.
- `Hessian(...)` and `GaussNewton(...)` are no instances of `StochasticOperator`: ask for their `sampler`. A class of
  your own may still inherit `StochasticOperator`.
- `predictor.engine` can be read once `build_engine()` or a run of `Trainer.predict` has built the engine.

## To migrate

Run your program with `python -W error::FutureWarning`. It stops at the first former name, and the message states the
present one. Modules inside a room, such as `ifloo.attribution.engine`, are not public and may move without an alias:
import from the room.
"""


def former_names() -> dict[str, str]:
    """Returns the present dotted path of every public name by its former one, from the calls of `former_names`."""
    found: dict[str, str] = {}
    for path in PACKAGE.rglob("__init__.py"):
        room = ".".join(path.relative_to(ROOT).parent.parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "former_names":
                table: dict[str, str] = ast.literal_eval(node.args[1])
                found |= {f"{room}.{name}": now for name, now in table.items()}
    return dict(sorted(found.items()))


def page() -> str:
    """Returns the text of the page."""
    members = {f"{path}.{old}": f"{path}.{new}" for path, table in MEMBERS.items() for old, new in table.items()}
    return TEXT.format(
        names=_table(former_names()), settings=_table(SETTINGS), members=_table(members), uses=_table(USES)
    )


def _table(names: Mapping[str, str]) -> str:
    rows: Iterable[str] = (f"| `{old}` | `{now}` |" for old, now in names.items())
    return "\n".join(["| former | present |", "|---|---|", *rows])


def main() -> int:
    """Writes the page.

    Returns:
        The exit code, 0.
    """
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
