"""Refits on the workers of a cluster: the rows of refits in process, whatever fails on the way."""

import copy
import functools
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

import dask.config
import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError, WorkError
from ifloo.models import LogisticRegression
from ifloo.refit import LeaveOneOut, NewtonFinish, RefitSettings, Refitter, TrainerSettings
from ifloo.refit.execution import local_cluster
from ifloo.refit.execution.job import RefitRequest
from ifloo.refit.execution.runner import units
from ifloo.solvers import Nystrom
from ifloo.store import NULL_ID, LossFile

N, D, C, M = 30, 4, 3, 2
IDS = [3, 8, 21, 5, 17, 29]


class Poisoned(LogisticRegression):
    """A model that cannot do without sample 8, or is not to be trained at all."""

    def __init__(self, fatal=()):
        super().__init__(num_features=D, num_classes=C, l2_reg=0.1)
        self.fatal = fatal

    def on_train_start(self):
        super().on_train_start()
        gone = self.sample_weights.ids.tolist()
        if gone == [8]:
            raise WorkError("Sample 8 holds it all together.")
        if gone and gone[0] in self.fatal:
            raise InputError(f"Sample {gone[0]} must stay.")


def dataset():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(C, (N,), generator=generator))


def refitter(base):
    return Refitter(
        start=functools.partial(copy.deepcopy, base),
        loader=functools.partial(DataLoader, dataset(), batch_size=N),
        trainer_settings=TrainerSettings(accelerator="cpu"),
        finish=NewtonFinish(tolerance=1e-12, preconditioner=Nystrom(rank=4)),
        seed=0,
    )


@functools.cache
def trained():
    return refitter(LogisticRegression(num_features=D, num_classes=C, l2_reg=0.1)).fit().module


def leaving(folder, module=None, **settings):
    base = module or trained()
    return LeaveOneOut(
        base=base,
        refitter=refitter(base),
        queries=dataset()[:M],
        files=[LossFile(folder / f"{t}.jsonl") for t in range(M)],
        null_files=[LossFile(folder / "null" / f"{t}.jsonl", "draw") for t in range(M)],
        n=N,
        settings=RefitSettings(null_refits=2, **settings),
    )


