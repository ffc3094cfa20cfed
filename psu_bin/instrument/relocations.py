"""Relative relocations for the slots of a position-independent file.

They go in front of DT_RELA, where DT_RELACOUNT counts them: loaders do these first, and before the resolvers of
indirect functions (IFUNC) run, which may call functions of the module.  A file that packs its relative relocations
(DT_RELR, which loaders do even earlier) gets them there instead.
"""

from __future__ import annotations

import struct

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary, Section
from psu_bin.instrument.layout import Piece

RELA_SIZE = 24


def packed(binary: Binary) -> bool:
    """Whether the slots' relocations go into DT_RELR."""
    return bool(binary.dyn(elf.DT_RELR) and binary.dyn(elf.DT_RELRSZ))


def table(binary: Binary, count: int) -> Piece:
    """The table with `count` entries more, to be placed and filled."""
    if packed(binary):
        size = binary.dyn(elf.DT_RELRSZ) or 0
        covers = _sections(binary, binary.dyn(elf.DT_RELR) or 0, size)
        return Piece(".relr.dyn", elf.SHT_RELR, elf.SHF_ALLOC, 8, size + 8 * len(relr_words(0, count)), 8, covers)
    size = binary.dyn(elf.DT_RELASZ) or 0
    covers = _sections(binary, binary.dyn(elf.DT_RELA) or 0, size)
    front = RELA_SIZE * count
    return Piece(".rela.dyn", elf.SHT_RELA, elf.SHF_ALLOC, 8, size + front, RELA_SIZE, covers, front)


def _sections(binary: Binary, address: int, size: int) -> tuple[Section, ...]:
    """The sections that a table consists of; () when they are not exactly the table."""
    inside = tuple(sorted((s for s in binary.sections if s.flags & elf.SHF_ALLOC and s.size
                           and address <= s.address and s.end <= address + size), key=lambda s: s.address))
    whole = inside and inside[0].address == address and sum(s.size for s in inside) == size
    return inside if whole else ()


def fill(binary: Binary, arch: Arch, p: Piece, slots: int, original: np.ndarray) -> dict[int, int]:
    """The table's contents, for slots at `slots` that hold `original`; returns the dynamic entries for it."""
    if packed(binary):
        at, size = binary.dyn(elf.DT_RELR) or 0, binary.dyn(elf.DT_RELRSZ) or 0
        words = relr_words(slots, len(original))
        p.data = binary.data[binary.offset_of(at):][:size] + struct.pack(f"<{len(words)}Q", *words)
        return {elf.DT_RELR: p.address, elf.DT_RELRSZ: p.size}
    at, size = binary.dyn(elf.DT_RELA) or 0, binary.dyn(elf.DT_RELASZ) or 0
    new = np.zeros(len(original), dtype=elf.RELA_DTYPE)
    new["r_offset"] = slots + 8 * np.arange(len(original))
    new["r_type"] = arch.relative
    new["r_addend"] = original
    p.data = new.tobytes() + (binary.data[binary.offset_of(at):][:size] if size else b"")
    values = {elf.DT_RELA: p.address, elf.DT_RELASZ: p.size}
    relative = binary.dyn(elf.DT_RELACOUNT)
    if relative is not None:       # only a hint for loaders: nothing is lost where it is missing
        values[elf.DT_RELACOUNT] = relative + len(original)
    return values


def relr_words(address: int, count: int) -> list[int]:
    """DT_RELR entries for `count` words at `address` (even): an address, then bitmaps of 63 words each."""
    out = [address]
    for first in range(1, count, 63):
        out.append((1 << min(63, count - first) + 1) - 1)
    return out
