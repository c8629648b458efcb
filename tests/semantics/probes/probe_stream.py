"""Data on a connected stream: how it ends, how it is read, and the calls that move it."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import tempfile
import termios

from kit import (
    Far,
    Net,
    both,
    echo,
    main,
    outcome,
    pending,
    poll,
    raw,
    read,
    read_all,
    say,
    set_timeval,
    token,
    wait_for,
)

SIOCOUTQ = termios.TIOCOUTQ
RESET = b"\x01\0\0\0\0\0\0\0"


def queued(sock: socket.socket, request: int = termios.FIONREAD) -> int:
    number = array.array("i", [0])
    fcntl.ioctl(sock, request, number)
    return number[0]


def summary(sock: socket.socket) -> dict[str, object]:
    answer = json.loads(read_all(sock))
    assert isinstance(answer, dict)
    return answer


@both
def half_close_write(net: Net) -> None:
    """We shut our half; the answer still comes."""
    sock = net.far("sink")
    sock.sendall(b"x" * 100_000)
    say("shutdown", outcome(sock.shutdown, socket.SHUT_WR), "ok")
    say("send", outcome(sock.send, b"more", socket.MSG_NOSIGNAL), "EPIPE")
    answer = summary(sock)
    say("they got", [answer["count"], answer["end"]], [100_000, "eof"])
    say("again", outcome(sock.shutdown, socket.SHUT_WR))
    say("events", poll(sock))


@both
def half_close_peer(net: Net) -> None:
    """They shut theirs; ours still carries data."""
    far, box = Far(), token()
    sock = net.far("leave")
    sock.sendall(box.encode() + b"\n")
    say("their word", read_all(sock).decode(), "bye")
    say("events", poll(sock), "IN|OUT|RDHUP")
    say("read again", sock.recv(10).decode(), "")
    sock.sendall(b"y" * 50_000)
    say("events", poll(sock), "IN|OUT|RDHUP")
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [50_000, "eof"])


@both
def shutdown_read(net: Net) -> None:
    sock = net.far("echo")
    say("echo", echo(sock), "hello")
    say("shutdown", outcome(sock.shutdown, socket.SHUT_RD), "ok")
    say("events", poll(sock), "IN|OUT|RDHUP")
    say("recv", sock.recv(10).decode(), "")
    say("send", outcome(sock.send, b"more"), 4)


@both
def shutdown_both(net: Net) -> None:
    far, box = Far(), token()
    sock = net.far("watch")
    sock.sendall(box.encode() + b"\nend")
    say("shutdown", outcome(sock.shutdown, socket.SHUT_RDWR), "ok")
    say("events", poll(sock))
    say("recv", sock.recv(10).decode(), "")
    say("send", outcome(sock.send, b"more", socket.MSG_NOSIGNAL), "EPIPE")
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [3, "eof"])
    say("unconnected", outcome(net.socket().shutdown, socket.SHUT_RDWR), "ENOTCONN")
    say("bad how", raw("shutdown", sock.fileno(), 7), "EINVAL")


@both
def close_delivers(net: Net) -> None:
    """What was written before close arrives, all of it."""
    far, box = Far(), token()
    sock = net.far("watch")
    sock.sendall(box.encode() + b"\n" + b"z" * 2_000_000)
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [2_000_000, "eof"])


@both
def exit_delivers(net: Net) -> None:
    """What was written before exit arrives, though nobody closed."""
    far, box = Far(), token()
    pid = os.fork()
    if pid == 0:
        net.far("watch").sendall(box.encode() + b"\n" + b"z" * 300_000)
        os._exit(0)
    os.waitpid(pid, 0)
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [300_000, "eof"])


@both
def reset_by_linger(net: Net) -> None:
    """SO_LINGER 0: the peer sees a reset, not an end."""
    far, box = Far(), token()
    sock = net.far("watch")
    sock.sendall(box.encode() + b"\n")
    wait_for(lambda: queued(sock, SIOCOUTQ) == 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they saw", answer["end"], "ECONNRESET")


@both
def reset_by_unread_data(net: Net) -> None:
    """Closing with data unread is a reset too (RFC 2525, 2.17)."""
    far, box = Far(), token()
    sock = net.far("leave")
    sock.sendall(box.encode() + b"\n")
    poll(sock, 1)
    wait_for(lambda: queued(sock) == 3)
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they saw", answer["end"], "ECONNRESET")


@both
def linger_waits(net: Net) -> None:
    """SO_LINGER with a time: close returns when the peer has it all."""
    far, box = Far(), token()
    sock = net.far("watch")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\x0a\0\0\0")
    sock.sendall(box.encode() + b"\n" + b"l" * 100_000)
    say("close", outcome(sock.close), "ok")
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they got", [answer["count"], answer["end"]], [100_000, "eof"])


@both
def reset_by_peer(net: Net) -> None:
    sock = net.far("reset")
    sock.sendall(b"go\n")
    say("events", poll(sock, 1))
    say("recv", outcome(sock.recv, 10), "ECONNRESET")
    say("recv again", outcome(sock.recv, 10), "")
    say("peer", outcome(sock.getpeername), "ENOTCONN")
    sock = net.far("reset")
    sock.sendall(b"go\n")
    poll(sock, 1)
    say("SO_ERROR", pending(sock), "ECONNRESET")
    say("SO_ERROR again", pending(sock), "ok")
    say("send", outcome(sock.send, b"x", socket.MSG_NOSIGNAL), "EPIPE")


@both
def broken_pipe(net: Net) -> None:
    """Writing after a reset: EPIPE and SIGPIPE, or only EPIPE with MSG_NOSIGNAL."""
    seen: list[int] = []
    signal.signal(signal.SIGPIPE, lambda number, _frame: seen.append(number))
    sock = net.far("reset")
    sock.sendall(b"go\n")
    poll(sock, 1)
    outcome(sock.recv, 1)
    say("nosignal", outcome(sock.send, b"x", socket.MSG_NOSIGNAL), "EPIPE")
    say("no signal", len(seen), 0)
    say("send", outcome(sock.send, b"x"), "EPIPE")
    say("signal", seen, [int(signal.SIGPIPE)])
    say("write", outcome(os.write, sock.fileno(), b"x"), "EPIPE")
    say("signals", len(seen), 2)


@both
def server_side_reset(net: Net) -> None:
    """An accepted connection reset by its client."""
    listener, far, box = net.listener(), Far(), token()
    port = listener.getsockname()[1]
    far.ask(op="dial later", token=box, host=net.host, port=port, reset=True, half=False)
    conn, _ = listener.accept()
    conn.sendall(b"x")
    say("recv", outcome(conn.recv, 10), "ECONNRESET")
    far.box(box)


@both
def server_resets(net: Net) -> None:
    """The guest's server resets its client."""
    listener, far, box = net.listener(), Far(), token()
    port = listener.getsockname()[1]
    far.ask(op="dial later", token=box, host=net.host, port=port, half=False)
    conn, _ = listener.accept()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    conn.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("they saw", answer.get("end"), "ECONNRESET")


