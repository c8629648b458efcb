"""OpenSSH: the server in a guest, and the client in a guest."""

import hashlib
import subprocess

import pytest

from world.namespaces import eventually, needs, program

pytestmark = needs("ssh", "sshd", "ssh-keygen", "sftp")
MEGABYTES = bytes(range(256)) * 12_000


@pytest.fixture(scope="module")
def keys(world):
    """A directory of the ordinary user's with a host key, a user key and the client's options."""
    directory = world.user.home / "keys"
    directory.mkdir()
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(argv, check=True)
    for path in [directory, *directory.iterdir()]:
        world.user.own(path)
    return directory


def sshd(keys, address, port):
    argv = [program("sshd"), "-D", "-e", "-f", "/dev/null", "-h", str(keys / "host")]
    options = [f"ListenAddress={address}", f"Port={port}", f"AuthorizedKeysFile={keys}/user.pub"]
    options += ["PidFile=none", "StrictModes=no", "UsePAM=no", "UseDNS=no"]
    options += ["Subsystem=sftp internal-sftp", "MaxStartups=50"]
    return argv + [word for option in options for word in ("-o", option)]


def options(keys):
    known = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    given = [*known, f"IdentityFile={keys}/user", "BatchMode=yes", "ConnectTimeout=15"]
    return ["-F", "/dev/null", *(word for option in given for word in ("-o", option))]


def use(run, keys, address, port, directory):
    """What a person does with SSH: commands with status and input, many at once, a file by SFTP."""

    def ssh(*words, **kw):
        argv = ["ssh", *options(keys), "-p", str(port), f"xstest@{address}", *words]
        return run(argv, user="xstest", **kw)

    assert ssh("echo $SSH_CLIENT; exit 7").returncode == 7
    done = ssh("sha256sum", input=MEGABYTES, text=False)
    assert done.stdout.split()[0].decode() == hashlib.sha256(MEGABYTES).hexdigest(), done.stderr
    done = ssh("cat; echo err >&2", input="through and back")
    assert (done.returncode, done.stdout, done.stderr) == (0, "through and back", "err\n")
    (directory / "sent").write_bytes(MEGABYTES)
    commands = f"put {directory}/sent {directory}/put\nget {directory}/put {directory}/got\n"
    argv = ["sftp", *options(keys), "-b", "-", "-P", str(port), f"xstest@{address}"]
    run(argv, user="xstest", input=commands, check=True)
    assert (directory / "got").read_bytes() == MEGABYTES
    return ssh("echo $SSH_CLIENT").stdout.split()[0]


def test_server(guest, keys):
    port, world = guest.port(), guest.world
    with guest.popen(sshd(keys, world.host.addr4, port), listens=port):
        client = use(world.peer.run, keys, world.host.addr4, port, guest.directory)
        assert client == world.peer.addr4
        # A port forwarded by the server leads into the world: a connection of the guest's.
        argv = ["ssh", *options(keys), "-p", str(port), "-W", "v4only.test:80"]
        argv.append(f"xstest@{world.host.addr4}")
        request = "GET /address HTTP/1.0\r\n\r\n"
        page = world.peer.run(argv, user="xstest", input=request, check=True).stdout
        assert page.endswith(f"\n\n{world.host.addr4}\n")
    guest.mediated(1, "listen", f":{port}")
    guest.mediated(1, "connect", "198.51.100.11:80")


@pytest.fixture(scope="module")
def remote(world, keys):
    """A server on the peer; its port."""
    port = 2222
    log = world.directory / "sshd.log"
    process = world.peer.service(sshd(keys, world.web4, port), log, user="xstest")
    eventually(lambda: port in world.peer.listening(), 20, "sshd on the peer")
    yield port
    process.kill()


def test_client(guest, keys, remote):
    world = guest.world
    client = use(guest.run, keys, world.web4, remote, guest.directory)
    assert client == world.host.addr4
    guest.mediated(5, "connect", f"{world.web4}:{remote}")


def test_client_forwards_a_port(guest, keys, remote):
    """`ssh -L`: the guest listens for the world, the SSH server connects on."""
    world, port = guest.world, guest.port()
    forward = f"{world.host.addr4}:{port}:{world.private4}:80"
    argv = ["ssh", *options(keys), "-N", "-L", forward, "-p", str(remote), f"xstest@{world.web4}"]
    with guest.popen(argv, listens=port):
        url = f"http://{world.host.addr4}:{port}/large"
        get = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}", url]
        assert world.peer.run(get, check=True).stdout == str(1 << 20)
    guest.mediated(1, "connect", f"{world.web4}:{remote}")
    guest.mediated(1, "listen", f":{port}")
