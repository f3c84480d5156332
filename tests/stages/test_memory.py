"""Blocks of queries: by memory, and halved where that was too much."""

import logging

import pytest

from ifloo.errors import WorkError
from ifloo.stages.memory import QUERY_BYTES, in_blocks, queries_at_once


@pytest.mark.parametrize(("n", "p"), [(55_000, 7_840), (10, 100_000_000), (10**10, 5), (5, 5), (1, 10**12)])
def test_blocks_are_bounded_by_memory(n, p):
    m = queries_at_once(n, p, 4, 8)
    assert m >= 1
    assert m == 1 or max(4 * m * n, 8 * m * p) <= QUERY_BYTES
    assert max(4 * (m + 1) * n, 8 * (m + 1) * p) > QUERY_BYTES


def test_halved_until_it_fits(caplog):
    fits, done, tried = 3, [], []

    def work(now):
        tried.append(len(now))
        if len(now) > fits:
            raise RuntimeError("CUDA out of memory.\nmore lines")
        done.extend(now)

    with caplog.at_level(logging.WARNING):
        in_blocks(list(range(20)), 16, work)
    assert done == list(range(20))
    assert tried == [16, 8, 4, *[2] * 10]
    assert caplog.messages == [
        f"out of memory with {2 * k} tests at once (CUDA out of memory.): going on with {k}." for k in (8, 4, 2)
    ]


def test_one_that_does_not_fit_is_an_error():
    def work(now):
        raise MemoryError("no more")

    with pytest.raises(WorkError) as error:
        in_blocks([4, 5], 2, work)
    assert str(error.value) == (
        "Out of memory with one test (id 4) at a time: no more\n"
        "  Finished tests are kept. Lower attribution.batch_size (training samples at once), use "
        "attribution.dtype=float32, or attribute fewer parameters (attribution.parameters)."
    )


def test_other_errors_go_through():
    def work(now):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_blocks([1, 2], 2, work)
