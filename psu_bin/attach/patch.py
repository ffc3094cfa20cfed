"""A patch object: one relocatable ELF file, as the compiler made it with `cc -c`: PatchObject.

Only what the linker needs is read: allocated sections, their relocations, symbols with the source file each belongs to
(STT_FILE), and functions.  Debug sections are left alone.

Odd: tables with an entry a symbol or relocation become NamedTuples, not dataclasses, because making 10,000 frozen
dataclasses takes a tenth of the time that all of attach may take (and defining one class of them a millisecond).
"""

from __future__ import annotations

import bisect
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from psu_bin import elf
from psu_bin.arch.link_types import Found
from psu_bin.elf import Binary, Section
from psu_bin.errors import PsuError

SHT_X86_64_UNWIND = 0x70000001
SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY = 14, 15, 16
SHN_X86_64_LCOMMON = 0xFF02
MAX_ALIGN = 1 << 21            # the largest page that anybody aligns to
MAX_SECTION = 1 << 30          # within reach of 32-bit displacements, with room for the rest

# Names that a compiler gives to pieces and specialised copies of a function.  `.lto_priv.N` and `.llvm.N` are no
# clones: they rename a static function of a program linked with -flto.
_CLONE = re.compile(r"\.(part|isra|constprop|cold|localalias|clone|cold\.part)(\.\d+)*(?=\.|$)")
_RENAMED = re.compile(r"\.(lto_priv|llvm)\.\d+$")
_NUMBERED = re.compile(r"^(.+)\.\d+$")


class PatchSymbol(NamedTuple):
    """One symbol.  `section` is a section index, or elf.SHN_UNDEF, SHN_ABS, SHN_COMMON."""
    number: int
    name: str
    type: int
    bind: int
    section: int
    value: int
    size: int
    file: str          # of a local symbol: the STT_FILE before it; else ""
    hidden: bool       # visibility hidden or internal: the linker made it a local symbol of the program

    @property
    def local(self) -> bool:
        return self.bind == elf.STB_LOCAL


class Reloc(NamedTuple):
    """One relocation; `offset` in the section that it patches."""
    offset: int
    type: int
    symbol: int
    addend: int


class DebugLines(NamedTuple):
    """The sections that name source lines, as they are in the file: (bytes, whether compressed).  See lines.py."""
    lines: tuple[bytes, bool]
    line_strings: tuple[bytes, bool]
    strings: tuple[bytes, bool]
    relocs: tuple[Reloc, ...]          # of .debug_line


class PatchFunction(NamedTuple):
    """One piece of code with a function symbol; aliases share it."""
    section: int
    start: int
    end: int
    names: tuple[PatchSymbol, ...]     # the name to match first: globals before locals, clones last

    @property
    def name(self) -> str:
        return self.names[0].name

    @property
    def clone(self) -> bool:
        """Made by the compiler from another function: never matches one of the program."""
        return all(is_clone(s.name) for s in self.names)


def is_clone(name: str) -> bool:
    return _CLONE.search(name) is not None


def without_clone(name: str) -> str:
    """The function that `name` was made from: "f" for "f.part.0.cold"."""
    found = _CLONE.search(name)
    return name[:found.start()] if found else name


def program_name(name: str) -> str:
    """The source's name for a symbol of a program: without a version and without what LTO appended."""
    return _RENAMED.sub("", name.split("@", 1)[0])


def numbered(name: str) -> str:
    """The base of GCC's name for a static local ("count" of "count.0"), or ""."""
    found = _NUMBERED.match(name)
    return found.group(1) if found and not is_clone(name) else ""


