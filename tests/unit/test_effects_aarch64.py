"""What AArch64 loads and stores of several vector registers, and some rare ones, change.

Expected values from the Arm Architecture Reference Manual, C7.2.  Not one register too many may count as changed: a caller
that relies on it would get no gate that keeps it.
"""

import numpy as np
import pytest

from psu_bin.arch import aarch64_scan as scan
from psu_bin.arch.code import Region

NAMES = [*(f"x{n}" for n in range(16)), *(f"v{n}" for n in range(32)), *(f"x{n}" for n in range(16, 31)), "flags"]


@pytest.mark.parametrize("word, text, changed", [
    (0x4C9FA001, "st1 {v1.16b, v2.16b}, [x0], #32", "x0"),
    (0x0D009001, "st1 {v1.s}[1], [x0]", ""),
    (0x0DDF0C01, "ld1 {v1.b}[3], [x0], #1", "x0 v1"),
    (0x4C406001, "ld1 {v1.16b, v2.16b, v3.16b}, [x0]", "v1 v2 v3"),
    (0x4C408001, "ld2 {v1.16b, v2.16b}, [x0]", "v1 v2"),
    (0x0D406801, "ld3 {v1.h, v2.h, v3.h}[1], [x0]", "v1 v2 v3"),
    (0x4D60E801, "ld4r {v1.4s, v2.4s, v3.4s, v4.4s}, [x0]", "v1 v2 v3 v4"),
    (0x4D40C81F, "ld1r {v31.4s}, [x0]", "v31"),
    (0xD9008001, "stlur x1, [x0, #8]", ""),
    (0x99808001, "ldapursw x1, [x0, #8]", "x1"),
    (0xE540E001, "st1w {z1.s}, p0, [x0]", ""),
])
def test_changed_registers(word, text, changed):
    code = word.to_bytes(4, "little")
    e = scan.effects(scan.decode((Region(0x1000, code, np.array([0x1000]), np.array([0x1004])),)))
    assert " ".join(n for bit, n in enumerate(NAMES) if int(e.writes[e.shape[0]]) >> bit & 1) == changed, text
