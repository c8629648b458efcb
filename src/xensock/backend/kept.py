"""What Docker and Podman keep of a container beside its description, which does not say: its name, labels, image."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NUMBER = re.compile(r"(?:sha256:)?([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Kept:
    """ "" where it is not known.

    image    its name, as it was said when the container was made
    images   what else it is known by: its number, sha256:HEX; and where it was asked for by that or by a digest, all
             names that the engine has for it
    network  the engine's
    """

    name: str = ""
    image: str = ""
    images: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = ""


def look(ident: str, bundle: str, config: Mapping[str, Any]) -> Kept:
    """What there is of a container; nothing, if it is another engine's."""
    return _docker(ident, config) or _podman(ident, bundle) or Kept()


def _docker(ident: str, config: Mapping[str, Any]) -> Kept | None:
    """dockerd's DATA/containers/ID: the files that it mounts for names lie in there."""
    for mount in config.get("mounts") or ():
        source = str(mount.get("source", ""))
        if mount.get("destination") == "/etc/hostname" and f"/containers/{ident}/" in source:
            folder = Path(source).parent
            break
    else:
        return None
    found = _json(folder / "config.v2.json")
    settings = found.get("Config") or {}
    image, number = str(settings.get("Image") or ""), str(found.get("Image") or "")
    names = [image] if image else []
    if _no_name(image, number):
        listed = folder.parents[1] / "image" / str(found.get("Driver")) / "repositories.json"
        names = list(_names(_json(listed), number))
    return Kept(
        str(found.get("Name", "")).lstrip("/"),
        names[0] if names else "",
        (*names[1:], number) if number else (),
        {str(k): str(v) for k, v in (settings.get("Labels") or {}).items()},
        str(_json(folder / "hostconfig.json").get("NetworkMode", "")),
    )


def _no_name(image: str, number: str) -> bool:
    """Whether an image was asked for by its number, or a part of that, or by a digest."""
    if "@" in image:
        return True
    found = _NUMBER.fullmatch(image)
    return found is not None and number.startswith(f"sha256:{found[1]}")


def _names(listed: Any, number: str) -> Iterator[str]:
    for repository in (listed.get("Repositories") or {}).values():
        for name, of in repository.items():
            if of == number and "@" not in name:
                yield str(name)


def _podman(ident: str, bundle: str) -> Kept | None:
    """containers/storage's lists: the bundle is STORAGE/DRIVER-containers/ID/userdata. Where the image was asked for by
    a part of its number, Podman itself writes one of its names down."""
    if bundle.count("/") <= 2:
        return None
    storage, driver = Path(bundle).parents[2], Path(bundle).parents[1].name
    each = _listed(storage / driver / "containers.json", ident)
    if each is None:
        return None
    names = [str(name) for name in each.get("names") or () if name != ident]
    number = str(each.get("image") or "").removeprefix("sha256:")
    try:
        image = str(json.loads(each.get("metadata") or "{}")["image-name"])
    except (ValueError, TypeError, KeyError):
        image = ""
    images = [image] if image else []
    if _no_name(image, f"sha256:{number}"):
        images_json = storage / driver.replace("-containers", "-images") / "images.json"
        images = list((_listed(images_json, number) or {}).get("names") or ())
    return Kept(
        names[0] if names else "",
        images[0] if images else "",
        (*images[1:], f"sha256:{number}") if number else (),
    )


def _listed(path: Path, ident: str) -> dict[str, Any] | None:
    listed = _json(path)
    found = (each for each in listed if isinstance(each, dict) and each.get("id") == ident)
    return next(found, None) if isinstance(listed, list) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
