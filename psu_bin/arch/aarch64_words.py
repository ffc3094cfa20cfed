"""AArch64 instructions that refer to an address, many at a time: which form each word has, where it leads, and its
encoding for another target.

Every instruction is one little-endian 4-byte word, so nothing can be misread about where instructions begin.
Specification: Arm Architecture Reference Manual (DDI 0487), C4.1 (encoding index) and C6.
"""

from __future__ import annotations

import numpy as np

# Forms: the immediate that a word has.
NONE, BRANCH26, BRANCH19, BRANCH14, LITERAL, ADR, ADRP, ADD = range(8)

_PATTERNS = (                               # (form, mask, value)
    (BRANCH26, 0x7C000000, 0x14000000),     # b, bl
    (BRANCH19, 0xFF000000, 0x54000000),     # b.cond, bc.cond
    (BRANCH19, 0x7E000000, 0x34000000),     # cbz, cbnz
    (BRANCH14, 0x7E000000, 0x36000000),     # tbz, tbnz
    (LITERAL, 0x3B000000, 0x18000000),      # ldr, ldrsw, prfm (literal)
    (ADR, 0x9F000000, 0x10000000),
    (ADRP, 0x9F000000, 0x90000000),
    (ADD, 0xFFC00000, 0x91000000),          # add xd, xn, #imm12
)
# Of each form: lowest bit of the immediate, its bits, the bytes that one step of it counts.
_WHERE = {BRANCH26: (0, 26, 4), BRANCH19: (5, 19, 4), BRANCH14: (5, 14, 4), LITERAL: (5, 19, 4)}
_HOLDS = np.array([0, -1, -1, -1, -1, -1, -4096, 0xFFF], dtype=np.int64)


def form(word: np.ndarray) -> np.ndarray:
    """uint8: the form of each word (uint32)."""
    out = np.zeros(len(word), dtype=np.uint8)
    for number, mask, value in _PATTERNS:
        out[(word & np.uint32(mask)) == value] = number
    return out


def holds(forms: np.ndarray) -> np.ndarray:
    """int64: the bits of a target that a word of each form holds."""
    return _HOLDS[forms]


def signed(word: np.ndarray, low: int, bits: int) -> np.ndarray:
    """The `bits` bits from bit `low` on, as signed numbers (int64)."""
    value = (word >> np.uint32(low)).astype(np.int64) & (1 << bits) - 1
    return value - ((value >> bits - 1) << bits)


def target(at: np.ndarray, word: np.ndarray, forms: np.ndarray) -> np.ndarray:
    """Where the words at addresses `at` lead, as far as they hold it: of an adrp the page, of an add the low 12 bits."""
    out = np.zeros(len(word), dtype=np.int64)
    for number, (low, bits, step) in _WHERE.items():
        some = forms == number
        out[some] = at[some] + step * signed(word[some], low, bits)
    some = (forms == ADR) | (forms == ADRP)
    value = signed(word[some], 5, 19) << 2 | (word[some] >> np.uint32(29)).astype(np.int64) & 3
    page = forms[some] == ADRP
    out[some] = np.where(page, (at[some] & -4096) + (value << 12), at[some] + value)
    some = forms == ADD
    out[some] = (word[some] >> np.uint32(10)) & np.uint32(0xFFF)
    return out


def encode(at: np.ndarray, word: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the words with immediates that lead to `goal`, bool: it fits); a word of no form fits nothing."""
    forms = form(word)
    out, fits = word.astype(np.int64), np.zeros(len(word), dtype=bool)
    for number, (low, bits, step) in _WHERE.items():
        some = forms == number
        value = (goal[some] - at[some]) // step
        fits[some] = ((goal[some] - at[some]) % step == 0) & (-(1 << bits - 1) <= value) & (value < 1 << bits - 1)
        out[some] = out[some] & ~((1 << bits) - 1 << low) | (value & (1 << bits) - 1) << low
    for number, shift in ((ADR, 0), (ADRP, 12)):
        some = forms == number
        value = (goal[some] >> shift) - (at[some] >> shift)
        fits[some] = (-(1 << 20) <= value) & (value < 1 << 20)
        out[some] = out[some] & ~0x60FFFFE0 | (value & 3) << 29 | (value >> 2 & 0x7FFFF) << 5
    some = forms == ADD
    fits[some] = True
    out[some] = out[some] & ~0x3FFC00 | (goal[some] & 0xFFF) << 10
    return out.astype(np.uint32), fits
