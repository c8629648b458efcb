"""A machine with Xen, under QEMU's software emulation: boots a bed (bed.py) and runs commands in its dom0."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_MB = 1800
DOM0_MB = 900


class Failed(Exception):
    """The machine did not do what was asked; the console's last lines say why."""


class Machine:
    """Running from `with` to its end; what its disk is changed by is forgotten.

    payload   a folder whose contents are below /payload in dom0
    cpus      of the machine; dom0 has one
    """

    def __init__(self, bed: Path, payload: Path, scratch: Path, cpus: int = 2) -> None:
        self._bed = bed
        self._payload = payload
        self._scratch = scratch
        self._cpus = cpus
        self._seen = b""
        self._commands = 0

    def __enter__(self) -> Machine:
        archive = self._scratch / "payload.tar"
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(self._payload, ".")
        # A disk has whole sectors.
        with archive.open("ab") as out:
            out.truncate(-(-archive.stat().st_size // 65536) * 65536)
        ours, theirs = socket.socketpair()
        bed = self._bed
        hypervisor = f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MB}M,max:{DOM0_MB}M"
        hypervisor += " dom0_max_vcpus=1 dom0_vcpus_pin noreboot"
        kernel = f"{bed}/vmlinuz console=hvc0 quiet loglevel=3 panic=-1 net.ifnames=0"
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt", "-m", str(MEMORY_MB),
            "-smp", str(self._cpus), "-display", "none", "-nodefaults", "-no-reboot",
            "-kernel", f"{bed}/xen", "-append", hypervisor, "-initrd", f"{kernel},{bed}/initrd.gz",
            "-drive", f"file={bed}/dom0.img,if=virtio,format=raw,snapshot=on",
            "-drive", f"file={archive},if=virtio,format=raw,readonly=on",
            "-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console",
        ]  # fmt: skip
        self._log = (self._scratch / "console.log").open("wb", buffering=0)
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stderr=self._log
        )
        theirs.close()
        self._console = ours
        try:
            self._expect(rb"DOM0-READY\r", 120)
            self._expect(rb"# $", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._console.close()
        self._log.close()

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        """The exit status and output of a short command line in dom0. Raises Failed."""
        self._commands += 1
        end = f"END{self._commands}"
        self._console.sendall(f'{command}; echo "{end[:3]}""{end[3:]} $?"\n'.encode())
        found = self._expect(rf"(?s)^.*?\n(.*?){end} (\d+)\r".encode(), timeout)
        return int(found[2]), found[1].decode(errors="replace").replace("\r", "")

    def _expect(self, pattern: bytes, timeout: float) -> re.Match[bytes]:
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self._seen)):
            left = deadline - time.monotonic()
            if b"Kernel panic" in self._seen:
                raise Failed(f"a kernel panicked:\n{self._tail()}")
            if left <= 0:
                raise Failed(f"nothing like {pattern!r} within {timeout:g} s:\n{self._tail()}")
            if not select.select([self._console], [], [], min(left, 1))[0]:
                if self._process.poll() is not None:
                    raise Failed(f"the machine ended:\n{self._tail()}")
                continue
            data = self._console.recv(65536)
            if not data:
                raise Failed(f"the machine ended:\n{self._tail()}")
            self._log.write(data)
            self._seen += data
        self._seen = self._seen[found.end() :]
        return found

    def _tail(self) -> str:
        return self._seen[-3000:].decode(errors="replace")
