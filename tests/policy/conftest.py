"""A network beside the host's own, which rules name by `via`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from policykit import DNS, PORT, SERVER, Office
from world.internet import HERE
from world.namespaces import Namespace, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World


@pytest.fixture(scope="module")
def office(world: World) -> Iterator[Office]:
    space = Namespace.create("office", world.user)
    try:
        space.ip(*(f"addr add {address}/32 dev lo" for address in (SERVER, DNS)))
        directory = world.directory / "office"
        directory.mkdir(exist_ok=True)
        conf = directory / "resolv.conf"
        conf.write_text(f"nameserver {DNS}\n")
        log = directory / "servers.log"
        server = space.service([sys.executable, str(HERE / "echo.py"), str(PORT)], log)
        argv = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
        argv += ["--pid-file", "--bind-interfaces", f"--listen-address={DNS}", "--local=/test/"]
        argv += [f"--address=/srv.office.test/{SERVER}", "--address=/local.office.test/127.0.0.1"]
        space.service(argv, log)
        eventually(lambda: {PORT, 53} <= space.listening(), 20, f"the servers, {log}")
        # Its name under /run/netns came later than the host's mount namespace, which does not show it.
        yield Office(f"/proc/{server.pid}/ns/net", conf)
    finally:
        space.close()
