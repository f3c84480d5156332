"""The two kinds of failure a user meets; the command line turns them into exit codes 2 and 1."""


class IflooError(Exception):
    """Root of the errors ifloo raises on purpose; its text says what was expected, what came, where, and what to do."""


class InputError(IflooError, ValueError):
    """What was given is wrong: a flag, a config, an input file, existing results of other settings (exit code 2)."""


class WorkError(IflooError, RuntimeError):
    """What was given is fine and the work failed: a solve that did not converge, a disk that is full (exit code 1)."""
