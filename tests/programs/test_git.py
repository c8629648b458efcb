"""git over HTTP: clone, push and fetch in a guest, against a server on the peer."""

import os
import shutil
from pathlib import Path

import pytest

from world.namespaces import eventually, needs

pytestmark = needs("git")
PORT = 8418


@pytest.fixture(scope="module")
def server(world):
    """Where repositories are served over HTTP; a directory."""
    root = world.user.home / "repositories"
    root.mkdir()
    world.user.own(root)
    script = Path(__file__).with_name("git_http.py")
    argv = [world.python, "-", world.web4, str(PORT), str(root)]
    # Given on standard input: the ordinary user need not be able to read the checkout.
    copy = world.directory / "git_http.py"
    shutil.copyfile(script, copy)
    argv[1] = str(copy)
    log = world.directory / "git.log"
    process = world.peer.service(argv, log, user="xstest", cwd=root)
    eventually(lambda: PORT in world.peer.listening(), 20, "git on the peer")
    yield root
    process.kill()
    process.wait()
    shutil.rmtree(root)


def test_clone_push_fetch(guest, server):
    world, name = guest.world, f"{guest.datapath}.git"
    url = f"http://web.test:{PORT}/{name}"
    init = ["git", "init", "-q", "--bare", "-b", "main", name]
    world.peer.run(init, user="xstest", cwd=server, check=True)

    def git(*words, where="."):
        who = ["-c", "user.name=Test", "-c", "user.email=test@web.test"]
        return guest.run(["git", *who, "-C", where, *words], check=True, timeout=60).stdout

    git("clone", "-q", url, "one")
    # Over http.postBuffer (1 MiB): the push is sent in chunks.
    (guest.directory / "one" / "blob").write_bytes(os.urandom(3_000_000))
    (guest.directory / "one" / "text").write_text("hello\n")
    for words in (("add", "."), ("commit", "-q", "-m", "First"), ("push", "-q", "origin", "main")):
        git(*words, where="one")
    git("clone", "-q", url, "two")
    assert git("rev-parse", "HEAD", where="two") == git("rev-parse", "HEAD", where="one")
    same = (guest.directory / part / "blob" for part in ("one", "two"))
    assert next(same).read_bytes() == next(same).read_bytes()
    (guest.directory / "two" / "text").write_text("hello again\n")
    git("commit", "-q", "-a", "-m", "Second", where="two")
    git("push", "-q", where="two")
    git("pull", "-q", "--ff-only", where="one")
    assert (guest.directory / "one" / "text").read_text() == "hello again\n"
    assert git("log", "--format=%s", where="one").split() == ["Second", "First"]
    guest.mediated(5, "connect", f":{PORT}")
    guest.mediated(5, "resolve", "web.test")


def test_a_missing_repository_is_reported(guest, server):
    done = guest.run(["git", "ls-remote", f"http://web.test:{PORT}/none.git"])
    assert done.returncode == 128
    assert "not found" in done.stderr
    guest.mediated(1, "connect", f":{PORT}")