@dataclass(frozen=True, eq=False)
class PatchObject:
    """A patch object; sections and symbols by their ELF index."""
    path: str
    machine: int
    sections: tuple[Section, ...]
    contents: tuple[bytes, ...]                 # of allocated sections that have bytes; b"" for the others
    symbols: tuple[PatchSymbol, ...]
    relocs: dict[int, tuple[Reloc, ...]]        # by index of the allocated section they patch, ascending by offset
    debug: DebugLines | None = None             # None: compiled without -g
    source: Binary | None = field(default=None, repr=False)     # what it was read from: types are read when wanted (results.py)
    found: dict[tuple[int, int], Found] = field(default_factory=dict)   # by (section, offset) of a relocation: anchors.py

    @property
    def has_code(self) -> bool:
        return any(s.flags & elf.SHF_EXECINSTR and s.flags & elf.SHF_ALLOC and s.size for s in self.sections)

    @property
    def file(self) -> str:
        """The source file that its symbols name, "" when there is none."""
        return next((s.file for s in self.symbols if s.file), self._only_file)

    @cached_property
    def _only_file(self) -> str:
        return next((s.name for s in self.symbols if s.type == elf.STT_FILE), "")

    @cached_property
    def symbols_in(self) -> dict[int, list[PatchSymbol]]:
        """Symbols by the section that they are in, in the order of the table; sections without any are left out."""
        out: dict[int, list[PatchSymbol]] = {}
        for s in self.symbols:
            out.setdefault(s.section, []).append(s)
        return out

    @cached_property
    def functions(self) -> tuple[PatchFunction, ...]:
        """Functions it defines, ascending by section and address."""
        at: dict[tuple[int, int], list[PatchSymbol]] = {}
        for s in self.symbols:
            # Assembly calls tables functions now and then: what is in data is data.
            if s.type in (elf.STT_FUNC, elf.STT_GNU_IFUNC) and 0 < s.section < len(self.sections) and (
                    self.sections[s.section].flags & elf.SHF_EXECINSTR):
                at.setdefault((s.section, s.value), []).append(s)
        out = []
        places = sorted(at)
        for n, (section, start) in enumerate(places):
            names = sorted(at[section, start], key=lambda s: (is_clone(s.name), s.local, s.number))
            size = max(s.size for s in names)
            if not size:                        # hand-written assembly without .size: up to the next one
                following = places[n + 1] if n + 1 < len(places) else (-1, 0)
                size = (following[1] if following[0] == section else self.sections[section].size) - start
            out.append(PatchFunction(section, start, start + size, tuple(names)))
        return tuple(out)

    @cached_property
    def function_at(self) -> dict[tuple[int, int], PatchFunction]:
        """Functions by (section, offset of their entry)."""
        return {(f.section, f.start): f for f in self.functions}

    def function_covering(self, section: int, offset: int) -> PatchFunction | None:
        """The function that has the byte at `offset` of a section."""
        n = bisect.bisect_right(self._starts.get(section, []), offset)
        for f in reversed(self._by_section.get(section, [])[max(0, n - 2):n]):    # hand-written ones may be nested
            if f.start <= offset < f.end:
                return f
        return None

    @cached_property
    def _starts(self) -> dict[int, list[int]]:
        return {section: [f.start for f in functions] for section, functions in self._by_section.items()}

    @cached_property
    def cold_parts(self) -> dict[str, list[PatchFunction]]:
        """Parts that the compiler moved out of functions (`f.cold`), by the function's name: they share its frame."""
        out: dict[str, list[PatchFunction]] = {}
        for f in self.functions:
            if ".cold" in f.name and f.clone:
                out.setdefault(without_clone(f.name), []).append(f)
        return out

    @cached_property
    def _by_section(self) -> dict[int, list[PatchFunction]]:
        out: dict[int, list[PatchFunction]] = {}
        for f in self.functions:
            out.setdefault(f.section, []).append(f)
        return out

    def functions_in(self, section: int) -> list[PatchFunction]:
        return self._by_section.get(section, [])


def load(path: str | Path, machine: int | None = None) -> PatchObject:
    """Read the patch object at `path`; `machine`: the target's ELF machine number, None: any.

    Raises PsuError when it is not a relocatable object of that machine, or damaged."""
    return parse(Binary.read(path), machine)


def parse(binary: Binary, machine: int | None = None) -> PatchObject:
    """The patch object in `binary`.  Raises PsuError as load does."""
    path = binary.path
    if machine is not None and binary.machine != machine:
        raise PsuError(path, f"compiled for another architecture: ELF machine {binary.machine}, "
                             f"the process has {machine}")
    if binary.type in (elf.ET_EXEC, elf.ET_DYN):
        what = "an executable" if binary.type == elf.ET_EXEC or binary.segment(elf.PT_INTERP) else "a shared library"
        raise PsuError(path, f"is {what}, not a patch object", "give the object file that `cc -c` makes")
    if binary.type != elf.ET_REL:
        raise PsuError(path, f"is not an object file: ELF type {binary.type}",
                       "give the object file that `cc -c` makes")
    sections = binary.sections
    for s in sections:
        _check_section(binary, s)
    symbols = _symbols(binary)
    patch = PatchObject(path, binary.machine, sections,
                        tuple(binary.contents(s) if s.flags & elf.SHF_ALLOC else b"" for s in sections),
                        symbols, _relocations(binary, len(symbols)), _debug(binary, len(symbols)), binary)
    if not patch.has_code and any(s.name.startswith((".gnu.lto_", ".gnu.debuglto_")) for s in sections):
        raise PsuError(path, "holds only intermediate code of -flto", "compile the patch with -fno-lto or -ffat-lto-objects")
    return patch


