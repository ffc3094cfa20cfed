"""Whether a file's headers agree with each other, before anything is derived from them.

Loaders look only at program headers and the dynamic section, other tools at section headers.  instrument moves things
and keeps both true, so it needs files in which they say the same.  Linkers make nothing else; damage does.

Specification: System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

from psu_bin import elf
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument.layout import ADDRESS_TAGS, TAG_OF_TYPE

_NAMED = {elf.PT_INTERP: "PT_INTERP", elf.PT_DYNAMIC: "PT_DYNAMIC", elf.PT_NOTE: "PT_NOTE",
          elf.PT_GNU_PROPERTY: "PT_GNU_PROPERTY", elf.PT_GNU_EH_FRAME: "PT_GNU_EH_FRAME"}
# Of these a file has one at most, and a dynamic entry for it.
_ONE_EACH = frozenset(TAG_OF_TYPE) - {elf.SHT_STRTAB, elf.SHT_RELA}
_MOST_ALIGNED = 1 << 24           # of a section: eight times the largest page that linkers align to
_STRINGS = (elf.DT_NEEDED, elf.DT_SONAME, elf.DT_RPATH, elf.DT_RUNPATH)
# (tag of the address, tag of the size or None, bytes of an entry or None)
_TABLES = ((elf.DT_STRTAB, elf.DT_STRSZ, 1), (elf.DT_SYMTAB, None, 24), (elf.DT_RELA, elf.DT_RELASZ, 24),
           (elf.DT_JMPREL, elf.DT_PLTRELSZ, 24), (elf.DT_RELR, elf.DT_RELRSZ, 8))
_ONCE = {t for at, size, _ in _TABLES for t in (at, size) if t} | ADDRESS_TAGS | {elf.DT_RELACOUNT}


def check(binary: Binary) -> None:
    """Raise PsuError, saying what is malformed, when headers contradict each other."""
    if any(s.flags & elf.SHF_EXECINSTR and s.type == elf.SHT_NOBITS and s.size for s in binary.sections):
        raise PsuError(binary.path, "is a separate debug file: it has no code", "give it with --debug-file")
    _segments(binary)
    _sections(binary)
    _dynamic(binary)


def _malformed(binary: Binary, what: str) -> PsuError:
    return PsuError(binary.path, f"malformed: {what}")


def _segments(b: Binary) -> None:
    loads = [p for p in b.segments if p.type == elf.PT_LOAD]
    if b.phentsize != 56 or not loads:
        raise _malformed(b, f"{b.phnum} program headers of {b.phentsize} bytes, {len(loads)} of them PT_LOAD")
    for p in loads:
        if p.filesz > p.memsz or p.address + p.memsz >= 1 << 47 or (p.address - p.offset) % 4096:
            raise _malformed(b, f"segment {p.index} at {p.address:#x}: {p.filesz:#x} bytes from {p.offset:#x}, "
                                f"{p.memsz:#x} in memory")
    for low, high in zip(loads, loads[1:]):
        if low.address + low.memsz > high.address or low.offset + low.filesz > high.offset + high.filesz:
            raise _malformed(b, f"segments {low.index} and {high.index} overlap")
    for p in b.segments:
        if p.offset + p.filesz > len(b.data):
            raise _malformed(b, f"segment {p.index} ends at {p.offset + p.filesz:#x}, the file at {len(b.data):#x}")
        loaded = any(x.offset < p.offset + p.filesz and p.offset < x.offset + x.filesz for x in loads)
        if p.type in _NAMED and p.filesz and (loaded or p.type != elf.PT_NOTE) and not _consistent(
                b, p.address, p.offset, p.filesz):
            raise _malformed(b, f"{_NAMED[p.type]} at {p.address:#x} is not what is loaded there")
    for kind in (elf.PT_INTERP, elf.PT_DYNAMIC, elf.PT_GNU_EH_FRAME, 6):
        if sum(p.type == kind for p in b.segments) > 1:
            raise _malformed(b, f"two program headers of type {kind:#x}")


def _consistent(b: Binary, address: int, offset: int, size: int) -> bool:
    """Whether one PT_LOAD puts these bytes of the file at this address."""
    return any(p.type == elf.PT_LOAD and p.address <= address and address + size <= p.address + p.filesz
               and address - p.address + p.offset == offset for p in b.segments)


def _sections(b: Binary) -> None:
    if not b.sections:
        return
    if b.shentsize != 64 or not b.shstrndx < b.shnum or b.sections[0].type or any(not s.type for s in b.sections[1:]):
        raise _malformed(b, f"{b.shnum} section headers of {b.shentsize} bytes, names in section {b.shstrndx}")
    loaded = [s for s in b.sections if s.flags & elf.SHF_ALLOC and s.size]
    for s in loaded:
        if s.type == elf.SHT_NOBITS and not s.flags & elf.SHF_TLS:
            inside = any(p.type == elf.PT_LOAD and p.address <= s.address and s.end <= p.address + p.memsz
                         for p in b.segments)
        else:
            inside = s.type == elf.SHT_NOBITS or _consistent(b, s.address, s.offset, s.size)
        if not inside:
            raise _malformed(b, f"section {s.name} at {s.address:#x} is not what is loaded there")
    for s in b.sections:
        if s.type == elf.SHT_STRTAB and s.size and b.data[s.offset + s.size - 1]:
            raise _malformed(b, f"the last string of section {s.name} does not end")
        if (s.align & (s.align - 1) or s.align > _MOST_ALIGNED
                or s.flags & elf.SHF_ALLOC and s.address % max(s.align, 1)):
            raise _malformed(b, f"section {s.name} at {s.address:#x} has alignment {s.align:#x}")
    starts, ends = {s.address for s in loaded}, {s.end for s in loaded}
    for p in b.segments:
        if p.type in _NAMED and p.filesz and _consistent(b, p.address, p.offset, p.filesz) and (
                p.address not in starts or p.address + p.filesz not in ends):
            raise _malformed(b, f"{_NAMED[p.type]} at {p.address:#x} holds part of a section")
    spans = sorted((s.address, s.end, s.name) for s in loaded if not s.flags & elf.SHF_TLS or s.type != elf.SHT_NOBITS)
    for low, high in zip(spans, spans[1:]):
        if low[1] > high[0]:
            raise _malformed(b, f"sections {low[2]} and {high[2]} overlap")
    for s in b.sections:
        if s.link >= b.shnum:
            raise _malformed(b, f"section {s.name} is linked to section {s.link} of {b.shnum}")
        if s.type in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) and (s.size % 24 or s.info * 24 > s.size):
            raise _malformed(b, f"section {s.name}: {s.size} bytes, {s.info} local symbols")
        names = b.sections[s.link]
        if s.type in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) and (
                names.type != elf.SHT_STRTAB or (s.flags ^ names.flags) & elf.SHF_ALLOC):
            raise _malformed(b, f"section {s.name} has its names in section {names.name}")


def _dynamic(b: Binary) -> None:
    p = b.segment(elf.PT_DYNAMIC)
    if p is None:
        return
    tags = [t for t, _ in b.dynamic]
    if 16 * (len(tags) + 1) > p.filesz:
        raise _malformed(b, "the dynamic section does not end")
    for tag in _ONCE:
        if tags.count(tag) > 1:
            raise _malformed(b, f"two dynamic entries {tag:#x}")
    for at_tag, size_tag, entry in _TABLES:
        at = b.dyn(at_tag)
        size = b.dyn(size_tag) if size_tag else next((s.size for s in b.sections if s.type == elf.SHT_DYNSYM), 24)
        if at is None:
            if at_tag in (elf.DT_STRTAB, elf.DT_SYMTAB) or size_tag and size is not None:
                raise _malformed(b, f"no dynamic entry {at_tag:#x}")
            continue
        if size is None or size % entry or size and not _consistent(b, at, b.offset_of(at), size):
            raise _malformed(b, f"dynamic entry {at_tag:#x}: {size} bytes at {at:#x}")
        inside = [s for s in b.sections if s.flags & elf.SHF_ALLOC and s.size
                  and at <= s.address and s.end <= at + size]
        if b.shnum and sum(s.size for s in inside) != size:
            raise _malformed(b, f"dynamic entry {at_tag:#x}: {size} bytes at {at:#x} are no section")
    strings = b.dyn(elf.DT_STRSZ) or 0
    for tag, value in b.dynamic:
        if tag in _STRINGS and value >= strings:
            raise _malformed(b, f"dynamic entry {tag:#x} names string {value:#x} of {strings:#x} bytes")
    for s in b.sections:
        if s.flags & elf.SHF_ALLOC and s.type in _ONE_EACH and b.dyn(tag := TAG_OF_TYPE[s.type]) != s.address:
            raise _malformed(b, f"section {s.name} is at {s.address:#x}, dynamic entry {tag:#x} says "
                                f"{b.dyn(tag) or 0:#x}")
    for kind in _ONE_EACH:
        tag = TAG_OF_TYPE[kind]
        if b.shnum and b.dyn(tag) is not None and not any(
                s.address == b.dyn(tag) and TAG_OF_TYPE.get(s.type) == tag for s in b.sections):
            raise _malformed(b, f"dynamic entry {tag:#x} names no section")
