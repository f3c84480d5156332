"""What a failed allocation looks like on each device, and work that goes on with half as much."""

import logging
import weakref

import pytest
import torch

from ifloo.errors import WorkError
from ifloo.objective.out_of_memory import in_parts, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
        (WorkError("out of memory"), False),
    ],
)
def test_what_lack_of_memory_looks_like(error, memory):
    assert is_out_of_memory(error) == memory


def test_torch_names_its_allocator():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)


def test_results_come_in_order_whatever_the_parts(caplog):
    tried = []

    def work(part):
        tried.append(len(part))
        if len(part) > 2:
            raise RuntimeError("MPS backend out of memory\nmore lines")
        return [10 * i for i in part]

    with caplog.at_level(logging.WARNING):
        assert in_parts(range(5), 5, work, "things") == ([0, 10, 20, 30, 40], 2)
    assert tried == [5, 2, 2, 1]
    assert caplog.messages == ["out of memory with 5 things at once (MPS backend out of memory): going on with 2."]


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("a fault")], ids=["one alone", "another error"])
def test_what_cannot_be_helped_is_passed_on(error):
    def work(part):
        raise error

    with pytest.raises(type(error), match=str(error)):
        in_parts([1, 2, 3], 3, work, "things")


def test_what_failed_is_let_go_before_the_next_attempt():
    held = []

    def work(part):
        if not held:
            block = torch.zeros(10)
            held.append(weakref.ref(block))
            raise MemoryError
        assert held[0]() is None
        return part

    assert in_parts([1, 2], 2, work, "things") == ([1, 2], 1)
