"""How the slots of a position-independent file come to hold run-time addresses.

*by one function* (form RESOLVER): a relocation takes 24 bytes, three times as many as the slot that it is for.  So a
program for glibc gets none: one of its own relative relocations becomes an IRELATIVE one, whose resolver, in the stubs'
section, adds the load bias to all slots and then returns what the loader would have written at that place itself.
Loaders call resolvers when the other relocations are done, and before any code of the module runs, but for its own
resolvers of indirect functions (IFUNC): a module that has such gets relocations.  So does one for another C library
(musl's loader knows no IRELATIVE), and one with relocations in its code (DT_TEXTREL: while they are done, glibc's
loader makes all code of the module not executable).

*by relocations* (form ROWS): in front of DT_RELA, where DT_RELACOUNT counts them: loaders do these first, and before
resolvers run.

*packed* (form PACKED): a file that packs its relative relocations (DT_RELR, which loaders do even earlier) gets them
there, for a bit a slot.

Specification: x86-64 psABI 4.4, AArch64 ELF 5.7 (IRELATIVE, RELATIVE); glibc's elf/do-rel.h for the order.
"""

from __future__ import annotations

import enum
import struct

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary, Section
from psu_bin.instrument import dynamic
from psu_bin.instrument.layout import Piece

RELA_SIZE = 24
ROW = struct.Struct("<QQq")        # r_offset, r_info, r_addend
DT_TEXTREL, DT_FLAGS, DF_TEXTREL = 22, 30, 4
GLIBC = "libc.so.6"


class Form(enum.Enum):
    """How slots are relocated: see the head of this file."""
    NONE = enum.auto()       # a position-dependent file
    RESOLVER = enum.auto()
    ROWS = enum.auto()
    PACKED = enum.auto()


def form(binary: Binary, arch: Arch) -> Form:
    if binary.type != elf.ET_DYN:
        return Form.NONE
    if _packed(binary):
        return Form.PACKED
    return Form.ROWS if resolver_row(binary, arch) is None else Form.RESOLVER


def _packed(binary: Binary) -> bool:
    return bool(binary.dyn(elf.DT_RELR) and binary.dyn(elf.DT_RELRSZ))


def resolver_row(binary: Binary, arch: Arch) -> int | None:
    """The number of the DT_RELA entry that becomes the IRELATIVE one; None when none may."""
    indirect = any((t["r_type"] == arch.scan.IRELATIVE).any() for t in (binary.rela, binary.jmprel))
    for t in (binary.dynsym, binary.symtab):
        indirect = indirect or t is not None and bool(((t.entries["st_info"] & 15 == elf.STT_GNU_IFUNC)
                                                       & (t.entries["st_shndx"] != elf.SHN_UNDEF)).any())
    in_code = binary.dyn(DT_TEXTREL) is not None or (binary.dyn(DT_FLAGS) or 0) & DF_TEXTREL
    if indirect or in_code or GLIBC not in dynamic.needed(binary):
        return None
    relative = np.flatnonzero((binary.rela["r_type"] == arch.relative) & (binary.rela["r_sym"] == 0))
    first = binary.dyn(elf.DT_RELACOUNT) or 0
    if first:                      # loaders take these for relative ones without looking: the last leaves them
        return first - 1 if first - 1 in relative else None
    return int(relative[-1]) if len(relative) else None


def table(binary: Binary, count: int) -> Piece:
    """The table with `count` entries more, to be placed and filled."""
    if _packed(binary):
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


def counted(binary: Binary, change: int) -> dict[int, int]:
    """The dynamic entry that says how many relative relocations come first: only a hint, nothing is lost where it is missing."""
    relative = binary.dyn(elf.DT_RELACOUNT)
    return {} if relative is None else {elf.DT_RELACOUNT: relative + change}


def fill(binary: Binary, arch: Arch, p: Piece, slots: int, original: np.ndarray) -> dict[int, int]:
    """The table's contents, for slots at `slots` that hold `original`; returns the dynamic entries for it."""
    if _packed(binary):
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
    return {elf.DT_RELA: p.address, elf.DT_RELASZ: p.size} | counted(binary, len(original))


def relr_words(address: int, count: int) -> list[int]:
    """DT_RELR entries for `count` words at `address` (even): an address, then bitmaps of 63 words each."""
    out = [address]
    for first in range(1, count, 63):
        out.append((1 << min(63, count - first) + 1) - 1)
    return out
