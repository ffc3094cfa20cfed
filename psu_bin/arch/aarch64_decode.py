"""Just enough AArch64 decoding for attach: control flow, memory operands, and which registers a word changes.

Attach reads the code of patch objects and must start fast, so this knows neither numpy nor capstone.  Every instruction
is one word, so nothing can be misread about where instructions begin; what a word does, where it is not asked here, is
OTHER.  tests/unit/test_aarch64_decode.py holds this decoder against capstone over whole libraries.

Specification: Arm Architecture Reference Manual (DDI 0487), C4.1.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

SP = 31                      # as a base register
CALLED = (1 << 19) - 1 | 1 << 30     # what a call may change: x0 to x18, x30
NOP = 0xD503201F


@lru_cache(maxsize=1 << 10)
def walk(code: bytes, start: int, end: int) -> tuple[int, ...]:
    """The words of code[start:end].  Raises ValueError where these are no whole words."""
    if start % 4 or (end - start) % 4:
        raise ValueError(f"a function of {end - start} bytes at {start:#x} is no whole number of instructions")
    return struct.unpack_from(f"<{(end - start) // 4}I", code, start)


def signed(word: int, low: int, bits: int) -> int:
    """The `bits` bits from bit `low` on, as a signed number."""
    value = word >> low & (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def is_call(word: int) -> bool:
    return word & 0xFC000000 == 0x94000000


def is_conditional(word: int) -> bool:
    return word & 0xFF000000 == 0x54000000 or word & 0x7C000000 == 0x34000000


def is_jump(word: int) -> bool:
    """Direct jump, conditional or not."""
    return word & 0xFC000000 == 0x14000000 or is_conditional(word)


def branch_target(word: int, at: int) -> int:
    """Where a direct call or jump at offset `at` goes."""
    if word & 0x7C000000 == 0x14000000:
        return at + 4 * signed(word, 0, 26)
    if word & 0x7E000000 == 0x36000000:
        return at + 4 * signed(word, 5, 14)
    return at + 4 * signed(word, 5, 19)


def _register_branch(word: int) -> int:
    """opc of br, blr, ret and their signed forms, else -1."""
    return word >> 21 & 15 if word & 0xFE000000 == 0xD6000000 else -1


def is_indirect_jump(word: int) -> bool:
    return _register_branch(word) in (0, 8)


def is_indirect_call(word: int) -> bool:
    return _register_branch(word) in (1, 9)


def is_trap(word: int) -> bool:
    """brk, udf: never goes on."""
    return word & 0xFFE0001F == 0xD4200000 or word & 0xFFFF0000 == 0


def ends_path(word: int) -> bool:
    """Control never reaches the next instruction: b, br, ret, brk."""
    return word & 0xFC000000 == 0x14000000 or _register_branch(word) in (0, 2, 4, 8, 10) or is_trap(word)


def is_adr(word: int) -> bool:
    return word & 0x9F000000 == 0x10000000


def is_adrp(word: int) -> bool:
    return word & 0x9F000000 == 0x90000000


def adr_target(word: int, at: int) -> int:
    return at + (signed(word, 5, 19) << 2 | word >> 29 & 3)


def is_literal(word: int) -> bool:
    """ldr, ldrsw, prfm (literal)."""
    return word & 0x3B000000 == 0x18000000


def literal(word: int, at: int) -> tuple[int, int]:
    """(offset, size) of what a literal load at offset `at` reads; size 0: nothing (prfm)."""
    opc = word >> 30
    size = 4 << opc if word >> 26 & 1 else (4, 8, 4, 0)[opc]
    return at + 4 * signed(word, 5, 19), size


def is_copy(word: int) -> bool:
    """mov xd, xm"""
    return word & 0xFFE0FFE0 == 0xAA0003E0


def add_immediate(word: int) -> int | None:
    """What `add xd, xn, #` or `sub xd, xn, #` (64 bits, no flags) adds; None for other instructions."""
    if word & 0xBF800000 != 0x91000000 and word & 0xFF800000 != 0xD1000000:
        return None
    if word & 0xFF800000 not in (0x91000000, 0xD1000000):
        return None
    value = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
    return -value if word >> 30 & 1 else value


class Memory(NamedTuple):
    """A memory operand [base + offset], or [base, index]."""
    base: int
    offset: int
    index: int        # register number, -1: none
    store: bool       # may write memory
    writes_base: bool
    data: int         # bit set of the general registers that it stores


def memory(word: int) -> Memory | None:
    """The memory operand of a load or store, None for other instructions (literal loads, too)."""
    if word & 0x0A000000 != 0x08000000 or is_literal(word):
        return None
    base, simd = word >> 5 & 31, bool(word >> 26 & 1)
    rt, rt2, rs = 1 << (word & 31), 1 << (word >> 10 & 31), 1 << (word >> 16 & 31)
    stores = 0x7FFFFFFF
    if word & 0x3A000000 == 0x28000000:                                     # pairs
        size = 2 + (word >> 30) if simd else 3 if word >> 30 == 2 else 2
        mode, store = word >> 23 & 3, not word >> 22 & 1
        offset = signed(word, 15, 7) << size if mode != 1 else 0
        return Memory(base, offset, -1, store, mode in (1, 3), (rt | rt2) & stores if store and not simd else 0)
    if word & 0x3B000000 == 0x39000000 or word & 0x3B200000 == 0x38000000:  # immediate offsets
        opc = word >> 22 & 3
        store = not opc & 1 if simd else opc == 0
        data = rt & stores if store and not simd else 0
        if word & 0x01000000:
            scale = 4 if simd and word >> 30 == 0 and opc & 2 else word >> 30
            return Memory(base, (word >> 10 & 0xFFF) << scale, -1, store, False, data)
        mode = word >> 10 & 3
        return Memory(base, 0 if mode == 1 else signed(word, 12, 9), -1, store, mode in (1, 3), data)
    if word & 0x3B200C00 == 0x38200800:                                     # register offset
        store = not word >> 22 & 1 if simd else word >> 22 & 3 == 0
        return Memory(base, 0, word >> 16 & 31, store, False, rt & stores if store and not simd else 0)
    if word & 0xBE000000 == 0x0C000000:                                     # vector structures
        return Memory(base, 0, -1, not word >> 22 & 1, bool(word >> 23 & 1), 0)
    return Memory(base, 0, -1, True, False, (rt | rt2 | rs) & stores & ~(1 << base))    # atomics, exclusive, others


def writes(word: int) -> int:
    """Bit set of the general registers that a word surely changes; some that it may change are left out."""
    rd, rn, rt2 = 1 << (word & 31), 1 << (word >> 5 & 31), 1 << (word >> 10 & 31)
    if word & 0x1C000000 == 0x10000000 or word & 0x1E000000 == 0x0A000000:   # immediates; logical, add, sub
        return rd & 0x7FFFFFFF
    if word & 0x1F000000 == 0x1B000000 or word & 0x1FE00000 in (0x1A800000, 0x1AC00000):
        return rd & 0x7FFFFFFF
    if is_call(word) or is_indirect_call(word):
        return CALLED
    if word & 0xFFF00000 == 0xD5300000:                                      # mrs
        return rd & 0x7FFFFFFF
    if word & 0xFCC00000 == 0xF8800000 and word & 0x00200C00 != 0x00200000:     # prfm
        return 0
    m = memory(word)
    if m is None:
        return rd & 0x7FFFFFFF if is_literal(word) and not word >> 26 & 1 and word >> 30 != 3 else 0
    out = rn if m.writes_base else 0
    if not m.store and not word >> 26 & 1:
        out |= rd | (rt2 if word & 0x3A000000 == 0x28000000 else 0)
    return out & 0x7FFFFFFF
