"""Where everything that instrument adds or moves goes.  Only addresses and sizes are decided here, no byte is written.

Three segments are added behind the last one (its bss included): data (the slots), code (the stubs) and read-only data.
Their place in the file is behind everything that is loaded, where the symbol table was; that is written anew behind it.

Three program headers more need room.  The table stays right behind the ELF header, because kernels before 5.18 compute
AT_PHDR from that, and strip puts it there anyway.  So the sections that follow it move away: only such as are found
through a program header, a dynamic tag or a section header, never by code.

A section that grows (.dynstr, .rela.dyn, .eh_frame_hdr) moves as well.  What moved leaves a hole in an old read-only
segment, and new read-only pieces go into holes where they fit.  What stays free at the end of the first segment is taken
out of the file (cut.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.descriptor import MODULE_IBT
from psu_bin.elf import Binary, Section, Segment
from psu_bin.errors import PsuError
from psu_bin.instrument import operands

EHDR_SIZE, PHDR_SIZE = 64, 56
SMALL_PAGE = 4096                # what kernels map at least, on every architecture
REACH_KEPT = 1 << 20             # for the read-only segment, which follows the stubs
MOST_MOVED = 64                  # bytes of a moved entry or landing pad
PATCHES_KEPT = 24 << 20          # of a branch's reach: attach looks for room for patches that is near all of the module

SHT_HASH, SHT_DYNAMIC, SHT_GNU_HASH, SHT_GNU_VERDEF, SHT_GNU_VERNEED, SHT_GNU_VERSYM = (
    5, 6, 0x6FFFFFF6, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF)
DT_HASH, DT_VERSYM, DT_VERDEF, DT_VERNEED = 4, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE

# Sections that may move: the dynamic tag that holds the address of a section of this type.
TAG_OF_TYPE = {SHT_HASH: DT_HASH, SHT_GNU_HASH: elf.DT_GNU_HASH, elf.SHT_DYNSYM: elf.DT_SYMTAB,
               elf.SHT_STRTAB: elf.DT_STRTAB, elf.SHT_RELA: elf.DT_JMPREL, SHT_GNU_VERSYM: DT_VERSYM,
               SHT_GNU_VERDEF: DT_VERDEF, SHT_GNU_VERNEED: DT_VERNEED}
# Dynamic tags whose value is an address in such a section.
ADDRESS_TAGS = frozenset(TAG_OF_TYPE.values()) | {elf.DT_RELA, elf.DT_RELR}
# Segments that only say where something is: they move with what they name.
MOVABLE_SEGMENTS = (elf.PT_INTERP, elf.PT_NOTE, elf.PT_GNU_PROPERTY)


@dataclass(eq=False)
class Piece:
    """A run of bytes that is new, or moves, or both (then it grows)."""
    name: str
    type: int
    flags: int
    align: int
    size: int = 0
    entsize: int = 0
    covers: tuple[Section, ...] = ()  # sections of the input that move with it, ascending, at their old distances
    front: int = 0                    # bytes that are added in front of what they held
    data: bytes = b""
    address: int = 0
    offset: int = 0

    @property
    def old_start(self) -> int:
        return self.covers[0].address if self.covers else 0

    @property
    def old_end(self) -> int:
        return self.covers[-1].end if self.covers else 0

    def moved(self, address: int) -> int:
        """Where what was at `address` of the input is now; additions in front belong to what came first."""
        return self.address + (address - self.old_start + self.front if address > self.old_start else 0)

    def header(self, s: Section) -> tuple[int, int]:
        """(address, size) of section `s`, one of `covers`."""
        start = self.moved(s.address)
        end = self.moved(s.end) if s is not self.covers[-1] else self.address + self.size
        return start, end - start


@dataclass(eq=False)
class Group:
    """One new PT_LOAD: pieces one after the other."""
    flags: int
    pieces: list[Piece] = field(default_factory=list)
    address: int = 0
    offset: int = 0
    size: int = 0

    def start_at(self, memory_end: int, file_end: int, size: int, page: int) -> None:
        """Choose a start: the page after `memory_end`, congruent with the first offset from `file_end` on.

        The file is padded only where the segment would otherwise touch a page more."""
        offset = _up(file_end, 16)
        if _up(offset % SMALL_PAGE + size, SMALL_PAGE) > _up(size, SMALL_PAGE):
            offset = _up(offset, SMALL_PAGE)
        self.offset, self.address = offset, _up(memory_end, page) + offset % page

    def add(self, p: Piece) -> None:
        """Put `p`, whose size is known, at the end."""
        p.address = _up(self.address + self.size, p.align)
        p.offset = p.address - self.address + self.offset
        self.size = p.address + p.size - self.address
        self.pieces.append(p)


def total_size(pieces: Iterable[Piece]) -> int:
    """Bytes that `pieces` need at most, one after the other, with their alignment."""
    return sum(p.size + p.align - 1 for p in pieces)


# Pieces that a hole is filled with are chosen from so many: there are hardly ever more, and each one doubles the work.
_CHOICE = 14


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


@dataclass(frozen=True)
class HeaderRoom:
    """Room for `segments` more program headers once `units` have moved; the table then ends at file offset `end`."""
    segments: int
    units: tuple[tuple[Section, ...], ...]   # sections that move together, at their old distances
    end: int


def room_for_headers(binary: Binary, arch: Arch) -> HeaderRoom:
    """Room for three more program headers, or for two.  Raises PsuError when there is none."""
    if binary.phentsize != PHDR_SIZE:
        raise PsuError(binary.path, f"malformed ELF header: program headers of {binary.phentsize} bytes")
    first = next((p for p in binary.segments if p.type == elf.PT_LOAD), None)
    if first is None or first.offset != 0:
        raise PsuError(binary.path, "its first segment does not begin with the ELF header",
                       "link it without a linker script of its own")
    reasons: list[str] = []
    for count in (3, 2):
        end = EHDR_SIZE + PHDR_SIZE * (binary.phnum + count)
        if end > first.filesz:
            reasons.append(f"its first segment ends at {first.filesz:#x}")
            continue
        units = _units(binary, arch, end, reasons)
        if units is not None:
            return HeaderRoom(count, units, end)
    raise PsuError(binary.path, f"no room for two more program headers: {reasons[-1]}",
                   "link it without a linker script of its own")


def _units(binary: Binary, arch: Arch, end: int, reasons: list[str]) -> tuple[tuple[Section, ...], ...] | None:
    """What has to move from the first `end` bytes of the file; None (and why) when something cannot."""
    loaded = sorted((s for s in binary.sections if s.flags & elf.SHF_ALLOC and s.type != elf.SHT_NOBITS and s.size),
                    key=lambda s: s.address)
    if not loaded:
        reasons.append("without section headers nothing tells what follows the present ones")
        return None
    out: list[tuple[Section, ...]] = []
    for s in loaded:
        if s.offset >= end or s.offset + s.size <= EHDR_SIZE or any(s in unit for unit in out):
            continue
        unit = _unit(binary, loaded, s)
        if not unit:
            reasons.append(f"{s.name or 'a section'} cannot be moved")
            return None
        if pinned := _pinned(binary, unit):
            reasons.append(f"{s.name} cannot be moved: {pinned}")
            return None
        out.append(unit)
    # The loader's own tables have no other name; the others a program might know.
    others = [unit for unit in out if unit[0].type not in TAG_OF_TYPE]
    if others and (where := _used(binary, arch, min(u[0].address for u in others), max(u[-1].end for u in others))):
        reasons.append(f"{others[0][0].name} cannot be moved: {where} refers to it")
        return None
    return tuple(out)


def _unit(binary: Binary, loaded: list[Section], s: Section) -> tuple[Section, ...]:
    """The sections that move when `s` does; () when it cannot."""
    tag = TAG_OF_TYPE.get(s.type)
    if tag is not None:
        whole = s.type == elf.SHT_RELA and (binary.dyn(elf.DT_RELA), binary.dyn(elf.DT_RELASZ)) == (s.address, s.size)
        return (s,) if whole or binary.dyn(tag) == s.address else ()
    low, high = s.address, s.end
    naming = [p for p in binary.segments if p.type in MOVABLE_SEGMENTS and p.filesz]
    while True:                  # a note segment moves as a whole, and with it what overlaps it
        spans = [(p.address, p.address + p.filesz) for p in naming] + [(x.address, x.end) for x in loaded]
        touching = [x for x in spans if x[0] < high and x[1] > low] + [(low, high)]
        wider = min(x[0] for x in touching), max(x[1] for x in touching)
        if wider == (low, high):
            break
        low, high = wider
    inside = tuple(x for x in loaded if low <= x.address and x.end <= high)
    covered = all(any(p.address <= x.address and x.end <= p.address + p.filesz for p in naming) for x in inside)
    return inside if covered and (inside[0].address, inside[-1].end) == (low, high) else ()


def _pinned(binary: Binary, unit: tuple[Section, ...]) -> str:
    """Which table of the loader refers to `unit` by address; "" when none does."""
    low, high = unit[0].address, unit[-1].end

    def hit(values: np.ndarray) -> bool:
        return bool(((values >= low) & (values < high)).any())

    pointers = binary.rela["r_addend"][binary.rela["r_sym"] == 0]
    at = holding(binary.segments, binary.relr)
    at = at[(at >= 0) & (at <= len(binary.data) - 8)]
    words8: np.ndarray = np.ndarray((len(binary.data) - 7,), dtype="<i8", buffer=binary.data, strides=(1,))
    if hit(pointers) or hit(binary.rela["r_offset"]) or hit(words8[at]):
        return "a relocation refers to it"
    if binary.dynsym is not None:
        e = binary.dynsym.entries
        placed = (e["st_shndx"] != elf.SHN_UNDEF) & (e["st_shndx"] < elf.SHN_LORESERVE)
        if hit(e["st_value"][placed & ((e["st_info"] & 15) != elf.STT_TLS)]):
            return "a dynamic symbol is defined in it"
    return ""


def _used(binary: Binary, arch: Arch, low: int, high: int) -> str:
    """What of the program refers to [low, high); "" when nothing does."""
    if operands.referring(binary, arch, low, high):
        return "code"
    for s in binary.sections:
        if binary.type == elf.ET_EXEC and s.flags & elf.SHF_WRITE and s.type == elf.SHT_PROGBITS:
            words = np.frombuffer(binary.contents(s)[:s.size // 8 * 8], dtype="<i8")
            if ((words >= low) & (words < high)).any():
                return s.name
    return ""


def holes(binary: Binary, pieces: Iterable[Piece], headers_end: int) -> list[tuple[int, int]]:
    """(start, end) addresses that `pieces` leave free in the read-only segments of the input, ascending."""
    gone = {s.index for p in pieces for s in p.covers}
    loaded = sorted((s for s in binary.sections if s.flags & elf.SHF_ALLOC and s.size and not s.flags & elf.SHF_TLS),
                    key=lambda s: s.address)
    out: list[tuple[int, int]] = []
    for p in binary.segments:
        if p.type != elf.PT_LOAD or p.flags & elf.PF_W:
            continue
        run: tuple[int, int] | None = None
        for s in [x for x in loaded if p.address <= x.address and x.end <= p.address + p.filesz]:
            if s.index in gone:
                run = (run[0] if run else s.address, s.end)
            elif run:
                out.append(run)
                run = None
        if run:
            out.append(run)
    first = min((p for p in binary.segments if p.type == elf.PT_LOAD), key=lambda p: p.offset)
    limit = first.address + headers_end
    return [(max(a, limit), b) for a, b in out if b > max(a, limit)]


def fit(free: list[tuple[int, int]], pieces: list[Piece], last: int = 0) -> tuple[list[tuple[Piece, int]], list[Piece]]:
    """Fill the holes `free` as well as can be: ([(piece, address)], pieces that find no room).

    Hole by hole, the largest first, with the pieces that leave least of it; but the hole that ends at `last` comes last:
    what it has left is not lost."""
    placed, left = [], sorted(pieces, key=lambda p: -p.size)
    for start, end in sorted(free, key=lambda hole: (hole[1] == last, hole[0] - hole[1])):
        chosen = _fullest(left, end - start)
        at = start
        for p in chosen:
            placed.append((p, _up(at, p.align)))
            at = _up(at, p.align) + p.size
        left = [p for p in left if p not in chosen]
    return placed, left


def _fullest(pieces: list[Piece], room: int) -> tuple[Piece, ...]:
    """Those of `pieces` that together fill `room` best, each with the most that its alignment may need."""
    best: dict[int, tuple[Piece, ...]] = {0: ()}           # by the room that they need
    for p in pieces[:_CHOICE]:
        need = p.size + p.align - 1
        best |= {used + need: (*those, p) for used, those in best.items()
                 if used + need <= room and used + need not in best}
    return best[max(best)]


def loader_tables(binary: Binary) -> list[Section]:
    """The read-only sections that only loaders use, and find through a dynamic tag: they may move."""
    writable = [p for p in binary.segments if p.type == elf.PT_LOAD and p.flags & elf.PF_W]
    return [s for s in binary.sections if s.type in TAG_OF_TYPE and s.flags & elf.SHF_ALLOC and s.size
            and not any(p.address <= s.address < p.address + p.memsz for p in writable)
            and _unit(binary, [s], s) and not _pinned(binary, (s,))]


def memory_end(binary: Binary) -> int:
    """The file address behind the last segment, bss included."""
    return max(p.address + p.memsz for p in binary.segments if p.type == elf.PT_LOAD)


def loaded_end(binary: Binary) -> int:
    """The file offset behind everything that stays where it is: all that segments and loaded sections hold."""
    ends = [p.offset + p.filesz for p in binary.segments]
    ends += [s.offset + s.size for s in binary.sections if s.flags & elf.SHF_ALLOC and s.type != elf.SHT_NOBITS]
    return max(ends)


def room_for_stubs(binary: Binary, arch: Arch, count: int) -> tuple[int, int]:
    """[low, high): addresses that the stubs of `count` functions are sure to be in, before anything is placed."""
    end = memory_end(binary)
    segment = binary.segment(elf.PT_DYNAMIC)
    before = 4 * arch.page_size + 8 * count + (segment.filesz if segment else 0)
    return end, end + before + count * max(arch.stub_size(f) for f in (0, MODULE_IBT))


def far(binary: Binary, arch: Arch, count: int) -> bool:
    """Whether the stubs of `count` functions, or patches, may be out of reach of a direct branch (descriptor.MODULE_FAR), though
    not out of all reach: decided before anything is placed, so on the safe side."""
    _, end = room_for_stubs(binary, arch, count)
    end += count * MOST_MOVED
    low = min(p.address for p in binary.segments if p.type == elf.PT_LOAD)
    return arch.reach < arch.data_reach and end - low >= arch.reach - PATCHES_KEPT


def holding(segments: tuple[Segment, ...], addresses: np.ndarray) -> np.ndarray:
    """The file offsets of `addresses` (int64); -1 where no PT_LOAD has bytes for one."""
    out = np.full(len(addresses), -1, dtype=np.int64)
    for p in segments:
        if p.type == elf.PT_LOAD:
            inside = (addresses >= p.address) & (addresses < p.address + p.filesz)
            out[inside] = addresses[inside] - p.address + p.offset
    return out
