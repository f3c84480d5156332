"""Leave-one-out losses of one test sample: fits a base model from scratch once, refits from there without each id."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from _flags import CONFIG, data, given, parser

from ifloo.cli.named_files import loo_to
from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--topk_ids_txt", type=Path, required=True)
    flags.add_argument("--test_id", type=int, required=True)
    flags.add_argument("--save_jsonl", type=Path, required=True)
    flags.add_argument("--optimizer", choices=["lbfgs", "sgd", "adamw"])
    flags.add_argument("--l2_reg", type=float)
    flags.add_argument("--lr", type=float)
    flags.add_argument("--epochs", type=int, help="with lbfgs: outer steps, each run to convergence")
    flags.add_argument("--batch_size", type=int)
    flags.add_argument("--init", choices=["warm", "cold"], help="cold: repeat the fit from scratch for each id")
    flags.add_argument("--removal", choices=["drop", "zero_weight"])
    flags.add_argument("--random", type=int, default=0, help="random controls besides the ids of the file")
    flags.add_argument("--null_refits", type=int, default=0, help="displaced null refits, for a noise floor")
    args = flags.parse_args(argv)
    settings = given(
        seed_everything=args.seed,
        attribution__test_ids=f"[{args.test_id}]",
        model__optimizer=args.optimizer,
        model__l2_reg=args.l2_reg,
        model__lr=args.lr,
        data__batch_size=args.batch_size,
        trainer__max_epochs=args.epochs,
        refit__init=args.init,
        refit__removal=args.removal,
        refit__random=args.random,
        refit__null_refits=args.null_refits,
    )
    command = ["fit", f"--config={CONFIG / 'mnist.yaml'}", "--trainer.logger=false", *data(args), *settings]
    return run(command, loo_to(args.topk_ids_txt, args.save_jsonl))


if __name__ == "__main__":
    sys.exit(main())
