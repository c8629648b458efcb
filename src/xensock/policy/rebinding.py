"""Which addresses a rule by name may learn: what keeps a name's owner from pointing it into this network.

Whoever answers for an allowed name chooses its addresses, and may choose those of hosts that he cannot reach and
the guest can (DNS rebinding). So a name that a rule by name opens has public addresses only, unless a rule by address
allows the other one as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.calls.call import Decision
from xensock.policy.groups import GROUPS, destination_forms, protected_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.calls.address import IPAddress
    from xensock.policy.rules import Rule

_KINDS = {
    "loopback": "the host's loopback",
    "metadata": "a metadata service",
    "linklocal": "link-local",
    "private": "private",
    "": "not a public address",
}


def judge(allow: Iterable[Rule], name: str, address: IPAddress, away: bool = False) -> Decision:
    """May a name that a rule by name opens have this address? `allow`: the rules by address that allow connecting.
    `away`: the name is of another network, and what is private there is nobody else's.

    The guest sees a refused address nowhere, so `error` is 0.
    """
    forms = destination_forms(address)
    if all(form in GROUPS["public"] for form in forms):
        return Decision(True, "default: public addresses", name=name)
    inner = [form in GROUPS["private"] or form in GROUPS["public"] for form in forms]
    if away and all(inner) and not any(map(protected_group, forms)):
        return Decision(True, "the addresses of its network", name=name)
    for rule in allow:
        if opens(rule, forms):
            return Decision(True, rule.text, name=name)
    group = next((found for found in map(protected_group, forms) if found), "")
    if not group and any(form in GROUPS["private"] for form in forms):
        group = "private"
    literal = f"[{address}]" if address.version == 6 else str(address)
    reason = f"default: {name} has {address}, which is {_KINDS[group]}"
    return Decision(False, reason, name=name, hint=f"--allow {literal}")


def opens(rule: Rule, forms: tuple[IPAddress, ...]) -> bool:
    """Whether an allow rule by address opens the destination of these forms (`destination_forms`)."""
    held = rule.addresses
    if held is None or not (
        all(form in held for form in forms) if rule.group else forms[0] in held
    ):
        return False
    return rule.exact or all(
        group is None or group in rule.opens for group in map(protected_group, forms)
    )