@both
def read_flags(net: Net) -> None:
    sock = net.far("echo")
    say("nothing yet", outcome(sock.recv, 1, socket.MSG_DONTWAIT), "EAGAIN")
    sock.sendall(b"abcdefgh")
    wait_for(lambda: queued(sock) == 8)
    say("FIONREAD", queued(sock), 8)
    say("peek", sock.recv(3, socket.MSG_PEEK).decode(), "abc")
    say("peek all", sock.recv(100, socket.MSG_PEEK).decode(), "abcdefgh")
    say("read", sock.recv(3).decode(), "abc")
    say("trunc discards", raw("recv", sock.fileno(), None, 2, int(socket.MSG_TRUNC)), 2)
    say("left", queued(sock), 3)
    say("read rest", sock.recv(100).decode(), "fgh")
    say("peek nothing", outcome(sock.recv, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT), "EAGAIN")
    say("zero bytes", outcome(sock.recv, 0), "")
    say("SIOCOUTQ", wait_for(lambda: queued(sock, SIOCOUTQ) == 0), True)
    say("bad flag for OOB", outcome(sock.recv, 1, socket.MSG_OOB), "EINVAL")


@both
def wait_all(net: Net) -> None:
    sock = net.far("source")
    sock.sendall(b"500000\n")
    data = sock.recv(500_000, socket.MSG_WAITALL)
    say("all of it", len(data), 500_000)
    say("right", data[:256] == bytes(range(256)), True)
    say("end", sock.recv(10).decode(), "")
    sock = net.far("source")
    sock.sendall(b"1000\n")
    say("short at the end", len(sock.recv(5000, socket.MSG_WAITALL)), 1000)


@both
def scatter(net: Net) -> None:
    sock = net.far("echo")
    say("sendmsg", sock.sendmsg([b"ab", b"cdef", b"", b"g"]), 7)
    buffers = [bytearray(2), bytearray(5)]
    wait_for(lambda: queued(sock) == 7)
    size, _, flags, address = sock.recvmsg_into(buffers)
    say("recvmsg", [size, flags, address, bytes(buffers[0]).decode(), bytes(buffers[1]).decode()])
    say("writev", os.writev(sock.fileno(), [b"12", b"345"]), 5)
    wait_for(lambda: queued(sock) == 5)
    say("readv", os.readv(sock.fileno(), [bytearray(1), bytearray(9)]), 5)
    say("MSG_MORE", sock.send(b"more ", socket.MSG_MORE) + sock.send(b"done"), 9)
    say("whole", read(sock, 9).decode(), "more done")
    say("sendto the peer", outcome(sock.sendto, b"x", sock.getpeername()))
    say("sendto elsewhere", outcome(sock.sendto, b"x", (net.peer, 9)))


