"""Unwind rows (a CIE and FDEs) for code that psu-bin adds: stubs, moved entries of functions, stubs of patch objects.

Specification: LSB core 10.6 (.eh_frame); DWARF 5, 6.4.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from psu_bin.arch import Arch
from psu_bin.errors import PsuError

PCREL_SDATA4 = 0x1B      # DW_EH_PE_pcrel | DW_EH_PE_sdata4


class Code(NamedTuple):
    """A range of new code and the DW_CFA_ instructions that hold in it."""
    start: int
    size: int
    program: bytes = b""


def rows(arch: Arch, address: int, ranges: list[Code]) -> tuple[bytes, list[int]]:
    """A CIE and the FDEs of `ranges`, to stand at `address`; and the address of each FDE.

    The size does not depend on any address.  Raises PsuError when code is out of their reach."""
    # Version 1, augmentation "zR": one byte, the encoding of addresses; code factor 1, data factor -8.
    out = bytearray(_entry(b"\0\0\0\0" b"\x01" b"zR\0" b"\x01" b"\x78" + bytes((arch.return_column, 1))
                           + bytes((PCREL_SDATA4,)) + arch.stub_cfi))
    where = []
    for code in ranges:
        at = len(out)
        distance = code.start - (address + at + 8)
        if not -(1 << 31) <= distance < 1 << 31:
            raise PsuError(f"{code.start:#x}", "out of reach of .eh_frame", "the file must span less than 2 GB")
        where.append(address + at)
        out += _entry(struct.pack("<IiI", at + 4, distance, code.size) + b"\0" + code.program)
    return bytes(out), where


def _entry(body: bytes) -> bytes:
    """A CIE or FDE with its length in front, filled up with DW_CFA_nop to 8 bytes."""
    body += b"\0" * (-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body
