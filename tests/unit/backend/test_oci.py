"""Descriptions of containers: who they are, and the step in front of their program."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.backend import oci

NONE = {"type": "network"}


def config(**more: Any) -> dict[str, Any]:
    return {
        "process": {"args": ["nginx", "-g", "daemon off;"], "user": {"uid": 0, "gid": 0}},
        "mounts": [],
        "linux": {"namespaces": [{"type": "pid"}, NONE]},
        **more,
    }


def test_the_step_is_put_in_front() -> None:
    process = {"args": ["prog", "x"], "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}}
    oci.wrap_process(process, 4)
    assert process["args"] == [
        oci.INIT,
        "container",
        "4",
        "21",
        "0",
        "0",
        "0",
        "0",
        "--",
        "prog",
        "x",
    ]
    lent = ["CAP_SETPCAP", "CAP_SYS_ADMIN"]
    assert process["capabilities"] == {
        "bounding": ["CAP_CHOWN", "CAP_KILL", *lent],
        "effective": lent,
        "inheritable": lent,
        "permitted": lent,
        "ambient": lent,
    }


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.lists(st.sampled_from(oci.CAPABILITIES)) for name in oci.SETS}
    )
)
def test_a_description_that_is_used_again(given_caps: dict[str, list[str]]) -> None:
    process = {"args": ["prog"], "capabilities": given_caps}
    oci.wrap_process(process, 3)
    once = copy.deepcopy(process)
    oci.wrap_process(process, 3)
    assert process == once
    bits = [int(word, 16) for word in once["args"][3:8]]
    for name, had in zip(oci.SETS, bits, strict=True):
        assert {c for i, c in enumerate(oci.CAPABILITIES) if had >> i & 1} == set(
            given_caps.get(name, ())
        )


@pytest.mark.parametrize("process", [None, {}, {"args": []}, {"args": "sh"}, []])
def test_nothing_to_run(process: Any) -> None:
    with pytest.raises(oci.RefusedError):
        oci.wrap_process(process, 3)


def test_what_else_is_changed() -> None:
    made = config()
    made["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"]}],
    }
    for _ in range(2):
        oci.wrap_config(made, "/x/init", 3)
        assert [m["destination"] for m in made["mounts"]] == [oci.INIT]
        assert made["mounts"][0]["source"] == "/x/init"
        assert len(made["linux"]["seccomp"]["syscalls"]) == 2
    assert made["linux"]["seccomp"]["syscalls"][1]["names"] == list(oci.CONFINING)
    assert made["linux"]["namespaces"] == config()["linux"]["namespaces"]
    open_profile = config()
    open_profile["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    oci.wrap_config(open_profile, "/x/init", 3)
    assert "syscalls" not in open_profile["linux"]["seccomp"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 3000])
def test_what_is_no_description(text: bytes) -> None:
    with pytest.raises(oci.RefusedError):
        oci.read(text)


def test_networks_that_are_refused() -> None:
    none, bridge = (oci.Container("i", "n", network=each) for each in ("none", "bridge"))
    oci.check_network(config(), none)
    for description, container in ((config(), bridge), ({"linux": {}}, none), ({}, none)):
        with pytest.raises(oci.RefusedError, match="--network none"):
            oci.check_network(description, container)


def test_names_of_other_engines() -> None:
    notes = {"io.kubernetes.cri.container-name": "api", "io.kubernetes.cri.image-name": "api:2"}
    found = oci.identify("0123456789abcdef", "/b", config(annotations=notes))
    assert (found.name, found.image) == ("api", "api:2")
    assert oci.identify("0123456789abcdef", "/b", config()).name == "0123456789ab"


def test_a_network_of_its_own_for_a_pods_container() -> None:
    labels = [{oci.NETWORK: "none"}, *({note: "sandbox"} for note in oci.PODS), {}]
    found = [oci.apart(oci.Container("i", "n", labels=each)) for each in labels]
    assert found == [True, True, True, False]
    for apart in (False, True):
        description = config()
        network = {"type": "network", "path": "/run/netns/pod"}
        description["linux"]["namespaces"] = [{"type": "pid", "path": "/proc/1/ns/pid"}, network]
        oci.wrap_config(description, "/init", 3, apart)
        pid, network = description["linux"]["namespaces"]
        assert pid["path"] == "/proc/1/ns/pid"
        assert network == ({"type": "network"} if apart else {**NONE, "path": "/run/netns/pod"})


def test_the_network_that_an_engine_gives() -> None:
    resolv = {"destination": "/etc/resolv.conf", "source": "/run/pod/resolv.conf"}
    network = {"type": "network", "path": "/run/netns/pod"}
    given = config(
        linux={"namespaces": [network]}, mounts=[resolv], annotations={oci.NETWORK: "guest"}
    )
    found = oci.identify("i", "/b", given)
    assert (found.interface, found.resolv_conf) == ("/run/netns/pod", "/run/pod/resolv.conf")
    oci.check_network(given, found)
    none = oci.identify("i", "/b", config(annotations={oci.NETWORK: "guest"}))
    assert (none.interface, none.resolv_conf) == ("", "")
    with pytest.raises(oci.RefusedError, match="says no path"):
        oci.check_network(config(), none)
