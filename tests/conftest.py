"""What all tests share: the test world's fixtures and the marks of the data paths."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Test modules are known by their path, since several parts have a `test_names.py` (pyproject.toml,
# importlib). What tests share is imported by name, from here or from beside them.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "programs"))
sys.path.append(str(Path(__file__).parent / "containers"))
sys.path.extend(str(part) for part in sorted(Path(__file__).parent.glob("unit/*/")))

from world.fixtures import DATAPATHS, guest, vpn, world, xensock

__all__ = ["guest", "vpn", "world", "xensock"]

# How long an example takes says something of the machine, not of us.
settings.register_profile("xensock", settings.default, deadline=None)
settings.load_profile("xensock")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--world",
        choices=("with", "without", "only"),
        default="with",
        help="tests on the test world: with the others (default), not at all, only these",
    )
    parser.addoption("--slow", action="store_true", help="with tests that take minutes")
    parser.addoption(
        "--share",
        choices=("all", "first", "second", "both", "alone"),
        default="all",
        help="all tests (default); of those that bear others beside them one half or both; or those that do not",
    )


def pytest_configure(config) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
            signal.signal(number, _end)
    config.addinivalue_line("markers", "slow: takes minutes; run by .ci/run (--slow)")
    config.addinivalue_line("markers", "alone: measures, so nothing runs beside it (tools/test)")
    config.addinivalue_line(
        "markers", "makes_world: starts sessions that make a test world of their own"
    )
    for path in DATAPATHS:
        config.addinivalue_line("markers", f"{path}: runs a program over the data path '{path}'")


def _end(number, frame) -> None:
    """Ended from outside is interrupted: fixtures remove what they made. Once; the removal is not interrupted."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, frame: None)
    raise KeyboardInterrupt(signal.Signals(number).name)


# Over relay as over direct, over rings as over relay, but for the far side. What else a path could do otherwise the
# rest shows in minutes; these take many, and .ci/run has them.
IN_CI = {
    # Relay and rings together: what is recorded over both is compared (tests/programs/conftest.py).
    "programs": dict.fromkeys(
        ("relay", "ring"),
        "git handing_over host_changes host_network http_clients iperf3 lang_go lang_java lang_musl lang_names"
        " lang_node lang_python_extra postgres ssh traces udp",
    ),
    "semantics": {
        "ring": "compiled loopback names ports process rules unix_sockets ways_around",
        "relay": "ways_around",
    },
    "policy": {"relay": "reloading", "ring": "hooks"},
    "ways": {"ring": "attempts races", "relay": "attempts races"},
}


def _left_to_ci(item) -> bool:
    folder, name = item.path.parent.name, item.path.stem.removeprefix("test_")
    paths = {path: names.split() for path, names in IN_CI.get(folder, {}).items()}
    if (folder, name) == ("semantics", "probes") and (
        item.name.endswith(".6]") or "many:open_and_close" in item.name
    ):
        paths = {"ring": [name], "relay": [name]}
    return any(name in names and item.get_closest_marker(path) for path, names in paths.items())


# Two sessions side by side (tools/test) take about the same time with these folders in the first.
FIRST = ("programs", "unit")
MOVED = {"programs/test_udp.py": "second", "conformance/test_cpython.py": "first"}


def _share(item) -> str:
    if item.get_closest_marker("alone"):
        return "alone"
    path = item.path.relative_to(Path(__file__).parent)
    # Of what takes minutes the first half is the longer one; of conformance alone, half is CPython on own sockets.
    if item.get_closest_marker("slow") and str(path) in MOVED:
        return MOVED[str(path)]
    return "first" if path.parts[0] in FIRST else "second"


def pytest_collection_modifyitems(config, items) -> None:
    for item in items:
        if _left_to_ci(item):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("slow"):
        _keep(config, items, lambda item: not item.get_closest_marker("slow"))
    share = config.getoption("share")
    if share == "both":
        _keep(config, items, lambda item: _share(item) != "alone")
    elif share != "all":
        _keep(config, items, lambda item: _share(item) == share)
    which = config.getoption("world")
    if which != "with":
        _keep(config, items, lambda item: _needs_world(item) == (which == "only"))


def _needs_world(item) -> bool:
    return "world" in item.fixturenames or item.get_closest_marker("makes_world") is not None


def _keep(config, items, wanted) -> None:
    kept, left = [], []
    for item in items:
        (kept if wanted(item) else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
