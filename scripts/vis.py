"""Verdict and pictures of tests that were scored and refitted: `ifloo report` with the original tool's flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from _flags import given, parsed, parser

from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--ckpt_path", help="default: ./models/<experiment>_base.pth")
    flags.add_argument("--test_id", type=int, nargs="+", required=True)
    flags.add_argument("--topk", type=int, default=500, help="size of the top-k group in the verdict")
    flags.add_argument("--output_dir", help="default: ./outputs/<experiment>")
    args, experiment = parsed(flags, argv)
    settings = given(
        checkpoint=args.ckpt_path or experiment.checkpoint,
        experiment=experiment.name,
        output_dir=args.output_dir or experiment.outputs,
        attribution__test_ids=str(args.test_id),
        refit__top_k=args.topk,
    )
    return run(["report", *experiment.as_fitted(), *experiment.own(args), *settings])


if __name__ == "__main__":
    sys.exit(main())
