"""Which registers AArch64 callers rely on: upper halves of v8 to v15, x18, v16 to v31; and how few bits name them."""

from __future__ import annotations

import numpy as np
import pytest

from psu_bin.arch import aarch64_scan as scan
from psu_bin.arch.code import Region

FACTS = scan.REGISTERS
V = [1 << 16 + n for n in range(32)]
X18 = 1 << 50


def effects(word: int) -> tuple[int, int, int]:
    """(reads, writes, kills) of vector registers by one instruction."""
    region = Region(0x1000, word.to_bytes(4, "little"), np.array([0x1000]), np.array([0x1004]))
    found = scan.effects(scan.decode((region,)))
    every = sum(V)
    return tuple(int(column[found.shape[0]]) & every for column in (found.reads, found.writes, found.kills))  # type: ignore


# Of v8 to v15 the bit is the upper half's.
@pytest.mark.parametrize("word, text, reads, writes, kills", [
    (0x3DC00008, "ldr q8, [x0]", 0, V[8], V[8]),
    (0xFD400008, "ldr d8, [x0]", 0, V[8], V[8]),
    (0x3D800008, "str q8, [x0]", V[8], 0, 0),
    (0xFD000008, "str d8, [x0]", 0, 0, 0),
    (0xFD000007, "str d7, [x0]", V[7], 0, 0),
    (0x6D4227E8, "ldp d8, d9, [sp, #32]", 0, V[8] | V[9], V[8] | V[9]),
    (0x6D0227E8, "stp d8, d9, [sp, #32]", 0, 0, 0),
    (0xAD0127E8, "stp q8, q9, [sp, #32]", V[8] | V[9], 0, 0),
    (0x3CE16808, "ldr q8, [x0, x1]", 0, V[8], V[8]),
    (0x3CA16808, "str q8, [x0, x1]", V[8], 0, 0),
    (0x9C000048, "ldr q8, .+8", 0, V[8], V[8]),
    (0x1E692908, "fadd d8, d8, d9", 0, V[8], V[8]),
    (0x1E602120, "fcmp d9, d0", V[0], 0, 0),
    (0x4E69D508, "fadd v8.2d, v8.2d, v9.2d", V[8] | V[9], V[8], V[8]),
    (0x4EA81D09, "mov v9.16b, v8.16b", V[8], V[9], V[9]),
    (0x4E181C08, "mov v8.d[1], x0", V[8], V[8], 0),
])
def test_the_upper_half_is_what_a_callee_may_change(word: int, text: str, reads: int, writes: int, kills: int) -> None:
    assert effects(word) == (reads, writes, kills), text


def test_every_volatile_register_of_compilers_has_a_bit() -> None:
    # x16 and x17 are linkers', flags nobody's over a call.
    assert FACTS.volatile & ~FACTS.representable == FACTS.stub | FACTS.odd
    for n in range(64):
        bit = 1 << n
        assert bool(FACTS.preserve(bit)) == bool(bit & FACTS.representable)
    # Results have bits of their own: what is restored there must not be one.
    for n in (0, 1, *range(16, 20)):
        assert FACTS.preserve(1 << n) == 1 << n and FACTS.preserve(FACTS.representable & ~(1 << n)) & 1 << n == 0
    assert FACTS.preserve(X18) == 1 << 22 and FACTS.preserve(V[31]) == 1 << 31 and FACTS.preserve(V[15]) == 1 << 21
    assert FACTS.preserve(FACTS.representable) < 1 << 32
