"""The assembler: labels become distances, and what cannot be one is an error."""

from __future__ import annotations

import struct

import pytest
from bpfkit import verdict

from xensock.supervisor import bpf


def test_labels_become_distances() -> None:
    asm = bpf.Assembler()
    asm.load(bpf.NR)
    asm.jump(bpf.JEQ, 7, "seven", "")
    asm.ret(1)
    asm.label("seven")
    asm.ret(2)
    program = asm.assemble()
    assert struct.unpack_from("=HBBI", program, 8) == (bpf.JEQ, 1, 0, 7)
    assert verdict(program, 7) == 2
    assert verdict(program, 8) == 1


def test_goto_is_not_limited_to_255() -> None:
    asm = bpf.Assembler()
    asm.goto("end")
    for _ in range(300):
        asm.ret(1)
    asm.label("end")
    asm.ret(2)
    assert verdict(asm.assemble(), 0) == 2


def test_a_jump_that_is_too_far() -> None:
    asm = bpf.Assembler()
    asm.jump(bpf.JEQ, 0, "end")
    for _ in range(256):
        asm.ret(1)
    asm.label("end")
    asm.ret(2)
    with pytest.raises(ValueError, match="too far"):
        asm.assemble()


@pytest.mark.parametrize("name", ["nowhere", "behind"])
def test_a_label_that_is_not_ahead(name: str) -> None:
    asm = bpf.Assembler()
    asm.label("behind")
    asm.ret(1)
    asm.goto(name)
    with pytest.raises(ValueError, match=name):
        asm.assemble()


def test_arguments_lie_where_the_kernel_puts_them() -> None:
    for index in range(6):
        asm = bpf.Assembler()
        asm.load(bpf.arg(index))
        asm.jump(bpf.JEQ, 0xABCD, "found", "")
        asm.ret(1)
        asm.label("found")
        asm.ret(2)
        arguments = [0] * 6
        arguments[index] = 0xABCD
        assert verdict(asm.assemble(), 0, arguments) == 2
