"""What engines keep of containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from xensock.backend.kept import Kept, look

if TYPE_CHECKING:
    from pathlib import Path

NUMBER = f"sha256:{'ab12' * 16}"
OTHER = f"sha256:{'cd34' * 16}"
REPOSITORIES = {
    "box": {"box:1": NUMBER, f"box@{OTHER}": NUMBER, "box:old": OTHER},
    "shop/web": {"shop/web:latest": NUMBER},
}


def docker(data: Path, image: str, number: str = NUMBER) -> Kept:
    """What is found of a container that was made with that word for its image."""
    folder = data / "containers" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {"Name": "/web", "Driver": "overlay2", "Image": number}
    made["Config"] = {"Image": image, "Labels": {"a": "label"}}
    (folder / "config.v2.json").write_text(json.dumps(made))
    (folder / "hostconfig.json").write_text('{"NetworkMode": "none"}')
    images = data / "image" / "overlay2"
    images.mkdir(parents=True, exist_ok=True)
    (images / "repositories.json").write_text(json.dumps({"Repositories": REPOSITORIES}))
    mount = {"destination": "/etc/hostname", "source": f"{folder}/hostname"}
    return look("abc", "/b", {"mounts": [mount]})


def test_what_docker_keeps(tmp_path: Path) -> None:
    assert docker(tmp_path, "box:1") == Kept("web", "box:1", (NUMBER,), {"a": "label"}, "none")


@pytest.mark.parametrize("word", [NUMBER, NUMBER[7:], NUMBER[7:19], f"box@{OTHER}"])
def test_an_image_that_was_asked_for_by_its_number(tmp_path: Path, word: str) -> None:
    found = docker(tmp_path, word)
    assert (found.image, found.images) == ("box:1", ("shop/web:latest", NUMBER))


def test_a_name_that_is_like_a_number(tmp_path: Path) -> None:
    assert docker(tmp_path, "cafe").image == "cafe"
    nameless = docker(tmp_path, "9" * 12, f"sha256:{'9' * 64}")
    assert (nameless.image, nameless.images) == ("", (f"sha256:{'9' * 64}",))


def test_what_podman_keeps(tmp_path: Path) -> None:
    bundle = tmp_path / "vfs-containers" / "abc" / "userdata"
    bundle.mkdir(parents=True)
    image = json.dumps({"image-name": "localhost/web:1", "image-id": "12"})
    listed = [
        {"id": "x", "names": ["other"], "metadata": image},
        {"id": "abc", "names": ["web"], "metadata": image, "image": "12"},
        {"id": "odd", "names": ["odd", "strange"], "metadata": "{"},
    ]
    (tmp_path / "vfs-containers" / "containers.json").write_text(json.dumps(listed))
    assert look("abc", str(bundle), {}) == Kept("web", "localhost/web:1", ("sha256:12",))
    assert look("odd", str(bundle), {}) == Kept("strange")
    image = json.dumps({"image-name": "sha256:12"})
    (tmp_path / "vfs-containers" / "containers.json").write_text(
        json.dumps([{"id": "abc", "metadata": image, "image": "12"}])
    )
    assert look("abc", str(bundle), {}) == Kept("", "", ("sha256:12",))
    (tmp_path / "vfs-images").mkdir()
    (tmp_path / "vfs-images" / "images.json").write_text('[{"id": "12", "names": ["a:1", "b:1"]}]')
    assert look("abc", str(bundle), {}) == Kept("", "a:1", ("b:1", "sha256:12"))


def test_nothing_is_kept(tmp_path: Path) -> None:
    for bundle in (str(tmp_path / "a" / "b"), "/b", ""):
        assert look("def", bundle, {"mounts": None}) == Kept()
