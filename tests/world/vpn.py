"""A VPN: OpenVPN between the host and a namespace whose server only the tunnel reaches.

host  10.8.0.2 ═══ tunnel ═══ 10.8.0.1  vpn  10.99.0.5 (HTTP on 80)
  └── 203.0.113.10 ── net (forwards) ── 192.0.2.202 ──┘
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .internet import NGINX, World
from .namespaces import PATH, Namespace, eventually, program

OUTER, GATEWAY, PORT = "192.0.2.202", "192.0.2.201", 1194
NEAR, FAR, SERVER = "10.8.0.2", "10.8.0.1", "10.99.0.5"


def missing_vpn() -> str:
    """Why there can be no tunnel here, "" when there can."""
    if program("openvpn") is None:
        return "the VPN needs openvpn: run tools/prepare"
    try:
        Path("/dev/net/tun").open("r+b", buffering=0).close()
    except OSError as error:
        return f"the VPN needs /dev/net/tun: {error.strerror}"
    return ""


@dataclass(slots=True)
class Vpn:
    """The tunnel; `address` is the server behind it, `client` the host's address in it."""

    world: World
    far: Namespace
    address: str = SERVER
    client: str = NEAR
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, world: World) -> Vpn:
        """Build the tunnel and wait until the server behind it answers the host."""
        with contextlib.ExitStack() as undo:
            far = Namespace.create("vpn", world.user)
            undo.callback(far.close)
            vpn = cls(world, far)
            undo.callback(vpn._disconnect)
            vpn._build()
            undo.pop_all()
        return vpn

    def _build(self) -> None:
        directory = self.world.directory / "vpn"
        (directory / "www").mkdir(parents=True)
        (directory / "www" / "index.html").write_text("hello from behind the VPN\n")
        net = self.world.peer
        net.ip(
            f"link add vpn0 type veth peer name up0 netns {self.far.name}",
            f"addr add {GATEWAY}/30 dev vpn0",
            "link set vpn0 up",
        )
        self.far.ip(
            f"addr add {OUTER}/30 dev up0",
            "link set up0 up",
            f"route add default via {GATEWAY}",
            f"addr add {SERVER}/32 dev lo",
        )
        key = directory / "static.key"
        subprocess.run(["openvpn", "--genkey", "secret", str(key)], check=True, env={"PATH": PATH})
        conf = directory / "nginx.conf"
        conf.write_text(NGINX.format(dir=directory, six=""))
        log = directory / "servers.log"
        self.far.service(["nginx", "-c", str(conf), "-e", f"{directory}/nginx.log"], log)
        self.far.service(self._openvpn(key, FAR, NEAR), log)
        near = [*self._openvpn(key, NEAR, FAR), "--remote", OUTER, "--route", "10.99.0.0",
                "255.255.0.0"]  # fmt: skip
        self._process = self.world.host.service(near, directory / "near.log")
        eventually(self._answers, 20, f"the tunnel: {log} {directory}/near.log", interval=0.1)

    @staticmethod
    def _openvpn(key: Path, mine: str, other: str) -> list[str]:
        argv = ["openvpn", "--dev", "tun", "--proto", "udp", "--port", str(PORT), "--secret"]
        argv += [str(key), "--cipher", "AES-256-CBC", "--auth", "SHA256", "--ifconfig", mine, other]
        return argv

    def _answers(self) -> bool:
        try:
            self.world.host.connect(SERVER, 80, timeout=0.5).close()
        except OSError:
            return False
        return True

    def _disconnect(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def close(self) -> None:
        """Take the tunnel down."""
        self._disconnect()
        self.far.close()
