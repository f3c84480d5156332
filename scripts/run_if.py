"""Influence of the training samples on one test sample or all: `ifloo influence` under the original tool's flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from _flags import as_fitted, data, given, parser

from ifloo.cli.named_files import all_tests_to, influence_to
from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--ckpt_path", required=True)
    flags.add_argument(
        "--solver", choices=["exact", "cg", "lissa"], help="default: by cost; the LiSSA flags select lissa"
    )
    flags.add_argument("--recursion_depth", type=int, help="LiSSA steps")
    flags.add_argument(
        "--damp", type=float, help="LiSSA: h <- v + (1 - damp) h - H h / scale, that is δ = damp * scale"
    )
    flags.add_argument("--scale", type=float, help="LiSSA; default: from the largest eigenvalue of sampled batches")
    flags.add_argument("--damping", type=float, help="δ added to the Hessian, with the solvers exact and cg")
    flags.add_argument("--test_id", type=int)
    flags.add_argument("--topk", type=int, default=500)
    flags.add_argument("--save_scores_npy", type=Path)
    flags.add_argument("--save_topk_ids_txt", type=Path)
    flags.add_argument("--all_test_ids", type=int, choices=[0, 1], default=0)
    flags.add_argument("--save_all_dir", type=Path, default=Path("outputs/mnist/all_tests"))
    flags.add_argument("--resume_all_test", type=int, choices=[0, 1], default=1)
    args = flags.parse_args(argv)
    if not args.all_test_ids and args.test_id is None:
        flags.error("give --test_id, or --all_test_ids 1")
    chosen = "all" if args.all_test_ids else f"[{args.test_id}]"
    settings = given(
        checkpoint=args.ckpt_path, experiment="mnist", attribution__test_ids=chosen, attribution__top_k=args.topk
    )
    command = ["influence", *as_fitted(), *data(args), *settings, *solver(args, flags)]
    if args.all_test_ids:
        return run(command, all_tests_to(args.save_all_dir, bool(args.resume_all_test)))
    return run(command, influence_to(args.save_scores_npy, args.save_topk_ids_txt))


def solver(args: argparse.Namespace, flags: argparse.ArgumentParser) -> list[str]:
    """The solver's flags; `damp` becomes the damping of the curvature, which is the identical iteration."""
    lissa = {"--recursion_depth": args.recursion_depth, "--damp": args.damp, "--scale": args.scale}
    said = [name for name, value in lissa.items() if value is not None]
    if said and args.solver not in (None, "lissa"):
        flags.error(f"{', '.join(said)} belong to LiSSA; leave them out with --solver {args.solver}")
    kind = "lissa" if said else (args.solver or "auto")
    if kind == "lissa":
        if args.damp and args.scale is None:
            flags.error(f"--damp {args.damp} is in units of the scale (δ = damp * scale): give --scale too")
        if args.damping is not None:
            flags.error("--damping goes with the solvers exact and cg; LiSSA takes --damp")
        delta = (args.damp or 0.0) * (args.scale or 0.0)
        if args.damp:
            print(f"LiSSA: damp {args.damp:g} x scale {args.scale:g} is damping δ = {delta:g} on the Hessian")
        return [
            "--attribution.solver=ifloo.solvers.LiSSA",
            *given(
                attribution__solver__depth=args.recursion_depth,
                attribution__solver__scale=args.scale,
                attribution__solver__seed=args.seed,
                attribution__damping=delta,
            ),
        ]
    named = {"exact": ["--attribution.solver=ifloo.solvers.Cholesky"], "cg": ["--attribution.solver=ifloo.solvers.CG"]}
    return [*named.get(kind, []), *given(attribution__damping=args.damping)]


if __name__ == "__main__":
    sys.exit(main())
