"""install(): a program that knows nothing of XenSock is at the backend. Each test is such a program."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

from world.namespaces import needs

if TYPE_CHECKING:
    from pathlib import Path


def program(text: str, url: str | None = None) -> str:
    """What a program prints; `url` is its XENSOCK. A program that fails fails the test."""
    environment = {name: value for name, value in os.environ.items() if name != "XENSOCK"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        env=environment | ({"XENSOCK": url} if url else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_names_the_backend(backend_url: str) -> None:
    said = program(
        """
        import socket, xensock
        xensock.install()
        with socket.create_server(("localhost", 0)) as server:
            with socket.create_connection(server.getsockname()) as client:
                accepted, address = server.accept()
                with accepted:
                    print(type(client) is type(accepted) is xensock.socket)
                    print(address == client.getsockname())
        kernel = socket.socketpair()
        print(kernel[0].family is socket.AF_UNIX)
        for each in kernel:
            each.close()
        xensock.uninstall()
        print(socket.socket is xensock.socket)
        """,
        backend_url,
    )
    assert said.split() == ["True", "True", "True", "False"]


def test_nobody_is_attached() -> None:
    said = program(
        """
        import xensock
        for call in (xensock.socket, xensock.install, lambda: xensock.getaddrinfo("a.test", 1)):
            try:
                call()
            except xensock.NotAttached as error:
                print(isinstance(error, OSError), "XENSOCK" in str(error))
        """
    )
    assert said.split() == ["True"] * 6


def test_a_backend_that_is_not_there() -> None:
    said = program(
        """
        import xensock
        for url in ("local:/nowhere/socket", "nonsense"):
            try:
                xensock.attach(url)
            except (OSError, ValueError) as error:
                print(isinstance(error, FileNotFoundError), isinstance(error, ValueError))
        """
    )
    assert said.split() == ["True", "False", "False", "True"]


def test_asyncio_streams(backend_url: str) -> None:
    said = program(
        """
        import asyncio, os, xensock
        xensock.install()

        async def answer(reader, writer):
            writer.write((await reader.read())[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def ask(port, data):
            reader, writer = await asyncio.open_connection("localhost", port)
            writer.write(data)
            writer.write_eof()
            back = await reader.read()
            writer.close()
            await writer.wait_closed()
            return back == data[::-1]

        async def main():
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            print(all(await asyncio.gather(*(ask(port, os.urandom(200_000)) for _ in range(20)))))
            server.close()
            await server.wait_closed()

        asyncio.run(main())
        """,
        backend_url,
    )
    assert said.split() == ["True"]


@needs("openssl")
def test_asyncio_streams_under_ssl(backend_url: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    said = program(
        f"""
        import asyncio, os, ssl, xensock
        xensock.install()
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        theirs.load_cert_chain({str(certificate)!r}, {str(key)!r})
        ours = ssl.create_default_context(cafile={str(certificate)!r})

        async def answer(reader, writer):
            writer.write((await reader.readexactly(200_000))[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def ask(port):
            reader, writer = await asyncio.open_connection("localhost", port, ssl=ours)
            data = os.urandom(200_000)
            writer.write(data)
            back = await reader.read(-1)
            own = type(writer.get_extra_info("socket")._sock) is xensock.socket
            version = writer.get_extra_info("ssl_object").version()
            writer.close()
            return own and version.startswith("TLS") and back == data[::-1]

        async def main():
            server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=theirs)
            port = server.sockets[0].getsockname()[1]
            print(all(await asyncio.gather(*(ask(port) for _ in range(10)))))
            server.close()
            await server.wait_closed()

        asyncio.run(main())
        """,
        backend_url,
    )
    assert said.split() == ["True"]


def test_a_web_server_and_its_client(backend_url: str) -> None:
    said = program(
        """
        import http.server, threading, urllib.request, xensock
        xensock.install()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"hello from " + self.path.encode())
            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with urllib.request.urlopen(f"http://localhost:{server.server_port}/x") as answer:
                print(answer.read().decode())
            server.shutdown()
            thread.join()
        """,
        backend_url,
    )
    assert said == "hello from /x\n"
