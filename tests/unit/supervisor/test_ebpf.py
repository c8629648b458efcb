"""Programs for the kernel: how instructions are put together, and that the kernel takes them."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from xensock.supervisor import ebpf
from xensock.supervisor.ebpf import R0, R1, R2

SOCK_OPS, CGROUP_SOCK_OPS = 13, 3
root = pytest.mark.skipif(os.geteuid() != 0, reason="programs in the kernel are root's to load")


def lines(code: ebpf.Code) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=BBhi", code.bytes()))


def test_instructions_are_those_of_the_standard() -> None:
    """RFC 9669, appendix A."""
    code = ebpf.Code()
    code.set(R0, -1)
    code.copy(R1, R0)
    code.load(8, R2, R1, 16)
    code.store(4, R1, -8, R2)
    code.put(1, R1, 3, 7)
    code.call(46)
    code.end()
    assert lines(code) == [
        (0xB7, 0x00, 0, -1), (0xBF, 0x01, 0, 0), (0x79, 0x12, 16, 0), (0x63, 0x21, -8, 0),
        (0x72, 0x01, 3, 7), (0x85, 0x00, 0, 46), (0x95, 0x00, 0, 0),
    ]  # fmt: skip


def test_jumps_lead_forward_and_back() -> None:
    code = ebpf.Code()
    code.label("begin")
    code.if_equal(R1, 5, "end")
    code.map(R2, 9)  # two places
    code.jump("begin")
    code.label("end")
    code.if_other(R1, 5, "begin")
    code.if_set(R1, 4, "end")
    assert [(line[0], line[2]) for line in lines(code)] == [
        (0x15, 3), (0x18, 0), (0x00, 0), (0x05, -4), (0x55, -5), (0x45, -2),
    ]  # fmt: skip


def test_a_label_that_is_nowhere() -> None:
    code = ebpf.Code()
    code.jump("there")
    with pytest.raises(KeyError):
        code.bytes()


@root
def test_the_kernel_refuses_what_it_cannot_vouch_for() -> None:
    code = ebpf.Code()
    code.load(8, R0, R1, 4096)  # beyond what it is given
    code.end()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is asserted
        ebpf.load(SOCK_OPS, CGROUP_SOCK_OPS, "beyond", code.bytes())
    assert caught.value.errno == errno.EACCES


@root
def test_what_the_kernel_takes() -> None:
    code = ebpf.Code()
    code.set(R0, 1)
    code.end()
    lost = ebpf.array(8)
    fds = [ebpf.ring(4096), lost, ebpf.load(SOCK_OPS, CGROUP_SOCK_OPS, "yes", code.bytes())]
    with ebpf.mapped(lost) as memory:
        assert memory[:8] == bytes(8)
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is asserted
        ebpf.ring(4097)
    assert caught.value.errno == errno.EINVAL


def test_a_machine_whose_number_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11") as caught:
        ebpf.ring(4096)
    assert caught.value.errno == errno.ENOSYS
