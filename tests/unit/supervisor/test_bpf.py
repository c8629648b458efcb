"""The assembler: labels become distances, and what cannot be one is an error."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from bpfkit import verdict
from hypothesis import given
from hypothesis import strategies as st

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


WORDS = st.integers(0, 2**32 - 1)
COMPARE = {
    bpf.JEQ: lambda a, k: a == k,
    bpf.JGT: lambda a, k: a > k,
    bpf.JGE: lambda a, k: a >= k,
    bpf.JSET: lambda a, k: bool(a & k),
}


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> tuple[Any, ...]:
    """A decision: ("ret", value), or ("if", code, k, offset of what is asked, yes, no)."""
    if depth == 0 or draw(st.booleans()):
        return "ret", draw(WORDS)
    offset = draw(st.sampled_from([bpf.NR, *(bpf.arg(i) for i in range(6))]))
    k = draw(st.sampled_from([0, 1, 7, 0x80000000, 2**32 - 1]) | WORDS)
    yes, no = draw(trees(depth - 1)), draw(trees(depth - 1))
    return "if", draw(st.sampled_from(sorted(COMPARE))), k, offset, yes, no


def emit(asm: bpf.Assembler, tree: tuple[Any, ...], name: str) -> None:
    if tree[0] == "ret":
        asm.ret(tree[1])
        return
    _, code, k, offset, yes, no = tree
    asm.load(offset)
    asm.jump(code, k, name + "y", "")
    emit(asm, no, name + "n")
    asm.label(name + "y")
    emit(asm, yes, name + "y")


def decide(tree: tuple[Any, ...], number: int, arguments: list[int]) -> int:
    while tree[0] == "if":
        _, code, k, offset, yes, no = tree
        asked = number if offset == bpf.NR else arguments[(offset - 16) // 8] & 0xFFFFFFFF
        tree = yes if COMPARE[code](asked, k) else no
    return int(tree[1])


@given(trees(), WORDS, st.lists(st.integers(0, 2**64 - 1) | st.just(7), min_size=6, max_size=6))
def test_any_program_decides_as_it_was_written(
    tree: tuple[Any, ...], number: int, arguments: list[int]
) -> None:
    asm = bpf.Assembler()
    emit(asm, tree, "t")
    program = asm.assemble()
    assert len(program) % 8 == 0
    assert verdict(program, number, arguments) == decide(tree, number, arguments)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_distance_is_exact_or_an_error(before: int, after: int) -> None:
    asm = bpf.Assembler()
    asm.jump(bpf.JEQ, 1, "yes", "no")
    for name, count in (("no", before), ("yes", after)):
        for _ in range(count):
            asm.load(bpf.NR)
        asm.label(name)
        asm.ret(len(name))
    if before + 1 + after > 255:
        with pytest.raises(ValueError, match="too far"):
            asm.assemble()
    else:
        assert struct.unpack_from("=HBBI", asm.assemble()) == (
            bpf.JEQ,
            before + 1 + after,
            before,
            1,
        )


@given(st.integers())
def test_constants_are_of_32_bits(k: int) -> None:
    asm = bpf.Assembler()
    asm.jump(bpf.JEQ, k)
    asm.ret(0)
    assert struct.unpack_from("=HBBI", asm.assemble())[3] == k % 2**32
