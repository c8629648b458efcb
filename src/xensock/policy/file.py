"""What a policy file may hold: the types of its tables, from which its JSON Schema is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

SCHEMA_ID = "https://xensock.example/schema/policy-1.json"

Text = Annotated[str, Meta(min_length=1)]
Patterns = Text | list[Text]
Rate = Annotated[int, Meta(gt=0)] | Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?[kMG]?$")]


class LimitTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """At most this, for each guest and rule."""

    rate: Annotated[
        Rate | None,
        Meta(
            description="Bytes per second, each way, as a number or with k, M or G: 500000, "
            '"1.5M" (10^3, 10^6, 10^9).'
        ),
    ] = None
    connects: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="New connections per second.")
    ] = None
    concurrent: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Connections that are open at once."),
    ] = None


class RuleTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One rule. Either `allow` or `deny`: [connect:|listen:|accept:]HOST|CIDR|GROUP[:PORT[-PORT]][/tcp|udp|icmp]"""

    allow: Annotated[
        Patterns | None, Meta(description='What is allowed, such as "api.example.test:443".')
    ] = None
    deny: Annotated[Patterns | None, Meta(description='What is refused, such as "10.0.0.0/8".')] = (
        None
    )
    program: Annotated[
        Patterns | None,
        Meta(description="Paths of the programs whose calls it is about; * is anything."),
    ] = None
    labels: Annotated[
        dict[str, str], Meta(description="Labels of the guests that it is about.")
    ] = msgspec.field(default_factory=dict)
    redirect: Annotated[
        Text | None,
        Meta(description="ADDRESS:PORT or unix:PATH, where the connection really goes."),
    ] = None
    limit: Annotated[LimitTable | None, Meta(description="At most this.")] = None
    via: Annotated[
        Patterns | None,
        Meta(description="The network that carries it; of a list, the first that can be reached."),
    ] = None
    verify: Annotated[
        Literal["sni", "host"] | None,
        Meta(description="The first bytes must name the rule's host: in TLS, or in HTTP."),
    ] = None


class NetworkTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A network: either `netns` or `backend`."""

    netns: Annotated[
        Text | None,
        Meta(description='The path of a network namespace, such as "/run/netns/corp".'),
    ] = None
    backend: Annotated[
        Text | None,
        Meta(description='The URL of another backend, such as "local:/run/xensock/corp".'),
    ] = None
    resolv_conf: Annotated[
        Text | None,
        Meta(
            description="The resolv.conf(5) of a namespace; /etc/netns/NAME/resolv.conf or the "
            "host's if absent."
        ),
    ] = None


class ExpectTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A case for `xensock policy test`: calls that must be allowed, or refused."""

    allow: Annotated[Patterns | None, Meta(description="Calls that must be allowed.")] = None
    deny: Annotated[Patterns | None, Meta(description="Calls that must be refused.")] = None
    address: Annotated[
        Text | None,
        Meta(description="What the names in the calls resolve to; 192.0.2.1 if absent."),
    ] = None
    program: Annotated[Text | None, Meta(description="The path of the calling program.")] = None
    labels: Annotated[dict[str, str], Meta(description="The labels of the guest.")] = msgspec.field(
        default_factory=dict
    )


class HooksTable(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A class that is asked about calls, after the rules."""

    cls: Annotated[
        Text, Meta(description='Where it is: "FILE.py:CLASS" beside this file, or "MODULE:CLASS".')
    ] = msgspec.field(name="class")
    timeout: Annotated[
        float,
        Meta(gt=0, le=60, description="Seconds for an answer; what takes longer is refused."),
    ] = 2.0


class PolicyFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A policy of XenSock. What no rule allows is refused."""

    version: Annotated[Literal[1], Meta(description="Of this format.")] = 1
    close_on_reload: Annotated[
        bool,
        Meta(
            description="Whether connections that this policy forbids end when it is loaded anew."
        ),
    ] = False
    unix_datagrams: Annotated[
        Literal["allow", "refuse"],
        Meta(
            description="Whether guests have unix sockets for datagrams, whose destinations no rule judges."
        ),
    ] = "allow"
    groups: Annotated[
        dict[str, list[Text]],
        Meta(description="Names for lists of hosts, networks and groups."),
    ] = msgspec.field(default_factory=dict)
    networks: Annotated[
        dict[str, NetworkTable],
        Meta(description="Networks that `via` may name, beside host and guest."),
    ] = msgspec.field(default_factory=dict)
    rule: Annotated[list[RuleTable], Meta(description="The rules.")] = msgspec.field(
        default_factory=list
    )
    hooks: Annotated[HooksTable | None, Meta(description="Code that is asked about calls.")] = None
    expect: Annotated[list[ExpectTable], Meta(description="Cases for the test.")] = msgspec.field(
        default_factory=list
    )


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a policy file, as tables of TOML."""
    made = msgspec.json.schema(PolicyFile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **made}
