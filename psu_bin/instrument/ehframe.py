"""Unwind rows for what instrument adds: the stubs and the moved entries of detoured functions.

At run time unwinders find a row through the search table of .eh_frame_hdr, which is written anew, with the new rows in
it.  gdb reads .eh_frame itself, one section of that name.  It does not move, because its rows name code relative to
themselves; but the old .eh_frame_hdr lies next to it and leaves a hole, into which it grows.  Where that is too small,
the rows get a section of their own.

Specification: LSB core 10.6 (.eh_frame, .eh_frame_hdr); DWARF 5, 6.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from psu_bin.arch import Arch
from psu_bin.elf import SHF_ALLOC, SHT_NOBITS, Binary, Section
from psu_bin.errors import PsuError
from psu_bin.fde import PCREL_SDATA4

DW_EH_PE_UDATA4, DW_EH_PE_DATAREL_SDATA4 = 0x03, 0x3B
_USUAL = bytes((1, PCREL_SDATA4, DW_EH_PE_UDATA4, DW_EH_PE_DATAREL_SDATA4))
END = bytes(4)                    # the length 0 that ends a section


@dataclass(frozen=True)
class SearchTable:
    """.eh_frame_hdr in the encoding that all linkers use; addresses are file addresses."""
    section: Section
    eh_frame: int
    entries: np.ndarray           # int64 (n, 2): start of the code, address of its FDE


def search_table(binary: Binary) -> SearchTable | None:
    """The file's search table; None when it has none, or one that cannot be extended.

    Raises PsuError when it is damaged."""
    s = binary.section(".eh_frame_hdr")
    raw = binary.contents(s) if s else b""
    if s is None or not s.flags & SHF_ALLOC or s.type == SHT_NOBITS or len(raw) < 12 or raw[:4] != _USUAL:
        return None
    distance, count = struct.unpack_from("<iI", raw, 4)
    if 12 + 8 * count > len(raw):
        raise PsuError(binary.path, f"malformed .eh_frame_hdr: {count} entries in {len(raw)} bytes")
    entries = np.frombuffer(raw, dtype="<i4", count=2 * count, offset=12).astype(np.int64).reshape(-1, 2)
    return SearchTable(s, s.address + 4 + distance, entries + s.address)


@dataclass(frozen=True)
class Place:
    """Where new rows go, at `address`, so that .eh_frame becomes the range from `start` to `end`."""
    section: Section
    address: int
    start: int
    end: int


def beside(binary: Binary, table: SearchTable, size: int, free: list[tuple[int, int]]) -> Place | None:
    """Where `size` bytes of rows extend .eh_frame into one of the holes `free`; None where they cannot."""
    s = next((s for s in binary.sections if s.flags & SHF_ALLOC and s.type != SHT_NOBITS
              and s.address == table.eh_frame and s.size >= 4), None)
    if s is None:
        return None
    for start, end in free:
        if end <= s.address < end + 8 and start <= s.address - size:     # GNU ld, lld: in front
            return Place(s, s.address - size, s.address - size, s.end)
    last = _end(binary, s)
    for start, end in free:
        if last is not None and start - 8 < s.end <= start and last + size + len(END) <= end:     # gold: behind
            return Place(s, last, s.address, last + size + len(END))
    return None


def _end(binary: Binary, s: Section) -> int | None:
    """The address of the length 0 that ends .eh_frame, or of its end; None when its entries do not add up."""
    body, at = binary.contents(s), 0
    while at + 4 <= len(body):
        (length,) = struct.unpack_from("<I", body, at)
        if length == 0:
            return s.address + at if not any(body[at:]) else None
        if length == 0xFFFFFFFF:
            return None
        at += 4 + length
    return s.end if at == len(body) else None


def header_size(table: SearchTable, more: int) -> int:
    """Bytes of the search table with `more` entries more."""
    return 12 + 8 * (len(table.entries) + more)


def header(where: str, table: SearchTable, address: int, eh_frame: int, new: list[tuple[int, int]]) -> bytes:
    """The search table to stand at `address`, for an .eh_frame at `eh_frame`, with (code start, FDE address) `new`.

    Raises PsuError, naming `where`, when something is out of its reach."""
    entries = np.concatenate([table.entries, np.array(new, dtype=np.int64).reshape(-1, 2)])
    entries = entries[np.argsort(entries[:, 0], kind="stable")] - address
    distance = eh_frame - (address + 4)
    if min(entries.min(), distance) < -(1 << 31) or max(entries.max(), distance) >= 1 << 31:
        raise PsuError(where, "too large: .eh_frame_hdr does not reach its code")
    return _USUAL + struct.pack("<iI", distance, len(entries)) + entries.astype("<i4").tobytes()
