"""Verdict and pictures of tests that were scored and refitted: `ifloo report` under the original tool's flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from _flags import as_fitted, data, given, parser

from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--ckpt_path", default="./models/mnist_base.pth")
    flags.add_argument("--test_id", type=int, nargs="+", required=True)
    flags.add_argument("--topk", type=int, default=500, help="size of the top-k group in the verdict")
    flags.add_argument("--output_dir", default="./outputs/mnist")
    args = flags.parse_args(argv)
    settings = given(
        checkpoint=args.ckpt_path,
        experiment="mnist",
        output_dir=args.output_dir,
        attribution__test_ids=str(args.test_id),
        refit__top_k=args.topk,
    )
    return run(["report", *as_fitted(), *data(args), *settings])


if __name__ == "__main__":
    sys.exit(main())
