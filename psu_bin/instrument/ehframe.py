"""Unwind rows for what instrument adds: the stubs and the moved copies of detoured entries.

The FDEs lie in a section of their own, and the search table of .eh_frame_hdr, which is how unwinders find an FDE at run
time, is written anew with entries for them.  .eh_frame itself stays as it is.

Specification: LSB core 10.6 (.eh_frame, .eh_frame_hdr); DWARF 5, 6.4.
"""

from __future__ import annotations

import struct

import numpy as np

from psu_bin.elf import Binary
from psu_bin.errors import PsuError

DW_EH_PE_OMIT, DW_EH_PE_UDATA4, DW_EH_PE_PCREL_SDATA4, DW_EH_PE_DATAREL_SDATA4 = 0xFF, 0x03, 0x1B, 0x3B
HDR_ENTRY = [("start", "<i4"), ("fde", "<i4")]


def frames(address: int, cie_initial: bytes, ranges: list[tuple[int, int, bytes]]) -> tuple[bytes, list[int]]:
    """An .eh_frame section at `address`, and the addresses of its FDEs.

    ranges: (start, size, DW_CFA_ instructions) of the code that each FDE describes."""
    # CIE: version 1, augmentation "zR", code factor 1, data factor -8, return address column 16.
    cie = _padded(b"\0\0\0\0\x01zR\0\x01\x78\x10\x01" + bytes([DW_EH_PE_PCREL_SDATA4]) + cie_initial)
    out, at = bytearray(cie), []
    for start, size, instructions in ranges:
        here = len(out)
        body = struct.pack("<Iii", here + 4, start - (address + here + 8), size) + b"\0" + instructions
        at.append(address + here)
        out += _padded(body)
    return bytes(out) + b"\0\0\0\0", at


def _padded(body: bytes) -> bytes:
    """An entry with its length in front, padded with DW_CFA_nop to 8 bytes."""
    body += b"\0" * (-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


def header_size(binary: Binary, more: int) -> int:
    """Bytes of the new .eh_frame_hdr with `more` entries; 0 when the file has none that can be extended."""
    table = _table(binary)
    return 0 if table is None else 12 + 8 * (len(table[1]) + more)


def header(binary: Binary, address: int, new: list[tuple[int, int]]) -> bytes:
    """The .eh_frame_hdr for `address`, with entries (code start, FDE address) in addition."""
    found = _table(binary)
    assert found is not None
    eh_frame, old = found
    entries = np.array([*old, *new], dtype="<i8").reshape(-1, 2)
    entries = entries[np.argsort(entries[:, 0], kind="stable")] - address
    if len(entries) and not (-(1 << 31) <= entries.min() and entries.max() < 1 << 31):
        raise PsuError(binary.path, "too large: .eh_frame_hdr is out of reach")
    return struct.pack("<BBBBiI", 1, DW_EH_PE_PCREL_SDATA4, DW_EH_PE_UDATA4, DW_EH_PE_DATAREL_SDATA4,
                       eh_frame - (address + 4), len(entries)) + entries.astype("<i4").tobytes()


def _table(binary: Binary) -> tuple[int, list[tuple[int, int]]] | None:
    """(address of .eh_frame, [(code start, FDE address)]) of a search table in the usual encoding, else None."""
    s = binary.section(".eh_frame_hdr")
    if s is None or s.size < 12:
        return None
    raw = binary.contents(s)
    if raw[:4] != bytes((1, DW_EH_PE_PCREL_SDATA4, DW_EH_PE_UDATA4, DW_EH_PE_DATAREL_SDATA4)):
        return None
    distance, count = struct.unpack_from("<iI", raw, 4)
    if 12 + 8 * count > s.size:
        raise PsuError(binary.path, "malformed .eh_frame_hdr: it ends before its table")
    table = np.frombuffer(raw, dtype="<i4", count=2 * count, offset=12).astype("i8").reshape(-1, 2) + s.address
    return s.address + 4 + distance, [(int(a), int(b)) for a, b in table]
