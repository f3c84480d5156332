"""Reads of the data in a process of their own, and what happens where there can be none."""

import itertools
import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ifloo.data.fit_record import content_fingerprint
from ifloo.errors import WorkError
from ifloo.objective import id_rule
from ifloo.objective.batches import tensors_of
from ifloo.objective.dealt_samplers import own_sampler
from ifloo.objective.epoch_batches import SamplerEpochs, drawn_by
from ifloo.objective.loaders import sequential
from ifloo.stages import InfluenceCallback
from ifloo.stages.callback import data_reads
from ifloo.stages.callback.data_reads import DataReads
from ifloo.stages.callback.reader_process import ReaderProcess
from ifloo.stages.certificate.drawn_batches import drawn_batches
from tests.stages.callback.fits import Augmented, N, Stated, fitted, loader, samples
from tests.stages.callback.stateful_data import KINDS, Attributes, Noisy, OwnOrder, loaders
from tests.stages.callback.test_untouched_data import run_twice


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("ifloo")]


class Flips(Dataset[Any]):
    """Draws from the generators that are seeded for each sample."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(3) + i, torch.tensor(i)


def tensors_in(one: DataLoader[Any]) -> list[list[torch.Tensor]]:
    return [list(tensors_of(batch)) for batch in sequential(one, 8)]


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [8, None])
def test_samples_are_the_same_as_those_read_here(workers, batch_size):
    def collate(rows: Any) -> Any:
        pairs = [rows] if batch_size is None else rows
        return torch.stack([x for x, _ in pairs]) + torch.rand(1), torch.stack([y for _, y in pairs])

    one = DataLoader(Flips(), batch_size=batch_size, collate_fn=collate, num_workers=workers)
    assert equal(DataReads().during(lambda apart: tensors_in(apart), one), tensors_in(one))
    assert DataReads().once(content_fingerprint, one) == content_fingerprint(one)


def test_several_draws_are_the_same_as_those_read_here():
    def drawn(apart: DataLoader[Any]) -> list[Any]:
        return [draw for batch in sequential(apart, 8) for draw in batch.draws]

    one = DataLoader(Flips(), batch_size=8, collate_fn=lambda rows: [torch.stack([x for x, _ in rows]) + torch.rand(1)])
    apart = DataReads().during(drawn, one, 3)
    here = data_reads._with_draws(one, 3)
    assert equal(apart, drawn(here))
    assert not torch.equal(apart[0][0], apart[1][0])


class Counted(Sampler[int]):
    """Draws by its number of epochs and the global generator."""

    def __init__(self, batches: bool = False) -> None:
        self.epochs, self.batches = 0, batches

    def __len__(self) -> int:
        return 5 if self.batches else N

    def __iter__(self) -> Any:
        self.epochs += 1
        rows = (torch.randperm(N) + self.epochs) % N
        return iter([x.tolist() for x in rows.split(8)] if self.batches else rows.tolist())


class Told(Counted):
    """Draws by the epoch that it is told."""

    def set_epoch(self, epoch: int) -> None:
        self.epochs = 7 * epoch


ORDERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "sampler": lambda: DataLoader(samples(N), batch_size=8, sampler=Counted()),
    "batches": lambda: DataLoader(samples(N), batch_sampler=Counted(batches=True)),
    "batches of a sampler": lambda: DataLoader(samples(N), batch_sampler=BatchSampler(Told(), 8, drop_last=True)),
    "told": lambda: DataLoader(samples(N), batch_size=8, sampler=Told()),
    "closure": lambda: DataLoader(samples(N), batch_size=8, sampler=OwnOrder()),
    "dealt out": lambda: DataLoader(samples(N), batch_size=8, sampler=DistributedSamplerWrapper(Counted(), 2, 1)),
    "dealt out and told": lambda: DataLoader(samples(N), batch_size=8, sampler=DistributedSamplerWrapper(Told(), 2, 0)),
    "without batches": lambda: DataLoader(samples(N), batch_size=None, sampler=Counted()),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_of_the_users_own_is_drawn_there(name):
    def epochs(one: DataLoader[Any]) -> list[list[torch.Tensor]]:
        return [list(epoch) for epoch in itertools.islice(SamplerEpochs(one)(), 4)]

    one = ORDERS[name]()
    assert equal(DataReads().during(epochs, one), epochs(ORDERS[name]()))
    torch.manual_seed(3)
    drawn = DataReads().during(lambda apart: [*drawn_batches(apart).rows, torch.get_rng_state().tolist()], one)
    torch.manual_seed(3)
    assert drawn == [*drawn_batches(ORDERS[name]()).rows, torch.get_rng_state().tolist()]
    if isinstance(sampler := own_sampler(drawn_by(one)), Counted):
        assert sampler.epochs == 0
    assert DataReads().during(lambda apart: type(drawn_by(apart)).__name__, one) == type(drawn_by(one)).__name__


def test_no_process_is_left():
    DataReads().once(len, loader(Augmented()))
    with pytest.raises(ZeroDivisionError):
        DataReads().during(lambda apart: 1 / 0, loader(Augmented()))
    assert not multiprocessing.active_children()


def test_tensors_in_memory_are_read_here(monkeypatch):
    monkeypatch.setattr(data_reads, "ReaderProcess", None)
    one = loader()
    assert DataReads().during(lambda apart: apart, one) is one


class Local(Noisy):
    """Gives samples that cannot be sent."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)

    def __getitem__(self, i: int) -> Any:
        class Own(tuple):
            __slots__ = ()

        return Own(super().__getitem__(i))


