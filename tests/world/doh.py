"""A server of DNS over HTTPS (RFC 8484) for one address: `doh.py HOST PORT CERTIFICATE KEY ADDRESS`.

Every question for an IPv4 address is answered with ADDRESS; the names that were asked go to standard output.
"""

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dns.message
import dns.rdatatype
import dns.rrset

KIND = "application/dns-message"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    address = ""

    def do_POST(self) -> None:
        query = dns.message.from_wire(self.rfile.read(int(self.headers["Content-Length"])))
        (question,) = query.question
        print(question.name, dns.rdatatype.to_text(question.rdtype), flush=True)
        response = dns.message.make_response(query, recursion_available=True)
        if question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", self.address))
        body = response.to_wire()
        self.send_response(200)
        self.send_header("Content-Type", KIND)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Standard output has the names."""


def main(host: str, port: str, certificate: str, key: str, address: str) -> None:
    Handler.address = address
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
