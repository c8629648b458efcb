"""In dom0: busybox's wget in domUs with Linux's frontend, at nginx. domains.py BACK KIND CPUS

At XenSock's backend two domains at once, each with rules of its own: one by its name, one by its UUID. The second is
rebooted while bytes flow, and must find what it had before, while nothing of its first life is left."""

import hashlib
import http.server
import sys
import threading
import time
from pathlib import Path

from dom0 import ADDRESS, Failed, Scenario, held, let_go, nodes_left, number, run, say, there, until

back, kind, cpus = sys.argv[1:]
BODY = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 15))
UUID = "5f1c2d7e-8a43-4f0b-9d26-3c71e0b4a918"
DEVICE = 'pvcalls = ["backend=0"]'
RULES = f"""
[[rule]]
allow = "{ADDRESS}:7801"
labels = {{ "xen.name" = "one" }}

[[rule]]
allow = ["{ADDRESS}:7802", "{ADDRESS}:7803"]
labels = {{ "xen.uuid" = "{UUID}" }}
"""
NGINX = f"""
user root;
error_log stderr;
pid /tmp/nginx.pid;
daemon off;
events {{ }}
http {{
    access_log off;
    server {{ listen {ADDRESS}:7801; listen {ADDRESS}:7802; root /tmp/www; }}
}}
"""
next_life = threading.Event()
flowing, ended = threading.Event(), threading.Event()


class Answers(http.server.BaseHTTPRequestHandler):
    """/next is answered when the domain may reboot, /endless goes on until nobody takes it any more."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/next":
            next_life.wait()
            return
        try:
            for count in range(1 << 30):
                self.wfile.write(BODY[:65536])
                if count == 20:
                    flowing.set()
        except OSError:
            ended.set()

    def log_message(self, *_):
        pass


def serve(scenario):
    Path("/tmp/www").mkdir(exist_ok=True)
    Path("/tmp/www/body").write_bytes(BODY)
    config = scenario.folder / "nginx.cfg"
    config.write_text(NGINX)
    for folder in ("/var/log/nginx", "/var/lib/nginx"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    scenario.start("nginx", "-c", str(config), log=scenario.folder / "nginx.log")
    server = http.server.ThreadingHTTPServer((ADDRESS, 7803), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def reboot(scenario, two, before):
    """The second domain's second life: what its first one had is let go of, and its rules still hold."""
    if not flowing.wait(120):
        raise Failed("nothing flows")
    old = number("two")
    busy = held(scenario.process)
    next_life.set()
    until("another domain", lambda: number("two") not in (old, -1), 120)
    until("its second life", lambda: (two.tell(), two.said().count("wget-done") == 2)[1], 200)
    if not ended.wait(60):
        raise Failed("the old connection did not end")
    until("the old domain", lambda: not there(old), 60)
    say("in xenstore", nodes_left(old))
    two.destroy()
    until("both domains gone", lambda: not two.alive(), 60)
    let_go(scenario.process, before)
    say("held", before, "with both", busy, "then", held(scenario.process))


with Scenario(f"domains-{back}-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        serve(scenario)
        options = []
        if back == "xensock":
            policy = scenario.folder / "policy.cfg"
            policy.write_text(RULES)
            options = ["--policy", str(policy)]
        scenario.backend(back, *options)
        say("body", hashlib.sha256(BODY).hexdigest())
        if back == "xensock":
            before = held(scenario.process)
            one = scenario.domain("one", kind, cpus, "wget.sh who=one", DEVICE)
            name = f'uuid = "{UUID}"'
            two = scenario.domain("two", kind, cpus, "wget.sh who=two until-reboot", name, DEVICE)
            one.wait("^DOMU-DONE", 200)
            two.wait("^wget-done", 200)
            until("the first domain gone", lambda: not one.alive(), 60)
            reboot(scenario, two, before)
        else:
            one = scenario.domain("one", kind, cpus, "wget.sh who=one until-destroyed", DEVICE)
            one.wait("^wget-done", 200)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
        print(run("xl", "list", check=False))
