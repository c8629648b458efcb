"""Who may bind ports below 1024."""

from __future__ import annotations

import os
import subprocess

import pytest

from xensock.supervisor import privileged

PORT = 80
TRIES = f"""
import os, socket, sys
sock = socket.socket()
try:
    sock.bind(("127.0.0.1", {PORT}))
    print("bound", flush=True)
except PermissionError:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_privileged_ports() -> None:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as start:
        first = int(start.read())
    assert privileged.may_bind(os.getpid(), max(first, 1024))
    assert privileged.may_bind(2**22 + 1, PORT) is False  # nobody
    if first > PORT:
        with open("/proc/self/status") as status:
            (caps,) = [int(line.split()[1], 16) for line in status if line.startswith("CapEff:")]
        assert privileged.may_bind(os.getpid(), PORT) is (
            os.geteuid() == 0 and bool(caps >> 10 & 1)
        )


@pytest.mark.parametrize(
    "unshared",
    [
        ("--user", "--map-root-user", "--net"),
        # Its network is of a namespace above.
        ("--user", "--map-root-user", "--net", "unshare", "--user", "--map-root-user"),
    ],
    ids=["own", "above"],
)
def test_a_network_of_its_own_is_ruled_as_the_kernel_says(unshared: tuple[str, ...]) -> None:
    command = ["unshare", *unshared, "python3", "-c", TRIES]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            assert process.stdin is not None
            process.stdin.close()
            assert process.stderr is not None
            pytest.skip(f"no user namespaces: {process.stderr.read().strip()}")
        assert privileged.rules_its_network(process.pid) is (said == "bound\n")
        assert said == ("bound\n" if unshared[-1] == "--net" else "refused\n")
    assert privileged.rules_its_network(process.pid) is False