def _debug(binary: Binary, symbols: int) -> DebugLines | None:
    """.debug_line and what it names; the last ones of these names, as the compiler writes one."""
    named = {s.name: s for s in binary.sections if s.name.startswith(".debug_")}
    if ".debug_line" not in named:
        return None

    def contents(name: str) -> tuple[bytes, bool]:
        s = named.get(name)
        return (binary.contents(s), bool(s.flags & elf.SHF_COMPRESSED)) if s else (b"", False)

    rows = []
    for s in binary.sections:
        if s.type == elf.SHT_RELA and s.info == named[".debug_line"].index:
            body = binary.contents(s)
            rows += [Reloc(offset, info & 0xFFFFFFFF, info >> 32, addend)
                     for offset, info, addend in struct.iter_unpack("<QQq", body[:len(body) // 24 * 24])]
    return DebugLines(contents(".debug_line"), contents(".debug_line_str"), contents(".debug_str"),
                      tuple(r for r in rows if r.symbol < symbols))


def _check_section(binary: Binary, s: Section) -> None:
    """Refuse headers that no compiler writes and that would make nonsense or enormous memory."""
    if not s.flags & elf.SHF_ALLOC:
        return
    merge = s.flags & elf.SHF_MERGE and s.entsize
    if s.align & (s.align - 1) or s.align > MAX_ALIGN or s.size > MAX_SECTION or merge and s.size % s.entsize or (
            s.type == elf.SHT_NOBITS and (not s.flags & elf.SHF_WRITE or s.flags & elf.SHF_EXECINSTR)):
        raise PsuError(binary.path, f"malformed section {s.name}: size {s.size:#x}, alignment {s.align:#x}, "
                                    f"entries of {s.entsize:#x}")


def _symbols(binary: Binary) -> tuple[PatchSymbol, ...]:
    table = next((s for s in binary.sections if s.type == elf.SHT_SYMTAB), None)
    if table is None or table.link >= len(binary.sections):
        raise PsuError(binary.path, "has no symbol table", "do not strip the patch object")
    strings = binary.contents(binary.sections[table.link])
    extended = next((binary.contents(s) for s in binary.sections
                     if s.type == elf.SHT_SYMTAB_SHNDX and s.link == table.index), b"")
    body = binary.contents(table)
    out = []
    file = ""
    end = len(binary.sections)
    for n, (name_at, info, other, section, value, size) in enumerate(
            struct.iter_unpack("<IBBHQQ", body[:len(body) // 24 * 24])):
        kind, bind = info & 15, info >> 4
        if section == elf.SHN_XINDEX:
            if 4 * n + 4 > len(extended):
                raise PsuError(binary.path, f"malformed symbol table: symbol {n} has no section")
            (section,) = struct.unpack_from("<I", extended, 4 * n)
        elif section == SHN_X86_64_LCOMMON:
            section = elf.SHN_COMMON
        elif section >= end and section not in (elf.SHN_ABS, elf.SHN_COMMON):
            raise PsuError(binary.path, f"malformed symbol table: symbol {n} is in section {section} of {end}")
        if section < end and section:
            limit = binary.sections[section].size
            if value > limit or (size > limit - value and kind != elf.STT_SECTION):
                raise PsuError(binary.path, f"malformed symbol table: symbol {n} ends at {value + size:#x}, "
                                            f"its section at {limit:#x}")
        if section == elf.SHN_COMMON and (size > MAX_SECTION or value & (value - 1) or value > MAX_ALIGN):
            raise PsuError(binary.path, f"malformed symbol table: symbol {n} has size {size:#x}, alignment {value:#x}")
        name = binary.string(strings, name_at)
        if bind != elf.STB_LOCAL and not name and n:
            raise PsuError(binary.path, f"malformed symbol table: global symbol {n} has no name")
        if kind == elf.STT_FILE:
            file = name
        elif kind == elf.STT_SECTION and not name and section < end:
            name = binary.sections[section].name
        elif kind == elf.STT_NOTYPE and bind == elf.STB_LOCAL and elf.code_mark(name):
            name = ""                             # says where code and data begin: no object
        out.append(PatchSymbol(n, name, kind, bind, section, value, size,
                               file if bind == elf.STB_LOCAL else "", other & 3 in (1, 2)))
    return tuple(out)


def _relocations(binary: Binary, symbols: int) -> dict[int, tuple[Reloc, ...]]:
    out: dict[int, tuple[Reloc, ...]] = {}
    for s in binary.sections:
        if s.type not in (elf.SHT_RELA, 9) or s.info >= len(binary.sections):
            continue
        patched = binary.sections[s.info]
        if not patched.flags & elf.SHF_ALLOC or not s.size:
            continue
        if s.type != elf.SHT_RELA:
            raise PsuError(binary.path, f"section {s.name} has relocations without addends, which no ABI of "
                                        "psu-bin's architectures uses")
        body = binary.contents(s)
        rows = [Reloc(offset, info & 0xFFFFFFFF, info >> 32, addend)
                for offset, info, addend in struct.iter_unpack("<QQq", body[:len(body) // 24 * 24])]
        for r in rows:
            if r.offset >= patched.size or r.symbol >= symbols:
                raise PsuError(binary.path,
                               f"malformed relocation in {s.name}: offset {r.offset:#x}, symbol {r.symbol}")
        out[s.info] = tuple(sorted(out.get(s.info, ()) + tuple(rows)))
    return out
