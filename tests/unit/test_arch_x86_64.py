"""Encodings of x86-64: each is disassembled again and compared; each range check is met from both sides."""

from __future__ import annotations

import capstone
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psu_bin.arch import x86_64
from psu_bin.descriptor import MODULE_IBT, MODULE_PIC
from psu_bin.errors import PsuError

ARCH = x86_64.ARCH
addresses = st.integers(0, (1 << 47) - 1)
near = st.integers(-(1 << 31) + 64, (1 << 31) - 64)


def disassemble(code: bytes, address: int) -> list[str]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    return [f"{i.mnemonic} {i.op_str}".strip() for i in engine.disasm(code, address)]


@given(address=addresses, distance=near, flags=st.sampled_from([0, MODULE_PIC, MODULE_IBT, MODULE_PIC | MODULE_IBT]))
def test_stub_jumps_through_its_slot(address: int, distance: int, flags: int) -> None:
    slot = max(0, address + distance)
    code = ARCH.stub(address, slot, flags)
    assert len(code) == ARCH.stub_size(flags) == (16 if flags & MODULE_IBT else 8)
    text = disassemble(code, address)
    if flags & MODULE_IBT:
        assert text.pop(0) == "endbr64"
    end = address + (11 if flags & MODULE_IBT else 6)
    relative = slot - end
    operand = f"qword ptr [rip {'-' if relative < 0 else '+'} {abs(relative):#x}]" if relative else "qword ptr [rip]"
    jump = text.pop(0)
    assert jump.startswith("notrack jmp " if flags & MODULE_IBT else "jmp ")
    if abs(relative) > 9:                 # capstone prints small numbers in decimal
        assert jump.replace("ds:", "").endswith(operand)      # notrack is the prefix of ds
    assert set(text) == {"int3"}


@given(address=addresses, distance=near)
def test_jump_leads_where_it_should(address: int, distance: int) -> None:
    to = max(0, address + distance)
    code = ARCH.jump(address, to)
    assert len(code) == ARCH.jump_size
    assert disassemble(code, address) == [f"jmp {to:#x}" if to > 9 else f"jmp {to}"]


def test_out_of_reach_is_refused() -> None:
    end = 0x100000000 + 5
    for distance, good in (((1 << 31) - 1, True), (1 << 31, False), (-(1 << 31), True), (-(1 << 31) - 1, False)):
        if good:
            assert ARCH.jump(end - 5, end + distance)
        else:
            with pytest.raises(PsuError):
                ARCH.jump(end - 5, end + distance)
            with pytest.raises(PsuError):
                ARCH.stub(end - 6, end + distance, 0)


LIMITS = {"REL32": (-(1 << 31), (1 << 31) - 1, 0x7F0000001000 + 4), "ABS32": (0, (1 << 31) - 1, 0),
          "ABS64": (0, (1 << 63) - 1, 0), "RELR_WORD": (0, (1 << 63) - 1, 0)}


@pytest.mark.parametrize("kind", ARCH.fields)
def test_fields_are_read_as_they_are_written(kind: str) -> None:
    low, high, base = LIMITS[kind]
    field = ARCH.fields[kind]
    target = np.array([base + low, base + high, base + low // 3 + high // 2])
    at = np.full(3, 0x7F0000001000)
    raw, fits = field.encode(at, np.zeros((3, field.size), np.uint8), target)
    assert fits.all() and raw.shape == (3, field.size)
    assert field.target(at, raw).tolist() == target.tolist()
    if kind in ("REL32", "ABS32"):
        outside = np.array([base + low - 1, base + high + 1])
        assert not field.encode(at[:2], np.zeros((2, field.size), np.uint8), outside)[1].any()


def test_a_call_is_rerouted() -> None:
    field = ARCH.fields["REL32"]
    raw, _ = field.encode(np.array([0x1001]), np.zeros((1, 4), np.uint8), np.array([0x2000]))
    assert disassemble(b"\xe8" + raw.tobytes(), 0x1000) == ["call 0x2000"]


def test_operands_that_may_refer_to_a_range_are_found() -> None:
    lea = bytes.fromhex("488d05") + (0x3000 - 0x1007).to_bytes(4, "little")         # lea 0x3000(%rip), %rax
    compare = bytes.fromhex("833d") + (0x3000 - 0x1007).to_bytes(4, "little") + b"\x07"   # cmpl $7, 0x3000(%rip)
    store = bytes.fromhex("c705") + (0x3000 - 0x100A).to_bytes(4, "little") + bytes(4)    # movl $0, 0x3000(%rip)
    for code in (lea, compare, store):
        for pad in (0, (1 << 20) - 4, (1 << 20) + 1):     # across the parts in which it looks
            padded = bytes(pad) + code + bytes(8)
            at = 0x1000 - pad
            assert ARCH.may_refer(padded, at, 0x3000, 0x3001, False)
            assert not ARCH.may_refer(padded, at, 0x3001 + 4, 0x4000, False)
            assert not ARCH.may_refer(padded, at, 0x2000, 0x2FF0, False)
    move = b"\xbf" + (0x403000).to_bytes(4, "little")     # mov $0x403000, %edi
    assert ARCH.may_refer(move, 0x401000, 0x403000, 0x403001, True)
    assert not ARCH.may_refer(move, 0x401000, 0x403000, 0x403001, False)
