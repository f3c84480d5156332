"""Leave-one-out losses of one test sample: fits a base model from scratch once, refits from there without each id."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from _flags import add_fit, fit, given, parsed, parser

from ifloo.cli.original_commands import loo_to
from ifloo.cli.run import run

# Only the ids of the file are refitted: no other kinds of refit, and no record of the fit, which is not needed here and
# would be stored beside another checkpoint.
ALONE = (
    *("--refit.weight_steps=0", "--refit.groups=[]", "--refit.seeds=0"),
    *("--attribution.method=null", "--attribution.compare_with=[]"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--topk_ids_txt", type=Path, required=True)
    flags.add_argument("--test_id", type=int, required=True)
    flags.add_argument("--save_jsonl", type=Path, required=True)
    add_fit(flags)
    flags.add_argument("--init", choices=["warm", "cold"], help="cold: repeat the fit from scratch for each id")
    flags.add_argument("--removal", choices=["drop", "zero_weight"])
    flags.add_argument("--random", type=int, default=0, help="random controls besides the ids of the file")
    flags.add_argument("--null_refits", type=int, default=0, help="displaced null refits, for a noise floor")
    args, experiment = parsed(flags, argv)
    settings = given(
        attribution__test_ids=f"[{args.test_id}]",
        refit__init=args.init,
        refit__removal=args.removal,
        refit__random=args.random,
        refit__null_refits=args.null_refits,
    )
    command = ["fit", *fit(args, experiment), "--trainer.logger=false", *ALONE, *settings]
    return run(command, loo_to(args.topk_ids_txt, args.save_jsonl))


if __name__ == "__main__":
    sys.exit(main())
