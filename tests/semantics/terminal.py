"""An interactive shell on a pseudo-terminal, as a person at a keyboard has it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

from world.namespaces import stop

if TYPE_CHECKING:
    from world.internet import World
    from world.runner import Guest

PROMPT = "[[prompt]] "
SECONDS = 10.0


class Terminal:
    """bash with job control; what is run in it goes through the guest runner's command."""

    def __init__(self, world: World, guest: Guest) -> None:
        self.guest = guest
        self._screen = ""
        self._master, slave = os.openpty()
        self.resize(33, 77)
        # The shell must be able to open its terminal by name.
        world.user.own(slave)
        shell = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
        try:
            self._shell = world.host.popen(
                ["setsid", "--ctty", *shell],
                user="xstest",
                env={"PS1": PROMPT, "HISTFILE": "", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
                cwd=guest.directory,
                stdin=slave,
                stdout=slave,
                stderr=subprocess.STDOUT,
                start_new_session=False,
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        self.expect(PROMPT)
        self.line("stty -echo")  # so that what shows on the screen was printed, not typed
        self.expect(PROMPT)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)  # hangs up: the kernel sends SIGHUP
        stop(self._shell)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wrapped(self, command: str) -> str:
        """The command as it is natively, else within `xensock run`."""
        return shlex.join(self.guest.command(shlex.split(command)))

    def run(self, command: str) -> None:
        """Type a command that runs natively or in a guest; a final & stays the shell's."""
        background = command.endswith("&")
        self.line(self.wrapped(command.removesuffix("&")) + (" &" if background else ""))

    def line(self, text: str) -> None:
        self.type(text + "\n")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> None:
        """Wait until the screen shows `text`, and forget all up to it."""
        self._read_until(re.escape(text))

    def ask_until(self, command: str, text: str) -> None:
        """Give the shell a command again and again until it shows `text`."""
        deadline = time.monotonic() + SECONDS
        while text not in self._screen:
            assert time.monotonic() < deadline, f"never saw {text!r} in {self._screen!r}"
            self.line(command)
            self._read(0.3)
        self.expect(text)

    def status(self) -> int:
        """The exit status of the last command, once the prompt is back."""
        if not self._screen.endswith(PROMPT):
            # Typed ahead, the question could be lost with what Ctrl-C flushes (termios(3), NOFLSH).
            self.expect(PROMPT)
        self.line("echo status=$?")
        return int(self._read_until(r"status=(\d+)")[1])

    def _read_until(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + SECONDS
        while True:
            if found := re.search(pattern, self._screen):
                self._screen = self._screen[found.end() :]
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"never saw {pattern!r} in {self._screen!r}"
            self._read(left)

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            self._screen += os.read(self._master, 65536).decode(errors="replace")
