"""The start of a container: from the engine's command line to the exit status of a program that does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xensock import _core
from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.process import PATIENCE, output_of, serving, tool
from xensock.bench.startup import milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xensock.bench.side import Setting

RUNTIME = "xensock"  # what `xensock install --docker` calls it


@contextmanager
def docker(setting: Setting) -> Iterator[Pair]:
    """Milliseconds, with the runtime that dockerd has of its own and with ours; its backend is the installed one."""
    del setting
    engine = tool("docker")
    known = _runtimes(output_of([engine, "info", "--format", "{{json .Runtimes}}"], PATIENCE))
    if RUNTIME not in known:
        raise BenchError(
            f"Docker does not know the runtime {RUNTIME}",
            f"it has {', '.join(known) or 'none'}",
            "sudo xensock install --docker --systemd, and what that says is next",
        )
    plain = output_of([engine, "info", "--format", "{{.DefaultRuntime}}"], PATIENCE).strip()
    if plain == RUNTIME:
        plain = "runc"
    with _image(engine) as image:
        yield _pair(
            [engine, "run", f"--runtime={plain}", *_options(image)],
            [engine, "run", f"--runtime={RUNTIME}", *_options(image)],
        )


@contextmanager
def podman(setting: Setting) -> Iterator[Pair]:
    """Milliseconds, with the runtime that Podman would take and with ours in front of that."""
    engine = tool("podman")
    ours = Path(str(_core.__file__)).with_name("xensock-runtime")
    plain = output_of([engine, "info", "--format", "{{.Host.OCIRuntime.Path}}"], PATIENCE).strip()
    with tempfile.TemporaryDirectory(prefix="xensock-bench-") as place, _image(engine) as image:
        socket = f"{place}/containers.sock"
        backend = [setting.command, "backend", "--containers", socket]
        flags = [
            f"--runtime-flag=xensock-{key}" for key in (f"backend={socket}", f"runtime={plain}")
        ]
        with serving(backend, "listening", on_stderr=True):
            yield _pair(
                [engine, f"--runtime={plain}", "run", *_options(image)],
                [engine, f"--runtime={ours}", *flags, "run", *_options(image)],
            )


def _options(image: str) -> list[str]:
    return ["--rm", "--network=none", image, "/bin/true"]


def _pair(plain: Sequence[str], ours: Sequence[str]) -> Pair:
    for argv in (plain, ours):  # the first run pays for what all later ones find
        milliseconds(argv)
    return Pair(lambda: milliseconds(plain), lambda: milliseconds(ours))


def _runtimes(text: str) -> list[str]:
    try:
        return sorted(json.loads(text) or {})
    except ValueError:
        return []


@contextmanager
def _image(engine: str) -> Iterator[str]:
    """An image with one program, static, which the engine forgets at the end."""
    name = f"xensock-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="xensock-bench-") as place:
        tar = f"{place}/image.tar"
        with tarfile.open(tar, "w") as out:
            out.add(os.path.realpath(tool("busybox")), "bin/true", filter=_anybodys)
        output_of([engine, "import", tar, name], PATIENCE)
    try:
        yield name
    finally:
        subprocess.run([engine, "rmi", "--force", name], capture_output=True, check=False)


def _anybodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.mode = 0o755
    return info
