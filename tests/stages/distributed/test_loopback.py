"""Two processes on one machine meet on loopback: nothing listens where the network reaches it."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT, LONG
from tests.stages.distributed import shared_listeners


def met(**environment: str) -> list[dict]:
    """What each of two processes listens on once they have met."""
    named = ("MASTER_ADDR", "MASTER_PORT", *shared_listeners.INTERFACES)
    kept = {name: value for name, value in os.environ.items() if name not in named}
    env = {**kept, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, shared_listeners.__file__]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONG, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback interface of Linux")
def test_two_processes_listen_on_loopback_only():
    first, other = met()
    assert first["meeting"] in first["ports"]
    assert set(first["hosts"]) | set(other["hosts"]) == {"127.0.0.1"}
    assert first["interfaces"] == other["interfaces"] == ["lo", "=lo"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback interface of Linux")
def test_an_address_or_interface_of_the_users_own_is_kept():
    first, _ = met(MASTER_ADDR="127.0.0.2", GLOO_SOCKET_IFNAME="lo")
    assert "::" in first["hosts"] or "0.0.0.0" in first["hosts"]
    assert first["interfaces"] == ["lo", None]
