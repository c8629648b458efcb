"""The rows of `xensock bench containers`."""

from __future__ import annotations

from xensock.bench import containers
from xensock.bench.rows import Row, Target

ROWS: tuple[Row, ...] = (
    Row("container.startup.docker", "ms", False, containers.docker, ("docker", "busybox")),
    Row("container.startup.podman", "ms", False, containers.podman, ("podman", "busybox")),
)

TARGETS = {
    "container.startup.docker": Target(most_added=60),
    "container.startup.podman": Target(most_added=60),
}
