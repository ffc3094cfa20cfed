"""The small decoder agrees with capstone over whole libraries, and never guesses."""

import glob

import capstone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psu_bin.arch import x86_64_decode as decode
from psu_bin.elf import Binary

LIBRARIES = [p for p in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib/x86_64-linux-gnu/libc.so.6",
                         "/lib64/libm.so.6", "/lib64/libc.so.6") if glob.glob(p)][:2]


@pytest.mark.parametrize("path", LIBRARIES)
def test_lengths_and_fields_of_a_library(path):
    binary = Binary.read(path)
    code = binary.contents(binary.section(".text"))
    reader = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    reader.skipdata = True
    count = 0
    base = 1 << 32                                # so that capstone prints all addresses in the same way
    for address, size, mnemonic, operands in reader.disasm_lite(code, base):
        if mnemonic == ".byte":
            continue
        address -= base
        i = decode.decode(code, address)
        count += 1
        assert i.end - address == size, (hex(address), mnemonic, operands)
        if "[rip " in operands:
            text = operands[operands.index("[rip ") + 5:operands.index("]")]
            value = int(text[2:], 0) * (-1 if text[0] == "-" else 1)
            assert i.rip_relative and decode.displacement(code, i) == value, (mnemonic, operands)
        elif mnemonic.startswith("j") or mnemonic == "call":
            if operands.startswith("0x"):
                assert decode.branch_target(code, i) + base == int(operands, 16), (mnemonic, operands)
                assert decode.is_call(i) == (mnemonic == "call") and decode.is_jump(i) == (mnemonic != "call")
            else:
                assert decode.is_indirect_jump(i) or decode.is_indirect_call(i), (mnemonic, operands)
        assert decode.is_lea(i) == (mnemonic == "lea")
    assert count > 10000


DETAIL = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
DETAIL.detail = True


@pytest.mark.parametrize("path", LIBRARIES[:1])
def test_memory_operands_of_a_library(path):
    binary = Binary.read(path)
    code = binary.contents(binary.section(".text"))
    names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
    checked = 0
    for insn in DETAIL.disasm(code[:120_000], 0):
        operands = [o for o in insn.operands if o.type == capstone.x86.X86_OP_MEM]
        i = decode.decode(code, insn.address)
        if not i.memory or i.map == 1 and i.opcode in (0x1E, 0x1F):
            continue
        assert len(operands) == 1
        o = operands[0].mem
        vector_index = insn.reg_name(o.index) if o.index else ""
        assert (names[i.base] if i.base >= 0 else "rip" if i.rip_relative else None) == (
            insn.reg_name(o.base) if o.base else None), insn
        if not vector_index or vector_index[0] in "r":
            assert (names[i.index] if i.index >= 0 else None) == (vector_index or None), insn
        if insn.bytes[0] != 0x62:         # EVEX scales its 8-bit displacements
            assert decode.displacement(code, i) == o.disp, insn
        checked += 1
    assert checked > 5000


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=20))
def test_no_bytes_make_it_fail_otherwise_than_said(data):
    try:
        i = decode.decode(data, 0)
    except (ValueError, IndexError):
        return
    assert 0 < i.end <= len(data)


@pytest.mark.parametrize("data", ["06", "60", "9a0000000000", "ea", "d6", "4848", "4866", "0f04", "0f3e", "8fe800"])
def test_what_64_bit_code_cannot_contain_is_refused(data):
    with pytest.raises((ValueError, IndexError)):
        decode.decode(bytes.fromhex(data) + bytes(2), 0)


def test_a_walk_stops_where_it_loses_its_place():
    assert [i.at for i in decode.walk(bytes.fromhex("90c3"), 0, 2)] == [0, 1]
    with pytest.raises(ValueError, match="reaches beyond"):
        decode.walk(bytes.fromhex("90e800000000c3"), 0, 3)
    with pytest.raises(ValueError, match="cut short"):
        decode.walk(bytes.fromhex("90e80000"), 0, 4)