def rows(leave_one_out):
    """All rows, the null refit first, without what differs from run to run."""
    every = []
    for file in [*leave_one_out.files, *leave_one_out.null_files]:
        found = [row.to_json() for row in file.rows().values()]
        if file.key == "id":
            assert found[0]["id"] == NULL_ID
        every.append(sorted(found, key=lambda row: (row["id"], row.get("draw"))))
        for row in every[-1]:
            assert row.pop("seconds") > 0
    return every


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    alone = leaving(tmp_path_factory.mktemp("alone"), replicas=1)
    alone.run(IDS, control_ids=[5])
    return rows(alone)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Address of a cluster of two worker processes, as its owner would start it."""
    folder = str(tmp_path_factory.mktemp("dask"))
    how = {"local_directory": folder, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with dask.config.set({"temporary-directory": folder}), LocalCluster(2, threads_per_worker=1, **how) as cluster:
        yield cluster.scheduler_address


def crew():
    return [p for p in psutil.Process().children() if any("spawn_main" in word for word in p.cmdline())]


@pytest.mark.slow
def test_workers_have_their_share_of_the_machine_and_leave_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    before, workers = dict(os.environ), []

    def interrupted():
        with local_cluster.quiet_dask(), local_cluster.local_workers(3, 2, "auto") as cluster:
            workers.extend(crew())
            with Client(cluster, set_as_default=False) as client:
                found = client.run(lambda: dict(os.environ))
            for environments in (found.values(), [p.environ() for p in workers]):  # the latter: before Python began
                assert {e["CUDA_VISIBLE_DEVICES"] for e in environments} == {"4", "6"}
                assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}
            assert all(before.get(name) == value for name, value in os.environ.items() if "DASK" not in name)
            for p in workers:  # Ctrl-C reaches every process of a terminal, and is for the main one
                blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{p.pid}/status").read_text(), re.MULTILINE)
                assert int(blocked.group(1), 16) & 1 << (signal.SIGINT - 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(workers) == 2
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    assert not list(tmp_path.iterdir())


def test_more_devices_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError) as caught, local_cluster.local_workers(2, 2, "gpu"):
        pass
    assert str(caught.value) == (
        "refit.devices = 2, and this machine shows 1 GPUs.\n"
        "  Give at most --refit.devices=1, or --trainer.accelerator=cpu."
    )


def test_a_unit_is_cut_where_it_is_full_and_the_null_refit_is_first():
    wanted = [RefitRequest(NULL_ID), RefitRequest(NULL_ID, 1), *map(RefitRequest, IDS)]
    assert units(wanted, 3) == [
        (RefitRequest(NULL_ID),),
        (RefitRequest(NULL_ID, 1), RefitRequest(3), RefitRequest(8)),
        (RefitRequest(21), RefitRequest(5), RefitRequest(17)),
        (RefitRequest(29),),
    ]


def test_units_of_several_give_the_rows_of_one_by_one(in_process, tmp_path):
    together = leaving(tmp_path, replicas=4)
    assert together.recorded() == {"devices": 1, "cluster": None, "path": "chord Newton with one factor", "unit": 4}
    together.run(IDS, control_ids=[5])
    for ours, theirs in zip(rows(together), in_process, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-11)  # ‖∇L_t‖ ‖∇J‖ / μ
            assert {k: a.get(k) for k in ("id", "draw", "control")} == {k: b.get(k) for k in ("id", "draw", "control")}


def test_the_workers_of_a_running_cluster_give_the_rows_of_this_process(in_process, running, tmp_path):
    there = leaving(tmp_path, replicas=1, cluster=running)
    there.run(IDS[:2], control_ids=[5])
    there.run(IDS, control_ids=[5])  # a second run goes on where the first ended
    assert_same(rows(there), in_process)


def test_a_poisoned_unit_is_given_up_after_three_tries_and_all_others_are_kept(running, tmp_path, caplog):
    poisoned = leaving(tmp_path, Poisoned(), replicas=1, cluster=running)
    with pytest.raises(WorkError) as caught:
        poisoned.run(IDS, control_ids=[])
    assert str(caught.value) == (
        "Given up after three tries each: refits with ids [8].\n  The last error: Sample 8 holds it all together.\n"
        "  What is finished is kept; the same command tries these again."
    )
    tries = [f"refits [8] failed, try {k} of 3: Sample 8 holds it all together." for k in (1, 2)]
    assert [x for x in caplog.messages if "failed" in x] == tries
    for row in poisoned.files[0].rows(), poisoned.files[1].rows():
        assert set(row) == {NULL_ID, *IDS} - {8}


def test_wrong_input_is_told_as_such_and_at_once(running, tmp_path):
    wrong = leaving(tmp_path, Poisoned(fatal=(3, 21)), replicas=1, cluster=running)
    with pytest.raises(InputError, match=r"^Sample (3|21) must stay\.$"):
        wrong.run(IDS, control_ids=[])


def test_a_model_that_cannot_travel_is_told(tmp_path):
    tied = LogisticRegression(num_features=D, num_classes=C)
    tied.connection = sys._getframe()
    with pytest.raises(InputError) as caught:
        leaving(tmp_path, tied, replicas=1, cluster="local").run(IDS, control_ids=[])
    assert re.fullmatch(
        r"This model or its data cannot be sent to worker processes: TypeError: cannot pickle 'frame' object \(.*\)\.\n"
        r"  What cannot travel .*; or leave refit\.cluster and refit\.devices out, to refit in this process\.",
        str(caught.value),
    )


def test_no_scheduler_is_told_within_ten_seconds(tmp_path):
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        leaving(tmp_path, replicas=1, cluster="tcp://127.0.0.1:1").run(IDS, control_ids=[])
    assert time.monotonic() - begun < 10
    assert str(caught.value) == (
        "There is no dask scheduler at tcp://127.0.0.1:1 (refit.cluster): no answer in 4 seconds.\n"
        "  Start one (`dask scheduler`, and `dask worker ADDRESS` on each machine) and give the address it prints, or "
        "use refit.cluster: local."
    )


@pytest.mark.parametrize("asked", [{"devices": 2}, {"cluster": "local"}, {"cluster": "tcp://host:8786"}])
def test_without_dask_the_error_says_what_to_install(tmp_path, monkeypatch, asked):
    for name in [
        x for x in sys.modules if x in ("ifloo.refit.execution.dask_runner", "ifloo.refit.execution.local_cluster")
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("dask", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    leaving(tmp_path / "alone", replicas=1).run(IDS[:1], control_ids=[])  # which needs none of it
    with pytest.raises(InputError) as caught:
        leaving(tmp_path / "asked", replicas=1, **asked).run(IDS, control_ids=[])
    assert re.fullmatch(
        r"refit\.devices > 1 and refit\.cluster need dask\.distributed, which cannot be imported: .*\.\n"
        r"  Install it: pip install 'ifloo\[cluster\]'",
        str(caught.value),
    )


REFUSED = {
    "no device": ({"devices": 0}, "refit.devices must be >= 1, got 0."),
    "no address": (
        {"cluster": "slurm"},
        "refit.cluster must be local, tcp://host:port or null, got 'slurm'.\n"
        "  The address is the one that `dask scheduler` prints.",
    ),
    "both": (
        {"cluster": "tcp://host:8786", "devices": 2},
        "refit.devices = 2 starts workers on this machine, and refit.cluster = tcp://host:8786 has its own.\n"
        "  Leave one of them out.",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InputError) as caught:
        RefitSettings(**settings)
    assert str(caught.value) == message
