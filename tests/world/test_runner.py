"""The runner: same words natively and in a guest, and it cleans up."""

import subprocess
import sys
from pathlib import Path

import pytest

from .fixtures import only
from .namespaces import eventually
from .runner import Guest, install_copy

NATIVE = pytest.mark.parametrize("guest", only("native"), indirect=True)
GUESTS = pytest.mark.parametrize("guest", only("direct", "relay"), indirect=True)


def test_run_gives_output_and_status(guest):
    done = guest.run(["sh", "-c", "cat; echo err >&2; exit 3"], input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n")


def test_calls_are_seen(guest):
    guest.run(["curl", "-sS", "-o", "out", f"http://{guest.world.web4}/"], check=True)
    assert (guest.directory / "out").read_text() == "hello from the world\n"
    guest.mediated(1, "connect", f"{guest.world.web4}:80")
    assert guest.native == (guest.calls == [])


@GUESTS
def test_too_few_calls_are_noticed(guest):
    guest.run(["true"], check=True)
    with pytest.raises(AssertionError, match="1 mediated calls connect"):
        guest.mediated(1, "connect", timeout=0.1)


@pytest.mark.slow
def test_a_checkout_that_only_root_may_read_is_installed_for_the_user(world):
    command = install_copy(world, Path(sys.executable))
    shown = world.host.run([str(command), "--version"], user="xstest")
    assert shown.returncode == 0, shown.stderr
    where = [str(command.parent / "python"), "-c", "import xensock; print(xensock.__file__)"]
    assert str(world.directory) in world.host.run(where, user="xstest").stdout


@NATIVE
def test_waits_until_a_server_listens(guest):
    port = guest.port()
    argv = [guest.world.python, "-m", "http.server", "--bind", guest.world.host.addr4, str(port)]
    with guest.popen(argv, listens=port) as server:
        guest.world.peer.connect(guest.world.host.addr4, port).close()
        assert server.process.poll() is None
    assert server.process.poll() is not None


@NATIVE
def test_a_server_that_ends_early_is_reported_with_its_words(guest):
    with pytest.raises(AssertionError, match="ended with 4") as caught:
        guest.popen(["sh", "-c", "echo because >&2; exit 4"], listens=guest.port())
    assert "because" in "\n".join(caught.value.__notes__)


@NATIVE
def test_a_run_that_takes_too_long_is_killed_with_its_children(guest):
    before = guest.world.host.pids()
    with pytest.raises(subprocess.TimeoutExpired):
        guest.run(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.5)
    eventually(lambda: guest.world.host.pids() <= before, 5, "the children ended")


def test_what_stays_behind_fails_the_test(world):
    runner = Guest.create(world, "native", [])
    escape = "setsid sh -c '>away; exec sleep 1001' >log 2>&1 & until [ -e away ]; do :; done"
    runner.run(["sh", "-c", escape], check=True)
    with pytest.raises(AssertionError, match="sleep 1001"):
        runner.close(grace=0.1)
    assert not runner.directory.exists()
