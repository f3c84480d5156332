"""What worker processes of this machine listen on: loopback only, and TLS with a certificate of the run's own."""

import asyncio
import functools
import sys
from pathlib import Path

import cloudpickle
import dask.config
import psutil
import pytest
from distributed import Client, rpc
from distributed.security import Security

from ifloo.errors import InputError
from ifloo.refit.execution import local_cluster
from ifloo.refit.execution.dask_runner import _client_of as client_of
from tests.conftest import LONG

LOOPBACK = {"127.0.0.1", "::1"}
PATIENCE = 1.0  # seconds in which who has no certificate may try: dask tries again until then


def listening() -> dict[int, set[tuple[str, int]]]:
    """Address and port of every listening socket of this process and of those it started, by process id."""
    me = psutil.Process()
    found = {}
    for process in (me, *me.children(recursive=True)):
        sockets = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        found[process.pid] = {(one.laddr.ip, one.laddr.port) for one in sockets}
    return found


async def call(address: str, function: bytes, security: Security, seconds: float) -> None:
    """Asks the server at an address to run a function, as dask's own clients do."""
    args = security.get_connection_args("client")
    async with rpc(address, timeout=seconds, connection_args=args) as server:
        await asyncio.wait_for(server.run(function=function), seconds)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of the scheduler, the nannies and the workers of a running local cluster, with that cluster."""
    before = listening().get(psutil.Process().pid, set())
    with local_cluster.quiet_dask(), local_cluster.local_workers(2, 2, "cpu") as cluster:
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(2)
            workers = list(client.nthreads())
        nannies = [nanny.address for nanny in cluster.workers.values()]
        yield cluster, before, [cluster.scheduler.address, *nannies, *workers]


def test_every_listener_is_on_loopback(servers):
    _, before, addresses = servers
    found = listening()
    found[psutil.Process().pid] -= before
    sockets = {one for own in found.values() for one in own}
    assert {int(address.rpartition(":")[2]) for address in addresses} <= {port for _, port in sockets}
    assert {host for host, _ in sockets} <= LOOPBACK


@pytest.mark.parametrize("identity", ["none", "another"])
def test_who_has_no_certificate_of_this_run_runs_nothing(servers, tmp_path, identity):
    _, _, addresses = servers
    written = tmp_path / "written"
    function = cloudpickle.dumps(functools.partial(Path.touch, written))
    if identity == "none":
        security, addresses = Security(), [address.replace("tls://", "tcp://") for address in addresses]
    else:
        security = Security.temporary()
    for address in addresses:
        with pytest.raises(OSError):
            asyncio.run(call(address, function, security, PATIENCE))
        assert not written.exists(), address


def test_who_has_it_does(servers, tmp_path):
    """The counterpart without which the refusals above would prove nothing."""
    cluster, _, (_, *addresses) = servers
    for k, address in enumerate(addresses):
        written = tmp_path / str(k)
        asyncio.run(call(address, cloudpickle.dumps(functools.partial(Path.touch, written)), cluster.security, LONG))
        assert written.exists(), address


def test_a_running_cluster_with_tls_is_reached_by_the_certificate_of_dasks_own_settings(servers):
    cluster, _, (address, *_) = servers
    with pytest.raises(InputError) as caught:
        client_of(address)
    assert str(caught.value) == (
        f"refit.cluster = {address} asks for TLS, and dask's settings name no certificate.\n"
        "  Set distributed.comm.tls.ca-file, distributed.comm.tls.client.cert and distributed.comm.tls.client.key "
        "in the configuration of dask to the files that the scheduler was started with."
    )
    tls, ours = "distributed.comm.tls", cluster.security
    named = {f"{tls}.client.cert": ours.tls_client_cert, f"{tls}.client.key": ours.tls_client_key}
    with dask.config.set({f"{tls}.ca-file": ours.tls_ca_file, **named}), client_of(address) as client:
        assert len(client.nthreads()) == 2


def test_without_cryptography_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(InputError) as caught, local_cluster.local_workers(2, 2, "cpu"):
        pass
    assert str(caught.value) == (
        "Worker processes on this machine (refit.devices > 1, refit.cluster = local) are protected by TLS, whose "
        "certificate needs cryptography, which cannot be imported: import of cryptography halted; None in "
        "sys.modules.\n  Install it: pip install 'ifloo[cluster]'"
    )
