"""Examples that the help of each command begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

# The command without `xensock`: what to type after it, and what that is for.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "-- curl -sS http://web.example/",
        "--allow api.example:443 --trace -- python3 client.py",
        "--publish 8080:3000 -- node server.js",
    ),
    "backend": (
        "--listen local:/run/user/1000/xensock",
        "--listen local:backend.sock --allow example.com:80",
        "--containers /run/xensock/containers.sock --hold",
    ),
    "ps": ("", "--json"),
    "ss": ("", "--json"),
    "status": ("", "--json"),
    "top": ("",),
    "inspect": ("web",),
    "events": ("", "--json"),
    "kill": ("web",),
    "upgrade": ("",),
    "policy check": ("policy.toml",),
    "policy explain": ("--policy policy.toml api.example:443",),
    "policy test": ("policy.toml",),
    "policy schema": ("",),
    "install": ("--systemd --docker --dry-run",),
    "uninstall": ("--systemd --docker --dry-run",),
    "logs": ("",),
    "bugreport": ("",),
    "doctor": ("", "--json", "--fix"),
    "bench run": ("", "--quick --only startup --only direct.rtt", "--only direct --json"),
    "bench ring": ("", "--quick --only ring.guests", "--plot ring.svg"),
    "bench policy": ("", "--quick"),
    "bench containers": ("", "--only container.startup.podman"),
    "bench xen": ("--serve 192.0.2.1:7007", "192.0.2.1:7007"),
    "version": ("",),
    "help": ("run",),
}


def first(command: click.Command, path: str) -> None:
    """Have the help of a command, found under this path, say its examples before its options."""
    lines = [f"  xensock {path} {words}".rstrip() for words in EXAMPLES.get(path, ())]
    if lines and "Examples:" not in (command.help or ""):
        command.help = "\n".join((command.help or "", "", "\b", "Examples:", *lines))
