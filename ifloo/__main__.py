"""The `ifloo` command. Help and version are printed before any slow import."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ifloo import __version__
from ifloo.cli.help import HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 failed during work, 2 wrong input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"ifloo {__version__}")
        return 0
    if arguments[0] == "--completion":
        from ifloo.cli.completion import completion

        return completion(arguments[1:])
    from ifloo.cli.run import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
