"""In dom0: a domU that has its network by `xensock run --backend xen:` is rebooted while bytes flow and it serves. Its
next life must have all that the first one had, and nothing of the first one may be left. reboot.py BACK KIND CPUS"""

import hashlib
import http.server
import itertools
import queue
import subprocess
import sys
import threading
import time

from dom0 import ADDRESS, Failed, Scenario, held, let_go, nodes_left, number, run, say, there, until

back, kind, cpus = sys.argv[1:]
BODY = b"".join(hashlib.sha256(b"%d" % count).digest() for count in range(1 << 15))
# Linux's backend cannot be asked for SO_REUSEADDR: there another life has another port.
PORTS = {1: 8503, 2: 8503 if back == "xensock" else 8504}
go_on = queue.Queue()
flowing, ended = queue.Queue(), queue.Queue()


class Answers(http.server.BaseHTTPRequestHandler):
    """/body; /port: where to serve; /next, which is answered when the domain may reboot; /endless, until nobody takes
    it any more."""

    asked = itertools.count(1)

    def do_GET(self):
        self.send_response(200)
        if self.path == "/body":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/body":
            self.wfile.write(BODY)
        elif self.path == "/port":
            self.wfile.write(b"%d" % PORTS[next(self.asked)])
        elif self.path == "/next":
            go_on.get()
        else:
            self.endless()

    def endless(self):
        try:
            for count in range(1 << 30):
                self.wfile.write(BODY[:65536])
                if count == 20:
                    flowing.put(None)
        except OSError:
            ended.put(None)

    def log_message(self, *_):
        pass


def soon(what, told):
    try:
        told.get(timeout=120)
    except queue.Empty:
        raise Failed(f"{what}: not within 120 s") from None


def served(port):
    done = subprocess.run(
        ["curl", "-s", "--max-time", "30", f"http://{ADDRESS}:{port}/probe.py"],
        stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    with open("/payload/probe.py", "rb") as file:
        return done.stdout == file.read()


def lives(guest, count):
    """Everything that a life is about has come about."""
    until(
        f"life {count}: fetched",
        lambda: (guest.tell(), guest.said().count("\nfetched ") == count)[1],
        200,
    )
    soon(f"life {count}: flows", flowing)
    until(f"life {count}: serves", lambda: served(PORTS[count]), 120)
    say("life", count, "fetches, receives and serves")


with Scenario(f"reboot-{back}-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        server = http.server.ThreadingHTTPServer((ADDRESS, 7803), Answers)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scenario.backend(back)
        before = held(scenario.process) if back == "xensock" else ()
        say("body", hashlib.sha256(BODY).hexdigest())
        guest = scenario.domain("guest", kind, cpus, "reboot.sh", 'pvcalls = ["backend=0"]')
        lives(guest, 1)
        old = number("guest")
        say("held", before, "then", held(scenario.process) if before else ())
        go_on.put(None)
        until("another domain", lambda: number("guest") not in (old, -1), 120)
        soon("the old connection's end", ended)
        lives(guest, 2)
        until("the old domain", lambda: not there(old), 60)
        say("in xenstore", nodes_left(old))
        guest.destroy()
        soon("the new connection's end", ended)
        until("domain gone", lambda: not guest.alive(), 60)
        if before:
            let_go(scenario.process, before)
            say("let go", held(scenario.process))
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
        print(run("xl", "list", check=False))
