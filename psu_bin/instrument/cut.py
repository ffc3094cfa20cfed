"""Taking out of the file what tables left that moved away from the end of its first segment.

The loader's tables (symbols, strings, relocations) are the first segment of what GNU ld links.  When one moves to the
new read-only segment because it grew, the others close ranks (layout.py), and the end of the first segment holds nothing
any more.  The segment then ends earlier, and everything behind it moves up in the file, by whole pages: no address
changes, and loaders ask no more than that offset and address agree modulo the page size (gABI chapter 5, p_align).

It is done to a complete, verified file, by file offsets alone: they are in the ELF header, in program headers and in
section headers, and nowhere else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from psu_bin import elf
from psu_bin.elf import Binary, Segment
from psu_bin.instrument import edits

_SHOFF, _PHDR_OFFSET, _PHDR_FILESZ, _SHDR_OFFSET = 40, 8, 32, 24      # of fields in their tables


@dataclass(frozen=True)
class Cut:
    """`size` bytes at file offset `start`, behind which the rest moves up."""
    start: int
    size: int

    def moved(self, offset: int) -> int:
        return offset - self.size if offset >= self.start + self.size else offset


def first_segment(binary: Binary) -> Segment | None:
    """The read-only segment that the file begins with."""
    first = next((p for p in binary.segments if p.type == elf.PT_LOAD), None)
    return first if first and first.offset == 0 and first.filesz == first.memsz and not first.flags & elf.PF_W else None


def unit(binary: Binary) -> int:
    """What the size of a cut is a multiple of, in bytes: every segment stays congruent."""
    return max((p.align for p in binary.segments if p.type == elf.PT_LOAD), default=1) or 1


def find(binary: Binary) -> Cut | None:
    """What can be taken out of `binary`; None: nothing."""
    first = first_segment(binary)
    if first is None or not binary.sections:
        return None
    named = [(s.offset, s.offset + s.size) for s in binary.sections if s.type not in (0, elf.SHT_NOBITS)]
    named += [(p.offset, p.offset + p.filesz) for p in binary.segments if p.index != first.index]
    named += [(0, 64), (binary.phoff, binary.phoff + binary.phentsize * binary.phnum), (binary.shoff, len(binary.data))]
    start = max((end for at, end in named if at < first.filesz), default=0)
    following = min((at for at, end in named if at >= first.filesz), default=0)
    size = (following - start) // unit(binary) * unit(binary)
    # A page of the next segment may hold the end of this one: then it is not free.
    if size <= 0 or start >= first.filesz or any(binary.data[start:following]):
        return None
    return Cut(start, size)


def shorten(binary: Binary) -> bytes:
    """The bytes of `binary` without what can be taken out of it."""
    c = find(binary)
    if c is None:
        return binary.data
    out = bytearray(binary.data)
    first = first_segment(binary)
    assert first
    struct.pack_into("<Q", out, _SHOFF, c.moved(binary.shoff))
    for p in binary.segments:
        at = binary.phoff + binary.phentsize * p.index
        struct.pack_into("<Q", out, at + _PHDR_OFFSET, c.moved(p.offset))
        if p.index == first.index:
            struct.pack_into("<QQ", out, at + _PHDR_FILESZ, c.start, c.start)
    for s in binary.sections:
        struct.pack_into("<Q", out, binary.shoff + binary.shentsize * s.index + _SHDR_OFFSET, c.moved(s.offset))
    del out[c.start:c.start + c.size]
    _verify(binary, Binary(bytes(out), binary.path), c)
    return bytes(out)


def _verify(before: Binary, after: Binary, c: Cut) -> None:
    """Raise PsuError when `after` would be loaded as something else than `before`, or names something else."""
    def must(good: bool, what: str) -> None:
        if not good:
            raise edits.defect(after.path, what)

    must(len(before.segments) == len(after.segments) and len(before.sections) == len(after.sections), "a header is missing")
    step, first = unit(before), first_segment(before)
    assert first
    headers = before.phoff + before.phentsize * before.phnum       # they say where the rest is now
    for p, q in zip(before.segments, after.segments):
        must((p.type, p.flags, p.address, p.align) == (q.type, q.flags, q.address, q.align), f"program header {p.index}")
        must((p.offset - q.offset) % step == 0, f"segment {p.index} is not congruent with the file")
        old, new = before.data[p.offset:p.offset + p.filesz], after.data[q.offset:q.offset + q.filesz]
        if p.index == first.index:
            old, rest = old[:q.filesz], old[q.filesz:]
            must(not any(rest) and q.memsz == q.filesz, "the first segment lost something")
        else:
            must(p.memsz == q.memsz and p.filesz == q.filesz, f"the size of segment {p.index}")
        own = max(0, headers - p.offset)
        must(old[own:] == new[own:], f"the contents of segment {p.index}")
    for s, t in zip(before.sections, after.sections):
        must((s.name, s.type, s.flags, s.address, s.size) == (t.name, t.type, t.flags, t.address, t.size)
             and (s.type == elf.SHT_NOBITS or before.contents(s) == after.contents(t)), f"section {s.name}")
