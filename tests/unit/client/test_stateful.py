"""The same random calls with the kernel's sockets and with ours: results, data, errno and readiness."""

from __future__ import annotations

import socket as standard
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from xensock.client import sockets
from xensock.testing.sockets import datagram_machine, stream_machine

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("machine", [stream_machine, datagram_machine])
def test_own_sockets_are_as_the_kernels(machine: Callable[..., Any], attached: str) -> None:
    run_state_machine_as_test(machine(standard.socket, sockets.socket), settings=RUN)


@pytest.mark.slow
def test_a_difference_is_found() -> None:
    """A socket that loses a byte."""

    class Losing(standard.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            return super().recv(size, flags)[:-1]

        def accept(self) -> tuple[standard.socket, Any]:
            accepted, address = super().accept()
            return Losing(fileno=accepted.detach()), address

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            stream_machine(standard.socket, Losing),
            settings=settings(
                RUN,
                max_examples=300,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            ),
        )
