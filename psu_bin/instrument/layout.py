"""Where everything that instrument adds goes: Layout, made before any byte is written.

The program header table stays right behind the ELF header: kernels before 5.18 compute AT_PHDR from there, and strip puts
it there.  It needs room for the new segments, so sections that follow it move into the new read-only segment; only such
sections move as are found through program headers, dynamic tags or section headers alone.

New segments come behind the last one (its bss included), in the order read-only, code, data.  Their pages in the file are
congruent with their addresses, behind everything that is loaded or kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psu_bin import elf
from psu_bin.elf import Binary, Section
from psu_bin.errors import PsuError

PHDR_SIZE = 56
SHT_HASH, SHT_GNU_HASH, SHT_GNU_VERDEF, SHT_GNU_VERNEED, SHT_GNU_VERSYM = (
    5, 0x6FFFFFF6, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF)
DT_HASH, DT_VERSYM, DT_VERDEF, DT_VERNEED = 4, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE

# Dynamic tags that hold the address of a section of this type.
TAG_OF_TYPE = {SHT_HASH: DT_HASH, SHT_GNU_HASH: elf.DT_GNU_HASH, elf.SHT_DYNSYM: elf.DT_SYMTAB,
               SHT_GNU_VERSYM: DT_VERSYM, SHT_GNU_VERDEF: DT_VERDEF, SHT_GNU_VERNEED: DT_VERNEED}
MOVABLE_SEGMENTS = (elf.PT_INTERP, elf.PT_NOTE, elf.PT_GNU_PROPERTY)


@dataclass
class Piece:
    """A run of bytes in one of the new segments."""
    name: str                  # of its section
    type: int
    flags: int
    align: int
    data: bytes = b""
    size: int = 0              # reserved before `data` is known
    entsize: int = 0
    address: int = 0
    offset: int = 0
    replaces: int = 0          # index of the section header that it takes over; 0: a new section
    moved: tuple[int, int] | None = None   # (old address, size) of a range moved as it is


@dataclass
class Group:
    """One new PT_LOAD."""
    flags: int
    pieces: list[Piece] = field(default_factory=list)
    address: int = 0
    offset: int = 0

    @property
    def size(self) -> int:
        last = self.pieces[-1]
        return last.address + last.size - self.address

    def place(self, address: int, offset: int, page: int) -> None:
        """Give every piece its address and file offset; the segment starts at or behind them."""
        self.address = at = address + (offset - address) % page
        self.offset = offset
        for p in self.pieces:
            at = -(-at // p.align) * p.align
            p.address, p.offset = at, at - self.address + offset
            at += p.size


def room_for_headers(binary: Binary) -> tuple[int, list[tuple[int, int]]]:
    """(number of new PT_LOADs there can be, ranges (address, size) that must move for it).

    Raises PsuError when not even two fit."""
    if binary.phentsize != PHDR_SIZE or binary.phoff != 64:
        raise PsuError(binary.path, f"program headers of {binary.phentsize} bytes at {binary.phoff:#x}",
                       "psu-bin expects them behind the ELF header, as linkers put them")
    first = binary.segment(elf.PT_LOAD)
    if first is None or first.offset != 0:
        raise PsuError(binary.path, "its first segment does not begin with the ELF header")
    for count in (3, 2):
        moved = _moved(binary, 64 + PHDR_SIZE * (binary.phnum + count), first.address)
        if moved is not None:
            return count, moved
    raise PsuError(binary.path, "has no room for more program headers")


def _moved(binary: Binary, end: int, base: int) -> list[tuple[int, int]] | None:
    """The ranges that lie in the first `end` bytes of the file, None when one of them cannot be moved."""
    ranges: list[tuple[int, int]] = []
    for s in binary.sections:
        if s.type in (0, elf.SHT_NOBITS) or not s.size or s.offset >= end or s.offset + s.size <= 64:
            continue
        inside = [p for p in binary.segments if p.type in MOVABLE_SEGMENTS
                  and p.offset <= s.offset and s.offset + s.size <= p.offset + p.filesz]
        if inside:
            whole = max(inside, key=lambda p: p.filesz)   # a note segment moves as a whole: it is one range
            ranges.append((whole.address, whole.filesz))
        elif s.type in TAG_OF_TYPE and s.flags & elf.SHF_ALLOC:
            ranges.append((s.address, s.size))
        else:
            return None
    if not any(s.size for s in binary.sections if s.flags & elf.SHF_ALLOC):
        return None                # without section headers nothing tells what lies there
    # A PT_NOTE may hold a PT_GNU_PROPERTY: keep only outermost ranges.
    unique = sorted(set(ranges))
    return [r for r in unique if not any(o != r and o[0] <= r[0] and r[0] + r[1] <= o[0] + o[1] for o in unique)]


def section_of(binary: Binary, address: int, size: int) -> Section | None:
    """The section that is exactly this range."""
    return next((s for s in binary.sections if s.flags & elf.SHF_ALLOC and (s.address, s.size) == (address, size)), None)


def end_of_memory(binary: Binary) -> int:
    """The file address behind the last segment, bss included."""
    return max(p.address + p.memsz for p in binary.segments if p.type == elf.PT_LOAD)


def end_of_kept(binary: Binary) -> int:
    """The file offset from which on there are only things that are written anew: symbol and string tables, headers."""
    loaded = max(p.offset + p.filesz for p in binary.segments if p.type == elf.PT_LOAD)
    rewritten = {i for i in rewritten_sections(binary)}
    kept = [s.offset + s.size for s in binary.sections
            if s.type not in (0, elf.SHT_NOBITS) and s.index not in rewritten]
    return max([loaded, *kept])


def rewritten_sections(binary: Binary) -> list[int]:
    """Indices of .symtab, its string table and the section names: not loaded, written anew at the end."""
    out = {binary.shstrndx}
    for s in binary.sections:
        if s.type == elf.SHT_SYMTAB:
            out |= {s.index, s.link}
        if s.type == elf.SHT_SYMTAB_SHNDX:
            raise PsuError(binary.path, "has more than 65,000 sections")
    return sorted(i for i in out if 0 < i < len(binary.sections) and not binary.sections[i].flags & elf.SHF_ALLOC)
