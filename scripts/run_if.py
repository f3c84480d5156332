"""Influence of the training samples on one test sample or all: `ifloo influence` with the original tool's flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from _flags import MULTIMODAL, Experiment, given, parsed, parser

from ifloo.cli.original_commands import all_tests_to, influence_to
from ifloo.cli.run import run

UNROLLED = ["--attribution.method=ifloo.attribution.Unrolled"]
SOLVERS = {"exact": "ifloo.solvers.Cholesky", "cg": "ifloo.solvers.CG", "lissa": "ifloo.solvers.LiSSA"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = _parser()
    args, experiment = parsed(flags, argv)
    if not args.all_test_ids and args.test_id is None:
        flags.error("give --test_id, or --all_test_ids 1")
    settings = given(
        checkpoint=args.ckpt_path,
        experiment=experiment.name,
        attribution__test_ids="all" if args.all_test_ids else f"[{args.test_id}]",
        attribution__top_k=args.topk,
    )
    method_settings = method(args, flags, experiment)
    command = ["influence", *experiment.as_fitted(), *experiment.own(args), *settings, *method_settings]
    if args.all_test_ids:
        folder = args.save_all_dir or Path(experiment.outputs) / "all_tests"
        return run(command, all_tests_to(folder, bool(args.resume_all_test)))
    return run(command, influence_to(args.save_scores_npy, args.save_topk_ids_txt))


def _parser() -> argparse.ArgumentParser:
    flags: argparse.ArgumentParser = parser(__doc__)
    flags.add_argument("--ckpt_path", required=True)
    flags.add_argument(
        "--solver",
        choices=list(SOLVERS),
        help="default: by cost (mnist), unrolled training (multimodal); the LiSSA flags select lissa. With multimodal "
        "any of these flags selects Gauss-Newton",
    )
    flags.add_argument("--recursion_depth", type=int, help="LiSSA steps")
    flags.add_argument(
        "--damp", type=float, help="LiSSA: h <- v + (1 - damp) h - H h / scale, that is δ = damp * scale"
    )
    flags.add_argument("--scale", type=float, help="LiSSA; default: from the largest eigenvalue of sampled batches")
    flags.add_argument("--damping", type=float, help="δ added to the curvature, with any solver")
    flags.add_argument("--test_id", type=int)
    flags.add_argument("--topk", type=int, default=500)
    flags.add_argument("--save_scores_npy", type=Path)
    flags.add_argument("--save_topk_ids_txt", type=Path)
    flags.add_argument("--all_test_ids", type=int, choices=[0, 1], default=0)
    flags.add_argument("--save_all_dir", type=Path, help="default: ./outputs/<experiment>/all_tests")
    flags.add_argument("--resume_all_test", type=int, choices=[0, 1], default=1)
    return flags


def method(args: argparse.Namespace, flags: argparse.ArgumentParser, experiment: Experiment) -> list[str]:
    """Returns the settings of the method: the Hessian at the minimum of a convex J, unrolled training otherwise."""
    kind, delta = _kind(args, flags), _damping(args, flags, experiment)
    if experiment is not MULTIMODAL:
        return _solver(args, "attribution", kind, delta)
    if args.all_test_ids:
        if delta is None:
            flags.error("--all_test_ids 1 with multimodal uses Gauss-Newton: give --solver cg and its --damping")
        return ["--attribution.curvature=ifloo.curvature.GaussNewton", *_solver(args, "attribution", kind, delta)]
    if kind is None and delta is None:
        return UNROLLED
    named = ["--attribution.method=ifloo.attribution.InfluenceFunction"]
    label = "_".join(["gauss_newton", *([kind] if kind else [])])
    return [*named, f"--attribution.method.label={label}", *_solver(args, "attribution.method", kind, delta)]


def _kind(args: argparse.Namespace, flags: argparse.ArgumentParser) -> str | None:
    """Returns the requested solver, or LiSSA if one of its flags is given."""
    lissa = {"--recursion_depth": args.recursion_depth, "--damp": args.damp, "--scale": args.scale}
    given_flags = [name for name, value in lissa.items() if value is not None]
    if given_flags and args.solver not in (None, "lissa"):
        flags.error(f"with --solver {args.solver}, leave out the flags of LiSSA: {', '.join(given_flags)}")
    return "lissa" if given_flags else args.solver


def _damping(args: argparse.Namespace, flags: argparse.ArgumentParser, experiment: Experiment) -> float | None:
    """Returns δ; LiSSA's `damp` becomes the damping of the curvature, which gives the identical iteration."""
    if args.damp is None:
        given: float | None = args.damping
        return given
    if args.damping is not None:
        flags.error("--damp and --damping both set the δ added to the curvature (δ = damp * scale): give one")
    if args.damp and args.scale is None:
        flags.error(f"--damp {args.damp} is in units of the scale (δ = damp * scale): give --scale too")
    delta: float = args.damp * (args.scale or 0.0)
    if args.damp:
        damped = "Gauss-Newton matrix" if experiment is MULTIMODAL else "Hessian"
        print(f"LiSSA: damp {args.damp:g} x scale {args.scale:g} is damping δ = {delta:g} on the {damped}")
    return delta


def _solver(args: argparse.Namespace, group: str, kind: str | None, delta: float | None) -> list[str]:
    """Returns solver and damping as settings of a group."""
    settings = {f"{group}.damping": delta}
    if kind == "lissa":
        settings |= {
            f"{group}.solver.depth": args.recursion_depth,
            f"{group}.solver.scale": args.scale,
            f"{group}.solver.seed": args.seed,
        }
    named = [f"--{group}.solver={SOLVERS[kind]}"] if kind else []
    return [*named, *given(**settings)]


if __name__ == "__main__":
    sys.exit(main())
