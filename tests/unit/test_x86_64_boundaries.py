"""Instruction boundaries and fields, held against capstone over whole libraries, and against bytes made up."""

from __future__ import annotations

from pathlib import Path

import capstone
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psu_bin.arch import x86_64_boundaries as boundaries
from psu_bin.elf import Binary


def lengths(code: bytes) -> np.ndarray:
    return boundaries.lengths(np.frombuffer(code + bytes(boundaries.PADDING), dtype=np.uint8))


@pytest.mark.parametrize("pattern", ["libc.so.6", "libstdc++.so.6", "libgcc_s.so.1"])
def test_boundaries_agree_with_capstone_over_whole_libraries(pattern):
    found = [p for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
             for p in Path(folder).glob(pattern)]
    if not found:
        pytest.skip(f"no {pattern}")
    binary = Binary.read(found[0])
    section = binary.section(".text")
    code = binary.contents(section)[:600_000]
    size = lengths(code)
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.skipdata = True
    different = [(hex(section.address + at), n, int(size[at]), name) for at, n, name, _ in disassembler.disasm_lite(code, 0)
                 if at + 15 < len(code) and size[at] != n and not name.startswith(".")]
    assert not different


CASES = {
    "c3": 1, "c20800": 3, "c8100000": 4, "90": 1, "6690": 2, "f390": 2, "660f1f440000": 6,
    "e800000000": 5, "67e800000000": 6, "f2e900000000": 6, "66e800000000": 6, "eb00": 2, "0f8400000000": 6, "e300": 2,
    "b878563412": 5, "66b83412": 4, "48b8efcdab8967452301": 10, "4166bb3412": 0, "6641bb3412": 5,
    "a1efcdab8967452301": 9, "c7050000000001000000": 10, "66c7050000000001 00": 9, "48c7c001000000": 7,
    "f6c001": 3, "f6d0": 2, "f7c001000000": 6, "66f7c00100": 5, "f7d8": 2, "f7f9": 2,
    "8b0425efcdab00": 7, "8b442408": 4, "8b8424efcdab00": 7, "8b05efcdab00": 6, "488d3d00000000": 7, "418b4500": 4,
    "0f05": 2, "0f0b": 2, "f30f1efa": 4, "0fa4c105": 4, "0fbae003": 4, "660f3a0fc108": 6, "660f3800c1": 5,
    "f20f38f0c1": 5, "c5f877": 3, "c5f96fc1": 4, "c5fd6f0500000000": 8, "c4e37d19c101": 6, "c4e2711805efcdab00": 9,
    "c4e3794bc120": 6, "62f17c48104801": 7, "62f37d483ec104": 7, "8fe878c2ec0e": 6, "8fe97881c1": 5, "8fc0": 2,
    "06": 0, "60": 0, "9a": 0, "d4": 0, "ea": 0, "0f04": 0, "0f20c0": 0, "4848c3": 0, "c7f800000000": 6,
    "6666666666662e0f1f840000000000": 15,
}


@pytest.mark.parametrize("code,size", CASES.items())
def test_single_instructions(code, size):
    assert lengths(bytes.fromhex(code))[0] == size


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=64))
def test_any_bytes_give_a_walk_that_ends(code):
    size = lengths(code)
    starts, wrong = boundaries.walk(size, np.array([0]), np.array([len(code)]))
    padded = np.frombuffer(code + bytes(boundaries.PADDING), dtype=np.uint8)
    fields = boundaries.fields(padded, starts, size[starts])
    covered = int(size[starts].sum()) + len(wrong)
    assert covered >= len(code) - 15 and len(fields.opcode) == len(starts)
    # The parts of an instruction are all of it.
    assert ((fields.disp_at + fields.disp_size + fields.imm_size) == size[starts]).all()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.binary(min_size=15, max_size=15))
def test_where_capstone_decodes_an_instruction_the_length_is_the_same(code):
    """Apart from what 66 does to branches, where processors differ, and the operands of ud0 and ud1."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    insn = next(disassembler.disasm(code, 0, 1), None)
    size = int(lengths(code)[0])
    if insn is not None and size and 0x66 not in insn.prefix and insn.mnemonic not in ("ud0", "ud1"):
        assert size == insn.size


def test_walk_begins_anew_at_every_start_and_reports_what_overlaps():
    size = lengths(bytes.fromhex("48b8") + bytes.fromhex("90") * 8)
    starts, wrong = boundaries.walk(size, np.array([0, 4]), np.array([4, 10]))
    assert starts.tolist() == [4, 5, 6, 7, 8, 9]
    assert wrong.tolist() == [0]