@both
def unconnected(net: Net) -> None:
    sock = net.socket()
    say("recv", outcome(sock.recv, 1), "ENOTCONN")
    say("send", outcome(sock.send, b"x", socket.MSG_NOSIGNAL), "EPIPE")
    say("events", poll(sock), "OUT|HUP")
    say("getpeername", outcome(sock.getpeername), "ENOTCONN")
    say("sendto", outcome(sock.sendto, b"x", socket.MSG_NOSIGNAL, (net.peer, 9)), "EPIPE")


@both
def send_file(net: Net) -> None:
    content = bytes(range(256)) * 4096
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        sock = net.far("sink")
        sent = 0
        while sent < len(content):
            sent += os.sendfile(sock.fileno(), file.fileno(), sent, len(content) - sent)
        sock.shutdown(socket.SHUT_WR)
        import hashlib

        answer = summary(sock)
        say("count", answer["count"], len(content))
        say("right", answer["sha"] == hashlib.sha256(content).hexdigest()[:16], True)


@both
def splice(net: Net) -> None:
    read_end, write_end = os.pipe()
    sock = net.far("echo")
    os.write(write_end, b"through a pipe")
    say("to the socket", os.splice(read_end, sock.fileno(), 14), 14)
    wait_for(lambda: queued(sock) == 14)
    say("from the socket", os.splice(sock.fileno(), write_end, 14), 14)
    say("read", os.read(read_end, 100).decode(), "through a pipe")


@both
def large(net: Net) -> None:
    """Eight megabytes there and back, writer and reader at once."""
    import threading

    content = os.urandom(1 << 20) * 8
    sock = net.far("echo")

    def write() -> None:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    writer.start()
    data = read_all(sock)
    writer.join()
    say("same", data == content, True)


@both
def back_pressure(net: Net) -> None:
    """A peer that does not read: the socket fills, poll says so, and nothing is lost."""
    far, box = Far(), token()
    sock = net.far("hold")
    sock.sendall(box.encode() + b"\n")
    sock.setblocking(False)
    sent = full = 0
    while full < 2:
        result = outcome(sock.send, b"p" * 65536)
        if isinstance(result, int):
            sent, full = sent + result, 0
        elif poll(sock, 4, seconds=0.4) == "-":
            full += 1  # twice in a row: the buffers on the way have stopped moving
    say("bounded", sent < 64 << 20, True)
    say("full", outcome(sock.send, b"p" * 65536), "EAGAIN")
    say("not writable", poll(sock, 4, seconds=0), "-")
    sock.setblocking(True)
    set_timeval(sock, socket.SO_SNDTIMEO, 0.1)
    say("timeout", outcome(sock.send, b"p" * 65536), "EAGAIN")
    far.ask(op="note", token=f"go {box}", value=1)
    say("writable again", poll(sock, 4), "OUT")
    sock.close()
    answer = far.box(box)
    assert isinstance(answer, dict)
    say("all of it", [answer["count"] == sent, answer["end"]], [True, "eof"])


@both
def receive_timeout(net: Net) -> None:
    sock = net.far("echo")
    set_timeval(sock, socket.SO_RCVTIMEO, 0.05)
    say("recv", outcome(sock.recv, 1), "EAGAIN")
    set_timeval(sock, socket.SO_RCVTIMEO, 10)
    say("still fine", echo(sock), "hello")


@both
def out_of_band(net: Net) -> None:
    sock = net.far("urgent")
    sock.sendall(b"go\n")
    say("events", poll(sock, 2), "PRI")
    say("before the mark", read(sock, 2).decode(), "ab")
    say("urgent", sock.recv(1, socket.MSG_OOB).decode(), "!")
    say("after", read(sock, 2).decode(), "cd")


@both
def owner(net: Net) -> None:
    """SIGIO for a socket that asked for it before it was connected."""
    seen: list[int] = []
    signal.signal(signal.SIGIO, lambda number, _frame: seen.append(number))
    sock = net.socket()
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    say("owner", fcntl.fcntl(sock, fcntl.F_GETOWN) == os.getpid(), True)
    from kit import PORTS

    sock.connect((net.peer, PORTS["echo"]))
    say("owner kept", fcntl.fcntl(sock, fcntl.F_GETOWN) == os.getpid(), True)
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)
    sock.sendall(b"hello")
    # A reader that is asleep in recv is woken instead of signalled.
    say("readable", poll(sock, 1), "IN")
    say("SIGIO came", wait_for(lambda: seen), True)


main()
