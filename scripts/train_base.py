"""Trains the base model and writes its checkpoint: `ifloo fit` with the original tool's flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from _flags import add_fit, fit, given, parsed, parser

from ifloo.cli.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    flags = parser(__doc__)
    add_fit(flags)
    flags.add_argument("--save_path", required=True)
    args, experiment = parsed(flags, argv)
    # The output file is named explicitly, so it is replaced.
    return run(["fit", "--overwrite", *fit(args, experiment), *given(checkpoint=args.save_path)])


if __name__ == "__main__":
    sys.exit(main())
