"""Which general registers an AArch64 word reads as values, and which it may change: always enough, at times too many.

The counterpart of aarch64_decode.writes, which names only what a word surely changes.  Memory operands' registers, copies
and sums with constants are aarch64_uses' own business.  tests/unit/test_aarch64_decode.py holds both against capstone.

Specification: Arm Architecture Reference Manual (DDI 0487), C4.1.
"""

from __future__ import annotations

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch.aarch64_decode import SP


def read(word: int) -> tuple[int, ...]:
    """Registers whose values the word reads, without memory operands; SP stands for none."""
    rd, rn, ra, rm = word & 31, word >> 5 & 31, word >> 10 & 31, word >> 16 & 31
    if decode.memory(word) is not None or decode.is_literal(word):
        return ()
    group = word >> 25 & 15
    if group in (8, 9):                                  # immediates
        kind = word >> 23 & 7
        if kind < 2:                                     # adr, adrp
            return ()
        if kind == 5:                                    # movn, movz, movk
            return (rd,) if word >> 29 & 3 == 3 else ()
        if kind == 6:                                    # bitfields; bfm keeps a part
            return (rn, rd) if word >> 29 & 3 == 1 else (rn,)
        return (rn, rm) if kind == 7 else (rn,)          # extr; sums and logic
    if group in (10, 11):
        if word >> 25 & 1:
            return (rn,) if word & 0xFE000000 == 0xD6000000 else (rd,) if word & 0xFF200000 == 0xD5000000 else ()
        return () if word >> 30 & 1 and word >> 31 else (rd,) if word & 0x7C000000 == 0x34000000 else ()
    if group in (5, 13):                                 # two registers, or three
        return (rn, rm, ra) if word & 0x1F000000 == 0x1B000000 else (rn, rm)
    if group in (7, 15):                                 # vectors: only moves and conversions have a general operand
        return (rn,) if _moved(word) == "from general" else ()
    return rd, rn, ra, rm


def changed(word: int) -> int:
    """Bit set of general registers that the word may change, beyond decode.writes."""
    if decode.is_jump(word) or decode.is_call(word) or word & 0xFE000000 == 0xD6000000:
        return 0
    if word >> 25 & 7 == 7 and _moved(word) != "to general":
        return 0
    m = decode.memory(word)
    fields = 1 << (word & 31)
    if m is not None and word & 0x3A000000 == 0x08000000 or m is not None and word & 0x3B200C00 == 0x38200000:
        fields |= 1 << (word >> 16 & 31) | 1 << (word >> 10 & 31)      # exclusives, atomics
        fields |= 1 << (word + 1 & 31) | 1 << ((word >> 16) + 1 & 31)  # casp's second registers
    elif m is not None and (m.store or word >> 26 & 1):
        return 0
    return fields & (1 << SP) - 1


def mentions(word: int) -> int:
    """Bit set of the general registers that the word reads or writes."""
    rd, rn, ra, rm = word & 31, word >> 5 & 31, word >> 10 & 31, word >> 16 & 31
    group, fields = word >> 25 & 15, {rd, rn, ra, rm}
    if group in (8, 9):
        kind = word >> 23 & 7
        fields = {rd} if kind in (0, 1, 5) else {rd, rn, rm} if kind == 7 else {rd, rn}
    elif group in (10, 11):
        if word & 0xFFFFF01F == 0xD503201F:              # hints; some sign x17 with x16
            fields = {16, 17} if word & 0xFFFFFF1F == 0xD503211F else set()
        elif word & 0x7C000000 == 0x14000000 or word & 0xFE000000 == 0x54000000:
            fields = set()
        elif word & 0xFE000000 != 0xD6000000:
            fields = {rd}
    elif decode.is_literal(word):
        fields = {rd}
    elif group & 5 == 4:
        if word & 0x3A000000 == 0x28000000:
            fields = {rd, rn, ra}
        elif word & 0x3B000000 == 0x39000000 or word & 0x3B200000 == 0x38000000:
            fields = {rd, rn}
    elif group in (5, 13):
        fields = {rd, rn, rm, ra} if word & 0x1F000000 == 0x1B000000 else {rd, rn, rm}
    elif group in (7, 15):
        fields = {rd, rn} if _moved(word) else set()
    return sum(1 << r for r in fields)


def _moved(word: int) -> str:
    """Which way a vector instruction moves or converts: "from general", "to general" registers, or ""."""
    if word & 0x5F200000 == 0x1E000000 or word & 0x5F20FC00 == 0x1E200000:        # conversions, fmov
        return "from general" if word >> 16 & 7 in (2, 3, 7) else "to general"
    if word & 0x9FE08400 == 0x0E000400:                                           # dup, ins; smov, umov
        return "from general" if word >> 11 & 15 in (1, 3) else "to general" if word >> 11 & 15 in (5, 7) else ""
    return ""
