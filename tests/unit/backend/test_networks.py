"""The networks of a policy, reached or said to be away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.backend.networks import reach
from xensock.policy.networks import Network
from xensock.stack.kernel import Kernel
from xensock.stack.resolver import Resolver

if TYPE_CHECKING:
    from pathlib import Path


def test_both_kinds_may_be_away(tmp_path: Path) -> None:
    said: list[str] = []
    networks = (
        Network("vpn", netns=str(tmp_path / "vpn")),
        Network("lab", backend=f"local:{tmp_path}/lab"),
    )
    made = reach(networks, Kernel(), Resolver(), "guest", None, said.append)
    assert [opened.stack.name for opened in made.find(("vpn", "lab", "host"))] == ["host"]
    assert said == [
        f"the network {name} cannot be reached for now: No such file or directory"
        for name in ("vpn", "lab")
    ]
    made.close()
