"""Trains the base model and writes its checkpoint: `ifloo fit` under the flags of the original tool."""

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
    # A script told an output file by name replaces that file.
    return run(["fit", "--overwrite", *fit(args, experiment), *given(checkpoint=args.save_path)])


if __name__ == "__main__":
    sys.exit(main())
