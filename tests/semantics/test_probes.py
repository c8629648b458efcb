"""The kernel is the oracle: what a probe sees in a guest is what it sees natively, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import HERE, Seen, titles
from .known import known

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from .conftest import Site

FILES = sorted(path.name for path in (HERE / "probes").glob("probe_*.py"))
PROBES = [(file, title) for file in FILES for title in titles(HERE / "probes" / file)]
ALONE = {"probe_many.py"}  # thousands of connections, each in its time
# Mediated calls that a file's probes cannot do without, so that none passes by not trying.
LEAST = {"probe_many.py": 2000, "probe_connect.py": 100, "probe_bind.py": 50}


def wanted(request: pytest.FixtureRequest, file: str) -> list[str]:
    """The probes of this file that this session will ask for, over any data path."""
    chosen = {
        item.callspec.params["title"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_probe"
        and item.callspec.params["file"] == file  # type: ignore[attr-defined]
    }
    return [title for title in titles(HERE / "probes" / file) if title in chosen]


def difference(native: Seen, guest: Seen) -> list[str]:
    """The observations that differ, with the native one first."""
    ours, theirs = native.observations(), guest.observations()
    found = [
        f"{a[0]}: natively {a[1]!r}, in the guest {b[1]!r}"
        if a[0] == b[0]
        else f"natively {a!r}, in the guest {b!r}"
        for a, b in zip(ours, theirs, strict=False)
        if a != b
    ]
    if len(ours) != len(theirs):
        found.append(f"natively {len(ours)} observations, in the guest {len(theirs)}")
    return found


def param(file: str, *rest: str, id: str) -> ParameterSet:
    return pytest.param(file, *rest, id=id, marks=[pytest.mark.alone] if file in ALONE else [])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("file", "title"), [param(f, title, id=f"{f[6:-3]}:{title}") for f, title in PROBES]
)
def test_probe(
    site: Site, datapath: str, file: str, title: str, request: pytest.FixtureRequest
) -> None:
    if title.endswith(".6") and not site.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    names = wanted(request, file)
    seen = site.seen(datapath, file, names)[title]
    native = site.seen("native", file, names)[title]
    problems = seen.wrong()
    if datapath != "native":
        problems += [line for line in difference(native, seen) if line not in problems]
    if seen.end != "ok":
        problems.append(f"the probe ended: {seen.end}")
    may = known(datapath, file, title)
    if problems and may and may.accounts_for(problems):
        pytest.xfail(may.why)
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", [param(file, id=file) for file in LEAST])
def test_calls_were_mediated(
    site: Site, datapath: str, file: str, request: pytest.FixtureRequest
) -> None:
    names = wanted(request, file)
    if len(names) < len([t for f, t in PROBES if f == file]):
        pytest.skip("only with all probes of the file")
    site.seen(datapath, file, names)
    calls = [call for call in site.calls(datapath, file) if call["datapath"] == datapath]
    assert len(calls) >= (0 if datapath == "native" else LEAST[file])
