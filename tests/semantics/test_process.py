"""`xensock run` as a process: what it passes on, how it ends, and what stays behind (nothing)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.namespaces import alive, describe, eventually

from .conftest import GUESTS
from .terminal import PROMPT, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World
    from world.runner import Guest

    from .conftest import Site

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
one_guest = pytest.mark.parametrize("guest", GUESTS[:1], indirect=True)


def status(returncode: int) -> int:
    """As a shell shows it: 128+n for signal n."""
    return 128 - returncode if returncode < 0 else returncode


def processes(world: World) -> set[int]:
    """Every live process started as this world's user, whatever namespace it is in by now."""
    home = f"HOME={world.user.home}\0".encode()
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if home in Path("/proc", entry, "environ").read_bytes() and alive(int(entry)):
                    found.add(int(entry))
    return found


@pytest.fixture(autouse=True)
def _nothing_left_behind(world: World) -> Iterator[None]:
    """No process outlives a test of this file, and with the last one its namespaces end."""
    before = processes(world)
    yield
    try:
        eventually(lambda: processes(world) <= before, 5, "all processes ended")
    except AssertionError as error:
        for pid in processes(world) - before:
            error.add_note(describe(pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise


# --- what passes through ---------------------------------------------------------------------------


def test_input_output_and_errors_pass_through(guest: Guest) -> None:
    script = "cat; echo to stderr >&2"
    done = guest.run(["sh", "-c", script], input="line\n" * 100_000)
    assert (done.stdout, done.stderr, done.returncode) == ("line\n" * 100_000, "to stderr\n", 0)


def test_bytes_are_not_touched(guest: Guest) -> None:
    data = bytes(range(256)) * 1000
    assert guest.run(["cat"], input=data, text=False).stdout == data


def test_no_input_is_an_end(guest: Guest) -> None:
    assert guest.run(["cat"]).stdout == ""


def test_environment_and_directory_are_kept(guest: Guest, world: World) -> None:
    mine = {"ODD": "a b\n'\"$x", "EMPTY": "", "PATH": "/opt/none:/usr/bin:/bin"}
    script = "import os, json; print(json.dumps([dict(os.environ), os.getcwd()]))"
    argv = [world.python, "-c", script]
    native = world.host.run(argv, user="xstest", env=mine, cwd=guest.directory)
    assert guest.run(argv, env=mine).stdout == native.stdout


def test_arguments_are_sacred(guest: Guest) -> None:
    words = ["--allow", "", "a b", "$HOME", "--", "-x", "*", "ö\n"]
    done = guest.run(["printf", "<%s>", *words])
    assert done.stdout == "".join(f"<{word}>" for word in words)


def test_standing_of_the_process_is_kept(guest: Guest, world: World) -> None:
    """Ids, umask, limits, niceness, signal dispositions and open descriptors."""
    script = """
import json, os, resource, signal
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "umask": os.umask(0),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "limits": [resource.getrlimit(n) for n in range(16)],
    "ignored": [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "open": sorted(os.listdir("/proc/self/fd")),
    "cpus": sorted(os.sched_getaffinity(0)),
    "host": os.uname().nodename,
    "dumpable": os.access("/proc/self/environ", os.R_OK),
}))"""
    argv = ["sh", "-c", 'umask 027; ulimit -n 512; trap "" USR1 INT; exec nice -n 3 "$@"', "sh"]
    held = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
os.execvp(sys.argv[1], sys.argv[1:])"""
    argv = [*argv, world.python, "-c", held]
    program = [world.python, "-c", script]
    native = world.host.run([*argv, *program], user="xstest", cwd=guest.directory)
    done = world.host.run(
        [*argv, *guest.command(program)], user="xstest", cwd=guest.directory, timeout=20
    )
    assert (done.stdout, done.returncode) == (native.stdout, 0), done.stderr


def test_inherited_descriptors_work(guest: Guest, world: World) -> None:
    command = guest.command(["sh", "-c", "cat <&7; echo out >&8"])
    script = 'printf seven >in; exec 7<in 8>out; exec "$@"'
    done = world.host.run(["sh", "-c", script, "sh", *command], user="xstest", cwd=guest.directory)
    assert (done.stdout, (guest.directory / "out").read_text()) == ("seven", "out\n"), done.stderr


def test_scripts_and_relative_paths(guest: Guest) -> None:
    script = guest.directory / "script"
    script.write_text('#!/bin/sh\necho "$0 $1"\n')
    script.chmod(0o755)
    assert guest.run(["./script", "one"]).stdout == "./script one\n"
    path = {"PATH": f"{guest.directory}:/usr/bin:/bin"}
    assert guest.run(["script", "two"], env=path).stdout == f"{script} two\n"


# --- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3, 125, 127, 255])
def test_exit_status_is_the_programs(guest: Guest, code: int) -> None:
    assert guest.run(["sh", "-c", f"exit {code}"]).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_death_by_signal_is_128_more(guest: Guest, number: signal.Signals) -> None:
    done = guest.run(["sh", "-c", f"ulimit -c 0; kill -{int(number)} $$"])
    assert status(done.returncode) == 128 + number


@one_guest
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["no-such-program-anywhere"], 127),
        (["./absent"], 127),
        (["/"], 126),
        (["./plain"], 126),
        (["./foreign"], 126),
    ],
)
def test_what_cannot_be_started(guest: Guest, argv: list[str], code: int) -> None:
    (guest.directory / "plain").write_text("not executable\n")
    foreign = guest.directory / "foreign"
    foreign.write_text("#!/no/such/interpreter\n")
    foreign.chmod(0o755)
    done = guest.run(argv)
    expected = 127 if argv == ["./foreign"] and done.returncode == 127 else code
    assert done.returncode == expected
    message = done.stderr
    assert message.startswith("error: ")
    assert "hint: " in message
    assert argv[0] in message
    assert "Traceback" not in message


@one_guest
@pytest.mark.parametrize(
    "options",
    [
        ("--allow", "300.1.2.3"),
        ("--deny", "connect:web.test:99999"),
        ("--publish", "x"),
        ("--no-such-option",),
        ("--trace-file", "/no/such/directory/trace"),
    ],
)
def test_our_own_failures_are_125_with_a_hint(guest: Guest, options: tuple[str, ...]) -> None:
    done = guest.run(["true"], options=options)
    assert (done.returncode, done.stdout) == (125, "")
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@one_guest
def test_a_guest_in_a_guest_is_refused_clearly(guest: Guest) -> None:
    done = guest.run([*guest.xensock, "run", "--", "true"])
    assert done.returncode == 125
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away(guest: Guest, world: World) -> None:
    """As in `xensock run -- yes | head`: SIGPIPE ends the program, and then the command."""
    process = world.host.popen(
        guest.command(["yes"]), user="xstest", stdout=subprocess.PIPE, cwd=guest.directory
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert status(process.wait(10)) == 128 + signal.SIGPIPE


# --- signals ---------------------------------------------------------------------------------------

TRAP = """
import os, signal, sys
def handle(number, frame):
    print("got", number, flush=True)
    os._exit(7)
for number in map(int, sys.argv[1:]):
    signal.signal(number, handle)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGQUIT"])
def test_signals_sent_to_the_command_reach_the_program(guest: Guest, name: str) -> None:
    number = signal.Signals[name]
    running = guest.popen([guest.world.python, "-c", TRAP, str(int(number))])
    eventually(lambda: running.stdout, 10, "the program is ready")
    running.process.send_signal(number)
    assert running.wait(10) == 7
    assert running.stdout == f"ready\ngot {int(number)}\n"


def test_untrapped_sigterm_ends_both(guest: Guest) -> None:
    running = guest.popen(["sh", "-c", "echo ready; exec sleep 100"])
    eventually(lambda: running.stdout, 10, "the program is ready")
    running.process.terminate()
    assert status(running.wait(10)) == 128 + signal.SIGTERM


@guests
def test_nothing_survives_the_commands_sudden_death(guest: Guest) -> None:
    """SIGKILL to `xensock run`: the fixture sees that no process is left."""
    running = guest.popen(["sh", "-c", "echo ready; sleep 100 & setsid sleep 101 & wait"])
    eventually(lambda: running.stdout, 10, "the program is ready")
    running.process.kill()
    running.wait(10)


# --- children that outlive the program ---------------------------------------------------------------

DAEMON = """
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(sys.argv[1])))
listener.listen()
if os.fork():
    os._exit(4)
os.setsid()
if os.fork():
    os._exit(0)
null = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
while True:
    conn, _ = listener.accept()
    out = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    out.sendall(b"asked")
    conn.sendall(out.recv(100))
    if conn.recv(10) == b"quit":
        break
    conn.close()
"""


def test_daemon_goes_on_until_it_ends(guest: Guest, site: Site) -> None:
    """The command returns with the program's status; its daemon still accepts and connects."""
    world, port = guest.world, guest.port()
    argv = [world.python, "-c", DAEMON, str(port), world.peer.addr4, str(site.ports["echo"])]
    assert guest.run(argv, timeout=20).returncode == 4
    for word in (b"more", b"quit"):
        with world.peer.connect(world.host.addr4, port) as sock:
            assert sock.recv(100) == b"asked"
            sock.sendall(word)
            assert sock.recv(100) == b""
    guest.mediated(2, "connect")


def test_background_child_is_not_waited_for(guest: Guest) -> None:
    """It ends when this test says so, and the command has ended by then."""
    fifo, heard = guest.directory / "fifo", guest.directory / "heard"
    script = "mkfifo fifo; cat fifo >heard 2>/dev/null </dev/null & echo started"
    running = guest.popen(["sh", "-c", script])
    assert running.wait(20) == 0
    assert running.stdout == "started\n"
    fifo.write_text("now\n")
    eventually(lambda: heard.read_text() == "now\n", 5, "the child goes on")


@guests
def test_orphans_are_reaped(guest: Guest) -> None:
    """By the guest's own init; natively that is the machine's business."""
    script = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
def zombies():
    states = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            owner = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue
        states.append(fields[0] == "Z" and owner == os.getuid())
    return any(states)
deadline = time.monotonic() + 5
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
print(zombies())
"""
    assert guest.run([guest.world.python, "-c", script]).stdout == "False\n"


# --- a terminal ------------------------------------------------------------------------------------


@pytest.fixture
def terminal(world: World, guest: Guest) -> Iterator[Terminal]:
    """An interactive shell with job control on a pseudo-terminal."""
    with Terminal(world, guest) as shell:
        yield shell


def test_control_c_ends_the_program(terminal: Terminal) -> None:
    terminal.run("sh -c 'echo ready; exec sleep 100'")
    terminal.expect("ready")
    terminal.type("\x03")
    assert terminal.status() == 130


def test_control_backslash_quits(terminal: Terminal) -> None:
    terminal.run("sh -c 'ulimit -c 0; echo ready; exec sleep 100'")
    terminal.expect("ready")
    terminal.type("\x1c")
    assert terminal.status() == 131


def test_control_c_is_the_programs_to_handle(terminal: Terminal) -> None:
    terminal.run(
        "sh -c 'trap \"echo caught; exit 5\" INT; echo ready; while :; do sleep 0.05; done'"
    )
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("caught")
    assert terminal.status() == 5


def test_control_z_stops_and_fg_goes_on(terminal: Terminal) -> None:
    terminal.run("sh -c 'echo ready; exec cat'")
    terminal.expect("ready")
    for turn in ("first", "second"):
        terminal.type("\x1a")
        # The terminal flushes its output after it has sent the signal, and the shell's word may be among it.
        terminal.ask_until("jobs", "Stopped")
        terminal.expect(PROMPT)
        terminal.line("fg")
        terminal.line(f"{turn} line")
        terminal.expect(f"{turn} line")
    terminal.type("\x04")
    assert terminal.status() == 0


def test_background_job_that_reads_is_stopped(terminal: Terminal) -> None:
    terminal.run("cat &")
    terminal.ask_until("jobs", "Stopped")
    terminal.line("fg")
    terminal.line("typed")
    terminal.expect("typed")
    terminal.type("\x03")
    assert terminal.status() == 130


def test_background_job_runs_on(terminal: Terminal) -> None:
    terminal.run("sh -c 'sleep 0.2; exit 9' &")
    terminal.line("wait %1")
    assert terminal.status() == 9


def test_the_terminal_is_the_programs(terminal: Terminal) -> None:
    terminal.run("sh -c 'stty size; tty; echo direct >/dev/tty'")
    terminal.expect("33 77")
    terminal.expect("/dev/pts/")
    terminal.expect("direct")
    assert terminal.status() == 0


def test_window_size_changes_arrive(terminal: Terminal) -> None:
    terminal.run(
        "sh -c 'trap \"stty size; exit 6\" WINCH; echo ready; while :; do sleep 0.05; done'"
    )
    terminal.expect("ready")
    terminal.resize(20, 50)
    terminal.expect("20 50")
    assert terminal.status() == 6


def test_pipeline_in_a_shell(terminal: Terminal) -> None:
    terminal.line(f"echo through | {terminal.wrapped('tr a-z A-Z')} | cat")
    terminal.expect("THROUGH")
    assert terminal.status() == 0
