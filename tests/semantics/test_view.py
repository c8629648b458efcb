"""What a guest sees of its host: nothing of the network and its processes, all of the files."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

import pytest

from .attempts import Service, guests

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site


def test_the_hosts_network_does_not_show(guest: Guest, site: Site) -> None:
    """Interfaces, addresses, routes, neighbours and sockets in /proc, /sys and over netlink."""
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        script = "cat /proc/net/dev /proc/net/tcp /proc/net/route; ls /sys/class/net"
        shown = guest.run(["sh", "-c", script]).stdout
        shown += guest.run(["ip", "address"]).stdout + guest.run(["ip", "route"]).stdout
        visible = {
            "interface": "up0" in shown,
            "listener": f"0:{service.port:04X}".lower() in shown.lower(),
            "address": site.world.host.addr4 in shown,
            "gateway": site.world.peer.addr4 in shown,
        }
        assert visible == dict.fromkeys(visible, guest.native), shown


@guests
def test_processes_of_the_host_do_not_show(guest: Guest) -> None:
    script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls -d /proc/[0-9]* | wc -l"
    shown = guest.run(["sh", "-c", script]).stdout
    assert "dnsmasq" not in shown
    assert "nginx" not in shown
    assert "xensock run" not in shown
    assert int(shown.split()[-1]) < 10


@guests
def test_the_hosts_namespaces_cannot_be_entered(guest: Guest) -> None:
    script = (
        "nsenter --net=/proc/1/ns/net true 2>/dev/null && echo in; ls /run/netns 2>/dev/null; true"
    )
    shown = guest.run(["sh", "-c", f"{script}; nsenter --net=/run/netns/* true; echo $?"])
    assert shown.stdout.splitlines()[-1] != "0"
    assert "in" not in shown.stdout.splitlines()


def test_files_are_not_confined(guest: Guest) -> None:
    """XenSock confines the network, not files: reading and writing are as natively."""
    (guest.directory / "given").write_text("given\n")
    script = "cat given; echo written >written; id -u; touch /tmp/$$ && rm /tmp/$$ && echo tmp"
    done = guest.run(["sh", "-c", script])
    assert done.stdout == f"given\n{guest.world.user.uid}\ntmp\n", done.stderr
    written = guest.directory / "written"
    assert written.read_text() == "written\n"
    assert written.stat().st_uid == guest.world.user.seen


bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed")
FETCH = ["curl", "-sS", "--max-time", "10"]


def ask(host: object) -> str:
    """Shell text that says `refused` if port 81, where nobody listens, is closed by a rule."""
    script = (
        "import errno, socket\n"
        f"error = socket.socket().connect_ex(('{host}', 81))\n"
        "if error == errno.EACCES: print('refused')"
    )
    return shlex.join(["python3", "-c", script])


@bwrap
def test_bwrap_inside_a_guest(guest: Guest, site: Site) -> None:
    """A sandbox for files within one for the network."""
    wrap = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", str(guest.directory), "--"]
    (guest.directory / "hidden").write_text("x")
    hidden = f"ls {guest.directory} | wc -l"
    script = (
        f"{hidden}; touch /etc/x 2>/dev/null || echo read-only; curl -sS http://{site.world.web4}/;"
        f"{ask(site.world.web4)}"
    )
    done = guest.run([*wrap, "sh", "-c", script], options=("--deny", f"{site.world.web4}:81"))
    refused = "" if guest.native else "refused\n"
    assert done.stdout == f"0\nread-only\nhello from the world\n{refused}", done.stderr
    guest.mediated(1, "connect")


@bwrap
def test_bwrap_around_a_guest(guest: Guest, site: Site) -> None:
    world, directory = site.world, guest.directory
    wrap = ["bwrap", "--dev-bind", "/", "/", "--bind", str(directory), str(directory)]
    wrap += ["--ro-bind", "/etc", "/etc", "--"]
    script = (
        f"touch /etc/x 2>/dev/null || echo read-only; curl -sS http://{world.web4}/;"
        f"{ask(world.web4)}"
    )
    command = guest.command(["sh", "-c", script], ("--deny", f"{world.web4}:81"))
    done = world.host.run([*wrap, *command], user="xstest", cwd=directory, timeout=30)
    refused = "" if guest.native else "refused\n"
    assert done.stdout == f"read-only\nhello from the world\n{refused}", done.stderr
    guest.mediated(1, "connect")
