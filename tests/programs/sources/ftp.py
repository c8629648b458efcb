"""FTP (RFC 959, RFC 2428) in small: `ftp.py serve PORT`, `ftp.py client SERVER PORT MODE`.

The server has one file, which it sends, and counts what it is sent. It answers whom it hears from.
"""

import ftplib
import io
import json
import socket
import socketserver
import sys

CONTENT = bytes(range(256)) * 3000


class Session(socketserver.StreamRequestHandler):
    timeout = 20

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self) -> None:
        self.say("220 ready")
        self.data = None
        for line in iter(self.rfile.readline, b""):
            verb, _, rest = line.decode().strip().partition(" ")
            getattr(self, f"do_{verb.lower()}", lambda _: self.say("200 fine"))(rest)
            if verb == "QUIT":
                break

    def do_user(self, _: str) -> None:
        self.say("230 welcome")

    def do_port(self, rest: str) -> None:
        numbers = rest.split(",")
        self.where = (".".join(numbers[:4]), int(numbers[4]) * 256 + int(numbers[5]))
        self.say("200 fine")

    def do_eprt(self, rest: str) -> None:
        _, _, host, port, _ = rest.split("|")
        self.where = (host, int(port))
        self.say("200 fine")

    def passive(self) -> int:
        six = self.request.family == socket.AF_INET6
        self.data = socket.create_server(("", 0), family=self.request.family, dualstack_ipv6=six)
        return self.data.getsockname()[1]

    def do_pasv(self, _: str) -> None:
        port = self.passive()
        host = self.request.getsockname()[0].removeprefix("::ffff:").replace(".", ",")
        self.say(f"227 here ({host},{port >> 8},{port & 255})")

    def do_epsv(self, _: str) -> None:
        self.say(f"229 here (|||{self.passive()}|)")

    def open(self) -> socket.socket:
        self.say("150 here it comes")
        if self.data is None:
            return socket.create_connection(self.where, timeout=20)
        with self.data as listener:
            self.data = None
            listener.settimeout(20)
            return listener.accept()[0]

    def do_retr(self, _: str) -> None:
        with self.open() as sock:
            sock.sendall(CONTENT)
        self.say("226 sent")

    def do_stor(self, _: str) -> None:
        total = 0
        with self.open() as sock:
            while data := sock.recv(65536):
                total += len(data)
        self.say(f"226 {total}")


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    allow_reuse_address = daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def client(server: str, port: str, mode: str) -> None:
    with ftplib.FTP() as ftp:
        ftp.connect(server, int(port), timeout=20)
        ftp.login()
        ftp.set_pasv(mode == "passive")
        got = io.BytesIO()
        ftp.retrbinary("RETR file", got.write)
        stored = ftp.storbinary("STOR file", io.BytesIO(CONTENT))
        same = got.getvalue() == CONTENT
        print(json.dumps({"read": len(got.getvalue()), "same": same, "stored": stored}))


if sys.argv[1] == "serve":
    Server(("", int(sys.argv[2])), Session).serve_forever()
else:
    client(*sys.argv[2:])