def test_where_the_process_cannot_serve_a_copy_is_read_and_one_line_says_so(tmp_path, caplog):
    fitted(Stated(), loader(Local()), [InfluenceCallback(samples(2)[:])], tmp_path)
    (line,) = [text for text in warnings_of(caplog) if "process" in text]
    assert "cannot be sent" in line
    assert "from a copy" in line
    assert (tmp_path / "influence" / "epoch_003" / "influences_test_0.npz").exists()


MOVED = {"closure counter", "class", "file"}  # what a copy shares with its original, apart from generators


@pytest.mark.parametrize("kind", [*sorted(KINDS.keys() - MOVED), "workers"])
def test_without_forks_the_fit_is_the_same_too(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(data_reads, "can_fork", lambda: False)
    callback = InfluenceCallback(loaders(kind), every_n_epochs=1, output_dir=tmp_path / "i", overwrite=True)
    with_it, without = run_twice(kind, tmp_path, [callback]), run_twice(kind, tmp_path, [])
    assert equal(with_it, without)
    assert sum("this system forks no processes" in text for text in warnings_of(caplog)) == 2  # one in each fit


class Uncopied(Attributes):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a handle that cannot be copied")


def test_data_that_cannot_be_copied_are_read_with_their_generators_restored(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(data_reads, "can_fork", lambda: False)
    data = Uncopied("torch")
    fitted(Stated(), loader(data), [InfluenceCallback(samples(2)[:])], tmp_path)
    assert sum("a handle that cannot be copied" in text for text in warnings_of(caplog)) == 1


def test_an_error_in_the_process_leaves_it_serving():
    count = itertools.count()

    def fail() -> None:
        raise ValueError(f"number {next(count)}")

    reads: dict[str, Callable[..., object]] = {"fail": fail, "next": lambda: next(count)}
    with ReaderProcess(reads) as process:
        with pytest.raises(ValueError, match="number 0"):
            process.call("fail")
        assert process.call("next") == 1
        assert process.failure is None
    assert next(count) == 0


def test_what_cannot_be_sent_is_a_reason():
    with ReaderProcess({"read": lambda: lambda: 1}) as process:
        with pytest.raises(WorkError, match="cannot be sent to another process"):
            process.call("read")
        assert process.failure is not None


def test_what_is_logged_there_is_logged_here(caplog):
    def read() -> None:
        logging.getLogger("ifloo.test").warning("read %s", "rows")

    with ReaderProcess({"read": read}) as process:
        process.call("read")
    assert warnings_of(caplog) == ["read rows"]


def test_a_note_on_ids_that_is_made_there_is_not_made_again(caplog, monkeypatch):
    monkeypatch.setattr(id_rule, "_noted", set())
    with ReaderProcess({"read": lambda: id_rule.note("ids are positions")}) as process:
        process.call("read")
    id_rule.note("ids are positions")
    assert warnings_of(caplog) == ["ids are positions"]
