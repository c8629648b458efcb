"""Which policy a container is under by its image: by name, and by number, however it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mortal import mortal

if TYPE_CHECKING:
    from pathlib import Path

    from engines import Engine

GET = ("wget", "-q", "-O", "-")
FINE, NOT = "http://web.test/", "http://v4only.test/"  # to the policy `limited`


def test_a_policy_by_image(engine: Engine) -> None:
    engine("tag", "box", "limited")
    for url, labels, fine in (
        (FINE, {}, True),
        (NOT, {}, False),
        (NOT, {"xensock.allow": "v4only.test:80"}, True),
        (FINE, {"xensock.deny": "web.test"}, False),
    ):
        done = engine.run("limited", *GET, url, labels=labels, check=False)
        assert (done.returncode == 0) is fine, (url, labels, done.stderr)
    engine("rmi", "limited")


def allowed(engine: Engine, image: str) -> tuple[bool, bool]:
    """What a container of an image may reach."""
    found = [engine.run(image, *GET, url, check=False).returncode == 0 for url in (FINE, NOT)]
    return found[0], found[1]


def test_an_image_that_is_asked_for_by_its_number(engine: Engine, images: dict[str, Path]) -> None:
    made = engine("import", "--change=ENV A=1", str(images["box"]), "limited:2", timeout=120)
    number = made.stdout.split()[-1]
    try:
        for word in (number, number.removeprefix("sha256:")[:12]):
            assert allowed(engine, word) == (True, False)
    finally:
        engine("rmi", "limited:2")
    assert allowed(engine, "box") == (True, True)


def test_a_policy_by_number(engine: Engine, command: list[str]) -> None:
    asked = engine("images", "--no-trunc", "--quiet", "box").stdout.split()[0]
    number = asked.removeprefix("sha256:")
    with mortal(engine, command, f"--image=sha256:{number[:16]}*=limited") as (ours, _):
        for word in ("box", number):
            assert allowed(ours, word) == (True, False)
        assert allowed(ours, "tools") == (True, True)
