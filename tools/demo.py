"""`make demo`: a web server in one guest, a client in another, the trace of both.

No internet, no root. Neither guest has a network card: the backend of each makes its calls. Exit
status 0 only if the page arrived and the call that should be refused was.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SIOCGIFADDR = 0x8915
PATIENCE = 30.0  # seconds for each of: the server comes up, the client is done, the server ends
PAGE = "It works: served by one guest, fetched by another, and neither has a network card."
XENSOCK = Path(sys.prefix) / "bin" / "xensock"
FETCH = (
    "import sys, urllib.request;"
    "print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode(), end='')"
)


def host_address() -> str | None:
    """An IPv4 address of this host that is not loopback, None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                return address
    return None


def free_port(preferred: int = 8080) -> int:
    """The preferred port, or another one if it is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("error: no free TCP port\nhint: ss -ltn shows who listens")


def say(text: str) -> None:
    print(text, flush=True)


class Guest:
    """A program in a guest, its output shown line by line with the guest's name before it."""

    def __init__(self, name: str, options: Sequence[str], program: Sequence[str]) -> None:
        colour = ["--color", "always"] if sys.stdout.isatty() and not os.getenv("NO_COLOR") else []
        self.name = name
        self.lines: list[str] = []
        command = ["xensock", *colour, "run", "--name", name, *options, "--", *program]
        say(f"\n$ {shlex.join(word for word in command if word not in colour)}")
        self.process = subprocess.Popen(
            [str(XENSOCK), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._show, daemon=True)
        self._reader.start()

    def _show(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            say(f"{self.name:>6} | {line.rstrip()}")

    def wait(self) -> int:
        """The exit status of the guest, once it has ended by itself."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.stop()
            raise SystemExit(f"error: {self.name} did not end in {PATIENCE:.0f} s") from None
        self._reader.join(PATIENCE)
        return status

    def stop(self) -> None:
        """End the guest as Ctrl-C would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE)


def wait_for_server(server: Guest, address: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("error: the server did not come up\nhint: .venv/bin/xensock doctor")


def fetch(url: str) -> list[str]:
    """A command that prints what is at `url`."""
    if shutil.which("curl"):
        return ["curl", "-sS", "--max-time", "20", url]
    return ["python3", "-c", FETCH, url]


def demonstrate(directory: str) -> list[str]:
    """Run both guests; what went wrong."""
    address, port = host_address() or "127.0.0.1", free_port()
    rule = f"loopback:{port}" if address == "127.0.0.1" else f"{address}:{port}"
    say("A web server in a guest. It listens on this host's own addresses.")
    server = Guest(
        "server",
        ["--trace"],
        ["python3", "-u", "-m", "http.server", str(port), "--directory", directory],
    )
    wrong = []
    try:
        wait_for_server(server, address, port)
        say("\nA client in another guest, allowed to connect there and nowhere else.")
        client = Guest(
            "client", ["--allow", rule, "--trace"], fetch(f"http://{address}:{port}/index.html")
        )
        if client.wait() != 0 or not any(PAGE in line for line in client.lines):
            wrong.append("the client did not get the page")
        say("\nThe same client, calling somewhere else: refused before anything leaves this host.")
        refused = Guest("client", ["--allow", rule, "--trace"], fetch("http://169.254.169.254/"))
        if refused.wait() == 0 or not any("EACCES" in line for line in refused.lines):
            wrong.append("the call to another address was not refused")
    finally:
        server.stop()
    if not any("listen(" in line and f":{port})" in line for line in server.lines):
        wrong.append("the server's trace does not show that it listens")
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="xensock-demo-") as directory:
        Path(directory, "index.html").write_text(PAGE + "\n")
        wrong = demonstrate(directory)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        print("hint: .venv/bin/xensock doctor", file=sys.stderr)
        return 1
    say("\nThe page arrived, and the other call was refused.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
