"""Number of queries that are scored together: by memory, and halved after running out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ifloo.errors import WorkError
from ifloo.objective.out_of_memory import first_line, in_parts, is_out_of_memory

QUERY_BYTES = 256 << 20  # bytes of the scores of a block of queries, and the same again for their directions


def queries_at_once(n: int, p: int, score_bytes: int, direction_bytes: int) -> int:
    """Returns the number m of queries whose scores `[m, n]` and directions `[m, p]` take `QUERY_BYTES` each at most."""
    return max(1, min(QUERY_BYTES // (n * score_bytes), QUERY_BYTES // (p * direction_bytes)))


def in_blocks(test_ids: Sequence[int], size: int, work: Callable[[Sequence[int]], None]) -> None:
    """Processes test ids in blocks; their size is halved for the rest whenever a block does not fit into memory.

    Raises:
        WorkError: A single query does not fit.
    """

    def block(now: Sequence[int]) -> tuple[()]:
        try:
            work(now)
        except Exception as error:
            if len(now) == 1 and is_out_of_memory(error):
                raise WorkError(_does_not_fit(now[0], error)) from error
            raise
        return ()

    in_parts(test_ids, size, block, "tests")


def _does_not_fit(t: int, error: BaseException) -> str:
    return (
        f"Out of memory with one test (id {t}) at a time: {first_line(error)}\n"
        "  Finished tests are kept. Lower attribution.batch_size (training samples at once), use "
        "attribution.dtype=float32, or attribute fewer parameters (attribution.parameters)."
    )
