"""What containers may do by their labels."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.backend.labels import Labels, full_name
from xensock.backend.oci import Container, RefusedError
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.backend.containers import Allowance

WEB = ip_address("198.51.100.10")
OTHER = ip_address("198.51.100.11")


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    (tmp_path / "web.toml").write_text(
        '[[rule]]\nallow = ["198.51.100.10:80", "198.51.100.11:80"]\n'
    )
    (tmp_path / "away.toml").write_text('[[rule]]\nallow = "any"\nvia = "host"\n')
    (tmp_path / "broken.toml").write_text("[[rule]]\nalow = 1\n")
    (tmp_path / "other").write_text("")
    return tmp_path


def judged(
    allow: list[str], deny: list[str], policies: Path | None = None, /, **labels: str
) -> Allowance:
    said = {f"xensock.{name}": text for name, text in labels.items()}
    return Labels(allow, deny, policies)(Container("id", "name", labels=said))


def allowed(policy: Policy, address=WEB) -> bool:
    return policy.connect("tcp", address, 80, ()).allowed


def test_the_backends_own_rules_where_labels_say_nothing() -> None:
    found = judged(["198.51.100.10:80"], [])
    assert (allowed(found.policy), allowed(found.policy, OTHER)) == (True, False)
    assert (found.publications, found.datapath) == ((), "auto")


def test_rules_by_label() -> None:
    found = judged(["198.51.100.11:80"], [], allow="198.51.100.10:80, listen:any:80")
    assert (allowed(found.policy), allowed(found.policy, OTHER)) == (True, False)
    # What the backend denies stays denied.
    found = judged([], ["198.51.100.10"], allow="198.51.100.10:80")
    assert not allowed(found.policy)
    found = judged(["198.51.100.0/24"], [], deny="198.51.100.10")
    assert (allowed(found.policy), allowed(found.policy, OTHER)) == (False, True)


def test_a_policy_by_name(policies: Path) -> None:
    found = judged(["0.0.0.0/0"], ["198.51.100.11"], policies, policy="web")
    assert (allowed(found.policy), allowed(found.policy, OTHER)) == (True, False)
    assert judged([], [], policies, policy="away").policy.connect("tcp", WEB, 80).via == ("host",)
    # As the file is when the container starts.
    (policies / "web.toml").write_text('[[rule]]\nallow = "198.51.100.12:80"\n')
    assert not allowed(judged([], [], policies, policy="web").policy)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "unknown policy 'absent'; .* has: away, broken, web"),
        ("../web", "unknown policy"),
        ("", "unknown policy"),
        ("broken", "broken.toml:2:1"),
    ],
)
def test_policies_that_are_not_there(policies: Path, name: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        judged([], [], policies, policy=name)


def test_ports_and_path() -> None:
    found = judged([], [], publish="8080:80 127.0.0.1:53:5353/udp", datapath="relay")
    assert [(p.port, p.guest_port) for p in found.publications] == [(8080, 80), (53, 5353)]
    assert found.datapath == "relay"


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [
        ("policy", "absent", "unknown policy 'absent'; the backend has none"),
        ("polcy", "web", "did you mean xensock.policy"),
        ("zzz", "", "known are"),
        ("allow", "web.test:http", "xensock.allow"),
        ("deny", "::::", "xensock.deny"),
        ("publish", "x", "xensock.publish"),
        ("datapath", "fast", "auto, direct or relay"),
    ],
)
def test_what_cannot_be_followed(label: str, text: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        judged([], [], **{label: text})


def test_what_excludes_each_other() -> None:
    with pytest.raises(RefusedError, match="exclude"):
        judged([], [], policy="named", allow="web.test")


def test_labels_of_others_are_not_ours() -> None:
    labels = {"com.example.policy": "x", "xensock": "y"}
    Labels([], [])(Container("id", "name", labels=labels))


def test_a_policy_file_of_the_backend_is_not_widened(policies: Path) -> None:
    labels = Labels([], [], policies, Policy.parse(["198.51.100.11:80"]))
    plain = labels(Container("id", "name"))
    assert (allowed(plain.policy), allowed(plain.policy, OTHER)) == (False, True)
    assert allowed(labels(Container("id", "name", labels={"xensock.policy": "web"})).policy)
    for label in ("allow", "deny"):
        with pytest.raises(RefusedError, match="add nothing"):
            labels(Container("id", "name", labels={f"xensock.{label}": "198.51.100.10:80"}))


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("box", "docker.io/library/box:latest"),
        ("shop/web:1", "docker.io/shop/web:1"),
        ("localhost/box", "localhost/box:latest"),
        ("registry.example:5000/shop/web", "registry.example:5000/shop/web:latest"),
        ("registry.example/web@sha256:12", "registry.example/web@sha256:12"),
    ],
)
def test_full_names_of_images(image: str, full: str) -> None:
    assert full_name(image) == full


def test_policy_by_image(policies: Path) -> None:
    images = (("*/shop/*:1", "web"), ("docker.io/library/*", "gone"), ("*", "away"))
    judge = Labels(["198.51.100.99"], [], policies, None, images)

    def policy(image: str, **labels: str) -> Policy:
        said = {f"xensock.{name}": text for name, text in labels.items()}
        found = judge(Container("id", "name", image, labels=said)).policy
        assert isinstance(found, Policy)
        return found

    web = policy("shop/web:1")
    assert (allowed(web), web.connect("tcp", WEB, 81, ()).allowed) == (True, False)
    assert allowed(policy("registry.example/web"))  # the last one's
    # Labels say more.
    denied = policy("shop/web:1", deny="198.51.100.10")
    assert (allowed(denied), allowed(denied, OTHER)) == (False, True)
    assert not allowed(policy("shop/web:1", allow="198.51.100.11:80"))
    assert allowed(policy("box", policy="web"))
    # One that is gone: nothing is let through instead.
    with pytest.raises(RefusedError, match="unknown policy 'gone'"):
        policy("box")
    assert "unknown policy 'gone'" in judge.unknown()
    with pytest.raises(RefusedError, match="label xensock"):
        policy("shop/web:1", deny="1.2.3.4.5:x")
    # Without an image there is the backend's own word.
    assert not allowed(policy(""))


def test_policy_by_number_and_other_names(policies: Path) -> None:
    judge = Labels([], [], policies, None, [("sha256:12*", "web"), ("*/shop/*:1", "web")])
    for also, fits in (
        (("sha256:1234",), True),
        (("sha256:3412",), False),
        (("sha256:3412", "shop/web:1"), True),
    ):
        found = judge(Container("id", "name", "other:1", images=also)).policy
        assert (found is judge(Container("id", "name")).policy) is not fits
    # A number is no name.
    judge = Labels([], [], policies, None, [("docker.io/*", "web")])
    numbered = judge(Container("id", "name", images=("sha256:12",))).policy
    assert numbered is judge(Container("id", "name")).policy


def test_policies_of_images_that_are_there(policies: Path) -> None:
    assert Labels([], [], policies, None, [("*", "web")]).unknown() == ""
