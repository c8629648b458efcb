"""In dom0: programs of a domU that start at once, under one `xensock run` after the other: the first uses of each of
them are at once, too. storm.py BACK KIND CPUS SESSIONS ROUNDS"""

import hashlib
import http.server
import sys
import threading
import time

from dom0 import ADDRESS, Failed, Scenario, say, until

back, kind, cpus = sys.argv[1:4]
sessions, rounds = int(sys.argv[4]), int(sys.argv[5])
BODY = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 11))
ENOUGH = 4 << 20
told = {"answered": 0, "left": 0, "failed": 0}
lock = threading.Lock()


def count(what):
    with lock:
        told[what] += 1


class Answers(http.server.BaseHTTPRequestHandler):
    """/body; /endless, until nobody takes it any more."""

    def do_GET(self):
        self.send_response(200)
        if self.path == "/body":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/body":
            self.wfile.write(BODY)
            count("answered")
            return
        try:
            while True:
                self.wfile.write(BODY)
        except OSError:
            count("left")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        print("server:", client_address, repr(sys.exc_info()[1]), flush=True)
        count("failed")


with Scenario(f"storm-{back}-{kind}-{cpus}", peer=False) as scenario:
    try:
        start = time.monotonic()
        server = Server((ADDRESS, 7780), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scenario.backend(back)
        guest = scenario.domain(
            "guest", kind, cpus, f"storm.sh sessions={sessions} rounds={rounds}", 'pvcalls = ["backend=0"]'
        )  # fmt: skip
        guest.wait("^DOMU-DONE", 60 + 30 * sessions + 12 * sessions * rounds)
        say("sum", hashlib.sha256(BODY).hexdigest())
        wanted = {"answered": 2 * sessions * rounds, "left": sessions * rounds, "failed": 0}
        until(f"what was asked: {wanted}", lambda: told == wanted, 30)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed, told)
