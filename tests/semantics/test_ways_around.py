"""Ways around the backend that are known, each tried in a guest: none leads out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.namespaces import eventually

from .attempts import Service, guests
from .observing import addresses, in_rule, observe

if TYPE_CHECKING:
    from collections.abc import Callable

    from world.runner import Guest

    from .conftest import Site


@guests
@pytest.mark.parametrize("version", [4, 6])
def test_ways_around(guest: Guest, site: Site, compiled: Callable[..., Path], version: int) -> None:
    peer, _ = addresses(site, version)
    with Service(site.world.peer.listen(peer)) as service:
        argv = [str(compiled("ways")), str(version), peer, str(service.port)]
        done = dict(observe(guest, argv, options=("--deny", in_rule(peer, service.port))))
        assert service.clients == []
    assert done.pop("deferred connect") in ("EACCES", "EOPNOTSUPP")
    assert done.pop("packet") in ("EPERM", "EAFNOSUPPORT")
    no_family = dict.fromkeys(("vsock", "xdp", "bluetooth", "smc"), "EAFNOSUPPORT")
    assert done == no_family | {
        "multipath": "EPROTONOSUPPORT",
        "raw": "EPERM",
        "sctp": "EPROTONOSUPPORT",
        "netfilter": "EPROTONOSUPPORT",
        "connect": "EACCES",
        "fast open": "EOPNOTSUPP",
        "fast open by sendmsg": "EOPNOTSUPP",
        "fast open by sendmmsg": "EOPNOTSUPP",
        "bind to a device": "EPERM",
        "mark": "EPERM",
        "repair": "EPERM",
        "interface flags": "EPERM",
        "io_uring": "ENOSYS",
        "parent's memory": "EPERM",
        "init's descriptors": "EPERM",
    }


CONFINE = Path(__file__).parents[1] / "unit" / "doctor" / "confine.py"


@pytest.mark.parametrize("guest", ["relay"], indirect=True)
@pytest.mark.parametrize("refused", ["landlock:ENOSYS", "landlock:EOPNOTSUPP"])
def test_without_landlock(
    guest: Guest, site: Site, compiled: Callable[..., Path], refused: str
) -> None:
    """A kernel without it, or where it is switched off: bytes go by the relay, and nothing leads around it."""
    world = site.world
    peer, _ = addresses(site, 4)
    python = Path(guest.xensock[0]).with_name("python")
    fetch = f"curl -sS http://{world.web4}/"
    with Service(world.peer.listen(peer)) as service:
        script = f'{fetch}; exec "$@"'
        argv = ["sh", "-c", script, "sh", str(compiled("ways")), "4", peer, str(service.port)]
        options = ("--deny", f"{peer}:{service.port}", "--datapath", "auto")
        done = world.host.run(
            [str(python), str(CONFINE), refused, "--", *guest.command(argv, options)],
            user="xstest",
            cwd=guest.directory,
        )
        assert service.clients == []
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "hello from the world"
    seen = {line["say"]: line["got"] for line in map(json.loads, lines)}
    closed = ("raw", "bind to a device", "mark", "repair", "interface flags")
    assert {seen[what] for what in closed} == {"EPERM"}
    assert (seen["connect"], seen["io_uring"]) == ("EACCES", "ENOSYS")
    allowed = [call for call in guest.calls if call["decision"] == "allow"]
    assert {call["datapath"] for call in allowed} == {"relay"}


@pytest.mark.parametrize("version", [4, 6])
def test_address_changed_while_it_is_judged(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    """Thousands of calls, and a thread that rewrites the sockaddr all the time: the refused port is never reached."""
    peer, _ = addresses(site, version)
    with Service(site.world.peer.listen(peer)) as refused:
        ports = [str(site.ports["echo"]), str(refused.port)]
        argv = [str(compiled("flip")), str(version), peer, *ports, "4000"]
        options = () if guest.native else ("--deny", in_rule(peer, refused.port))
        seen = dict(observe(guest, argv, options=options))
        by_rule = "0" if guest.native else "1"
        assert seen == {"connected": "1", "refused": by_rule, "other outcomes": "0"}
        assert bool(refused.clients) == guest.native


@pytest.mark.parametrize("version", [4, 6])
def test_a_static_program_is_judged_as_any(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    """What is preloaded into programs is not in one that is static and calls the kernel itself."""
    peer, _ = addresses(site, version)
    with Service(site.world.peer.listen(peer)) as service:
        ports = [str(site.ports["echo"]), str(service.port)]
        argv = [str(compiled("static", "-static")), str(version), peer, *ports]
        options = () if guest.native else ("--deny", in_rule(peer, service.port))
        seen = dict(observe(guest, argv, options=options))
        assert seen["connect"] == "0"
        if guest.native:
            assert seen["refused"] == "EINPROGRESS"
            eventually(lambda: service.clients, 10, "its connection")
        else:
            assert seen["refused"] == "EACCES"
            assert service.clients == []


def test_system_calls_by_the_32_bit_entry_end_the_program(
    guest: Guest, compiled: Callable[..., Path]
) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 has such an entry")
    done = guest.run([str(compiled("foreign"))])
    if not guest.native:
        assert done.returncode == 128 + signal.SIGSYS
    elif done.returncode == -signal.SIGSEGV:
        pytest.skip("this kernel has no 32-bit entry")
    else:
        assert done.stdout == "1\n"


@guests
def test_a_dead_backend_leaves_no_way_out(guest: Guest, site: Site) -> None:
    """Fail closed: what the guest tries after its backend was killed reaches nobody."""
    peer = site.world.peer
    before = site.world.host.pids()
    read_end, write_end = os.pipe()
    with Service(peer.listen(peer.addr4)) as service:
        running = guest.popen([*site.probe("attempt.py"), "each"], stdin=read_end)
        os.close(read_end)
        try:
            line = f"connect {peer.addr4} {service.port}\n".encode()
            os.write(write_end, line)
            eventually(lambda: running.stdout, 15, "the first connect")
            assert running.stdout == '"ok"\n'
            # All of ours but the command the shell waits for: the backend is among them.
            for pid in site.world.host.pids() - before - {running.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                os.write(write_end, line)
        finally:
            os.close(write_end)
        running.wait(15)
        assert running.stdout.count('"ok"') == 1
        assert len(service.clients) == 1
