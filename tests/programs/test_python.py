"""Python's own networking: urllib, asyncio, multiprocessing, http.server."""

import hashlib
import threading

from world.internet import ECHO, LARGE

LARGE_SHA = hashlib.sha256(bytes(range(256)) * (LARGE // 256)).hexdigest()


def python(guest, source, *arguments, **kw):
    """Run a Python program to its end; what it printed."""
    argv = [guest.world.python, "-c", source, *map(str, arguments)]
    return guest.run(argv, check=True, **kw).stdout


def serve(guest, source, *arguments):
    """Start a Python server on a port of the host; `ADDRESS PORT` are its first arguments."""
    port = guest.port()
    argv = [guest.world.python, "-c", source, guest.world.host.addr4, str(port)]
    return guest.popen([*argv, *map(str, arguments)], listens=port), port


def exchange(guest, port, data):
    """Send data to a server of the guest from the peer, close our direction, take all it says."""
    with guest.world.peer.connect(guest.world.host.addr4, port) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(1)))
        sender.start()
        with sock.makefile("rb") as file:
            answer = file.read()
        sender.join()
    return answer


def test_urllib(guest):
    source = (
        "import urllib.request as r, hashlib\n"
        "print(hashlib.sha256(r.urlopen('http://web.test/large', timeout=20).read()).hexdigest())\n"
        "try: r.urlopen('http://v4only.test:9/')\n"
        "except OSError as error: print(error.reason.errno)\n"
    )
    assert python(guest, source).split() == [LARGE_SHA, "111"]
    guest.mediated(2, "connect")
    guest.mediated(1, "resolve", "web.test")


ASYNC_CLIENT = """
import asyncio, os, sys
host, port, many = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
async def one(number):
    reader, writer = await asyncio.open_connection(host, port)
    data = os.urandom(200_000 if number < 5 else 1000)
    writer.write(data)
    writer.write_eof()
    same = await reader.read(-1) == data
    writer.close()
    await writer.wait_closed()
    return same
async def main():
    print(sum(await asyncio.gather(*(one(n) for n in range(many)))))
asyncio.run(main())
"""


def test_asyncio_client(guest):
    assert python(guest, ASYNC_CLIENT, guest.world.web4, ECHO, 100) == "100\n"
    guest.mediated(100, "connect", f"{guest.world.web4}:{ECHO}")


ASYNC_SERVER = """
import asyncio, sys
async def talk(reader, writer):
    writer.write(writer.get_extra_info("peername")[0].encode() + b" ")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(talk, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()
asyncio.run(main())
"""


def test_asyncio_server(guest):
    server, port = serve(guest, ASYNC_SERVER)
    client = guest.world.peer.addr4.encode() + b" "
    with server:
        for size in (0, 1, 1000, 3_000_000):
            assert exchange(guest, port, bytes(size)) == client + bytes(size)
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(exchange(guest, port, b"x" * 5000)))
            for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [client + b"x" * 5000] * 30
    guest.mediated(1, "listen", f":{port}")


MULTIPROCESSING = """
import hashlib, multiprocessing, sys, urllib.request
def fetch(number):
    page = urllib.request.urlopen(f"http://{sys.argv[1]}/large?{number}", timeout=20).read()
    return hashlib.sha256(page).hexdigest()
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print(*pool.map(fetch, range(12), chunksize=1), sep="\\n")
"""


def test_multiprocessing_clients(guest):
    (guest.directory / "many.py").write_text(MULTIPROCESSING)
    argv = [guest.world.python, "many.py", guest.world.web4]
    assert guest.run(argv, check=True).stdout.split() == [LARGE_SHA] * 12
    guest.mediated(12, "connect", f"{guest.world.web4}:80")


PREFORK = """
import multiprocessing, os, signal, socket, sys
def work(listener):
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"%d " % os.getpid() + sock.recv(100))
if __name__ == "__main__":
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(listener,), daemon=True) for _ in range(3)]
    for worker in workers: worker.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which ends the workers
    for worker in workers: worker.join()
"""


def test_multiprocessing_workers_accept_from_one_listener(guest):
    server, port = serve(guest, PREFORK)
    with server:
        answers = [exchange(guest, port, b"%d" % n).split() for n in range(20)]
        assert [int(number) for _, number in answers] == list(range(20))
    guest.mediated(1, "listen", f":{port}")


def test_http_server(guest):
    (guest.directory / "page").write_bytes(bytes(range(256)) * (LARGE // 256))
    port, address = guest.port(), guest.world.host.addr4
    argv = [guest.world.python, "-m", "http.server", "--bind", address, str(port)]
    with guest.popen(argv, listens=port) as server:
        get = ["curl", "-sS", "--max-time", "20", "-o", "-", f"http://{address}:{port}/page"]
        for _ in range(5):
            page = guest.world.peer.run(get, text=False, check=True).stdout
            assert hashlib.sha256(page).hexdigest() == LARGE_SHA
        assert server.process.poll() is None
        assert server.stderr.count(f"{guest.world.peer.addr4} - - ") == 5
    guest.mediated(1, "listen", f":{port}")
