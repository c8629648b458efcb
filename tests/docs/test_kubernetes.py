"""The manifests of docs/howto/kubernetes: Kubernetes' own schemas, and what they say to XenSock."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from xensock.backend.containers import Allowance
from xensock.backend.labels import Labels
from xensock.backend.oci import Container
from xensock.cli.backend import backend

WHERE = Path(__file__).parents[2] / "docs" / "howto" / "kubernetes"
VERSION = "1.37"


def resources() -> dict[str, dict[str, Any]]:
    """By kind; there is one of each."""
    found = [
        each
        for file in sorted(WHERE.glob("*.yaml"))
        for each in yaml.safe_load_all(file.read_text())
    ]
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


@pytest.mark.parametrize("kind", sorted(resources()))
def test_every_field_is_one_of_kubernetes(kind: str) -> None:
    resource = resources()[kind]
    assert kubernetes_validate.validate(resource, VERSION, strict=True) == VERSION
    resource["metadata"]["nane"] = "misspelt"
    with pytest.raises(kubernetes_validate.ValidationError, match="nane"):
        kubernetes_validate.validate(resource, VERSION, strict=True)


def test_they_fit_together() -> None:
    found = resources()
    runtime = found["RuntimeClass"]
    pod, daemon = found["Pod"], found["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["spec"]["runtimeClassName"] == runtime["metadata"]["name"]
    assert daemon["nodeSelector"] == runtime["scheduling"]["nodeSelector"]
    volumes = {each["name"]: each for each in daemon["volumes"]}
    assert volumes["policies"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    for container in (*daemon["initContainers"], *daemon["containers"]):
        assert {each["name"] for each in container["volumeMounts"]} <= set(volumes)
    containerd = tomllib.loads((WHERE / "containerd.toml").read_text())
    runtimes = containerd["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    settings = runtimes[runtime["handler"]]
    assert settings["options"]["BinaryName"].startswith(volumes["programs"]["hostPath"]["path"])
    assert settings["pod_annotations"] == ["xensock.*"]


def test_the_backend_knows_its_options() -> None:
    (container,) = resources()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    program, verb, *options = container["command"]
    assert (Path(program).name, verb) == ("xensock", "backend")
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    known = {name: each for each in backend.params for name in each.opts}
    for option in options:
        name, _, value = option.partition("=")
        assert name in known
        assert not value or value in mounts or str(Path(value).parent) in mounts
    probe = container["readinessProbe"]["exec"]["command"]
    done = subprocess.run(
        [sys.executable, "-m", "xensock", *probe[1:-1], "/nonexistent"],
        capture_output=True,
        text=True,
    )
    assert "cannot ask the backend" in done.stderr  # it fails where none answers


def test_the_pods_policy_is_in_the_map(tmp_path: Path) -> None:
    found = resources()
    for name, text in found["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    notes = found["Pod"]["metadata"]["annotations"]
    allowance = Labels((), (), tmp_path)(Container("id", "web", labels=notes))
    assert isinstance(allowance, Allowance)
    port = found["Pod"]["spec"]["containers"][0]["ports"][0]
    assert port["hostPort"] == port["containerPort"] == 8080
