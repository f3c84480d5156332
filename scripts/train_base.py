"""Trains the base model and writes its checkpoint: `ifloo fit` under the flags of the original tool."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from _flags import CONFIG, data, given, parser

from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    flags.add_argument("--optimizer", choices=["lbfgs", "sgd", "adamw"])
    flags.add_argument("--l2_reg", type=float)
    flags.add_argument("--lr", type=float)
    flags.add_argument("--epochs", type=int, help="with lbfgs: outer steps, each run to convergence")
    flags.add_argument("--batch_size", type=int)
    flags.add_argument("--save_path", required=True)
    args = flags.parse_args(argv)
    settings = given(
        seed_everything=args.seed,
        model__optimizer=args.optimizer,
        model__l2_reg=args.l2_reg,
        model__lr=args.lr,
        data__batch_size=args.batch_size,
        trainer__max_epochs=args.epochs,
        checkpoint=args.save_path,
    )
    # A script told an output file by name replaces that file.
    return run(["fit", "--overwrite", f"--config={CONFIG / 'mnist.yaml'}", *data(args), *settings])


if __name__ == "__main__":
    sys.exit(main())
