"""Both AArch64 decoders against capstone, over every kind of word that the C library has.

aarch64_registers.py (instrument) must find at least what is read and written; aarch64_decode.py (attach) must not say that a
register is gone when it is not."""

from __future__ import annotations

from pathlib import Path

import capstone
import numpy as np
import pytest

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch import aarch64_registers as registers
from psu_bin.arch import aarch64_words as words
from psu_bin.elf import Binary

LIBRARIES = ("/usr/aarch64-linux-gnu/lib/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6")
# What capstone says wrongly: comparisons write nothing; prefetches and barriers have no register result.
NO_RESULT = ("cmp", "cmn", "tst", "ccmp", "ccmn", "prfm", "prfum")


@pytest.fixture(scope="module")
def samples() -> list[capstone.CsInsn]:
    """One instruction of each mnemonic and form of operands, in different registers."""
    path = next((p for p in LIBRARIES if Path(p).exists()), None)
    if path is None:
        pytest.skip("no AArch64 C library: scripts/setup.sh installs what AArch64 needs")
    binary = Binary.read(path)
    text = next(s for s in binary.sections if s.name == ".text")
    every = np.unique(np.frombuffer(binary.contents(text), dtype="<u4"))
    cs = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    cs.detail = cs.skipdata = True             # the text has words that are data
    found: dict[tuple, list[capstone.CsInsn]] = {}
    for insn in cs.disasm(every[::9].tobytes(), 0):
        if not insn.id:
            continue
        key = insn.mnemonic, tuple(o.type for o in insn.operands)
        if len(found.setdefault(key, [])) < 4:
            found[key].append(insn)
    assert len(found) > 120
    return [i for some in found.values() for i in some]


def general(insn: capstone.CsInsn, numbers) -> int:
    """capstone's register numbers as a bit set of x0 to x30."""
    out = 0
    for n in numbers:
        name = {"fp": "x29", "lr": "x30"}.get(insn.reg_name(n), insn.reg_name(n))
        if name[0] in "xw" and name[1:].isdigit():
            out |= 1 << int(name[1:])
    return out


@pytest.mark.skipif(capstone.cs_version()[0] < 5, reason="this capstone has what adds writes read, too")
def test_what_is_read_and_written_is_found(samples):
    for insn in samples:
        word = np.array([int.from_bytes(insn.bytes, "little")], dtype=np.uint32)
        mine = registers.general(word)
        if mine.vector[0] or insn.mnemonic in ("svc", "brk"):
            continue                          # capstone is asked itself; a system call is no register operand
        reads, writes = insn.regs_access()
        if insn.mnemonic in NO_RESULT:
            writes = []
        if word[0] & 0x5F800000 == 0x13000000 or word[0] & 0x5F800000 == 0x53000000:
            reads = reads[:0]                 # shifts and extracts: capstone has the destination read, too
        what = f"{insn.mnemonic} {insn.op_str} ({insn.bytes.hex()})"
        assert not general(insn, reads) & ~int(mine.reads[0]), f"reads of {what}"
        assert not general(insn, writes) & ~int(mine.writes[0]), f"writes of {what}"


def test_attach_s_decoder_never_says_too_much(samples):
    for insn in samples:
        word = int.from_bytes(insn.bytes, "little")
        if word >> 25 & 15 == 2 or word & 0xFF200000 == 0xD9200000:
            continue                          # SVE, memory tags: no operands that attach looks at
        what = f"{insn.mnemonic} {insn.op_str} ({insn.bytes.hex()})"
        if not decode.is_call(word) and not decode.is_indirect_call(word):
            known = int(registers.general(np.array([word], dtype=np.uint32)).writes[0])
            assert not decode.writes(word) & ~known, what
        memory = [o for o in insn.operands if o.type == capstone.arm64.ARM64_OP_MEM]
        m = decode.memory(word)
        assert (m is not None) == bool(memory) or insn.mnemonic.startswith("prf"), what
        if m is not None and memory:
            base = {"sp": 31, "fp": 29, "lr": 30}.get(insn.reg_name(memory[0].mem.base),
                                                       insn.reg_name(memory[0].mem.base)[1:])
            assert m.base == int(base), what
            assert m.offset == memory[0].mem.disp or memory[0].mem.disp == 0, what
            assert (m.index >= 0) == bool(memory[0].mem.index), what
        assert decode.is_copy(word) <= (insn.mnemonic == "mov"), what


@pytest.mark.parametrize(("word", "reads", "writes"), [
    (0xF8200041, 1 << 0 | 1 << 2, 1 << 1),             # ldadd x0, x1, [x2]
    (0xC8A07C41, 0b111, 1 << 0),                       # cas x0, x1, [x2]
    (0xC8017C62, 0b1100, 1 << 1),                      # stxr w1, x2, [x3]
    (0xD503233F, 1 << 30, 1 << 30),                    # paciasp
    (0xD53BD040, 0, 1 << 0),                           # mrs x0, tpidr_el0
    (0xF2800020, 1, 1),                                # movk x0, #1
    (0xB3401C20, 0b11, 1),                             # bfxil x0, x1, #0, #8
    (0xA9FF0BE1, 0, 0b110),                            # ldp x1, x2, [sp, #-16]!
])
def test_what_capstone_says_wrongly(word, reads, writes):
    r = registers.general(np.array([word], dtype=np.uint32))
    assert (int(r.reads[0]), int(r.writes[0])) == (reads, writes)


@pytest.mark.parametrize("word", [0x94000000, 0x14000000, 0x54000001, 0x35000003, 0x37180001, 0x58000003, 0x10000003,
                                  0x90000003])
def test_immediates_go_in_and_come_out(word):
    at, w = np.array([0x400000], dtype=np.int64), np.array([word], dtype=np.uint32)
    step = 4096 if word == 0x90000003 else 1 if word == 0x10000003 else 4
    bits = {0x94000000: 26, 0x14000000: 26, 0x37180001: 14, 0x10000003: 21, 0x90000003: 21}.get(word, 19)
    for n, good in ((0, True), (-(1 << bits - 1), True), ((1 << bits - 1) - 1, True), (1 << bits - 1, False),
                    (-(1 << bits - 1) - 1, False)):
        goal = at + step * n
        new, fits = words.encode(at, w, goal)
        assert bool(fits[0]) is good
        if good:
            assert words.target(at, new, words.form(new))[0] == goal[0]
            mask = ~np.uint32(0x60FFFFE0 if step != 4 else (1 << bits) - 1 << (0 if bits == 26 else 5))
            assert new[0] & mask == w[0] & mask
