"""A reader of .debug_info, for what attach wants to know from it: Reader.

Inlined copies (inlined.py), result types (results.py), who declares a static local (owners.py), layouts of types (typecheck.py).  It is one
of our own because importing pyelftools takes longer than an attach may: it looks only at the units, entries and attributes that
are asked for.

Whatever is damaged, split into other files or compressed otherwise than with zlib raises one of DAMAGED.

Specification: DWARF 5, 7.5 (units, abbreviations, forms).
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from psu_bin import elf
from psu_bin.arch import for_machine
from psu_bin.elf import SHF_COMPRESSED, Binary

DAMAGED = (ValueError, IndexError, KeyError, RecursionError, zlib.error)

TAG_SUBPROGRAM, TAG_INLINED, TAG_VARIABLE = 0x2E, 0x1D, 0x34
AT_NAME, AT_ORIGIN, AT_SPECIFICATION, AT_LINKAGE_NAME, AT_STR_OFFSETS, AT_GNU_LINKAGE_NAME = 0x03, 0x31, 0x47, 0x6E, 0x72, 0x2007
AT_BYTE_SIZE, AT_ENCODING, AT_TYPE = 0x0B, 0x3E, 0x49
AT_SIBLING, AT_LOCATION, AT_CONST_VALUE, AT_PROTOTYPED, AT_UPPER_BOUND, AT_COUNT = 0x01, 0x02, 0x1C, 0x27, 0x2F, 0x37
AT_BIT_OFFSET, AT_BIT_SIZE, AT_DATA_BIT_OFFSET, AT_MEMBER_LOCATION = 0x0C, 0x0D, 0x6B, 0x38
AT_CALLING_CONVENTION, AT_DECLARATION, AT_EXTERNAL, AT_GNU_VECTOR = 0x36, 0x3C, 0x3F, 0x2107
_KEPT = frozenset((
    AT_NAME, AT_ORIGIN, AT_SPECIFICATION, AT_LINKAGE_NAME, AT_GNU_LINKAGE_NAME, AT_STR_OFFSETS, AT_BYTE_SIZE, AT_ENCODING, AT_TYPE,
    AT_SIBLING, AT_LOCATION, AT_CONST_VALUE, AT_UPPER_BOUND, AT_COUNT, AT_BIT_OFFSET, AT_BIT_SIZE, AT_DATA_BIT_OFFSET,
    AT_MEMBER_LOCATION, AT_CALLING_CONVENTION, AT_DECLARATION, AT_EXTERNAL, AT_GNU_VECTOR))
_ULEB, _STRING, _BLOCK, _BLOCK1, _BLOCK2, _BLOCK4, _INDIRECT, _IMPLICIT = -1, -2, -3, -4, -5, -6, -7, -8
_OFFSET, _ADDRESS = -9, -10                                        # as wide as the unit says
_SDATA = 0x0D
_STRP, _LINE_STRP, _STRX, REF_ADDR, _REF_UDATA = 0x0E, 0x1F, (0x1A, 0x25, 0x26, 0x27, 0x28), 0x10, 0x15
REFS = (0x11, 0x12, 0x13, 0x14, _REF_UDATA)                       # from the start of the unit
_SIZES = {
    0x01: _ADDRESS, 0x03: _BLOCK2, 0x04: _BLOCK4, 0x05: 2, 0x06: 4, 0x07: 8, 0x08: _STRING, 0x09: _BLOCK,
    0x0A: _BLOCK1, 0x0B: 1, 0x0C: 1, 0x0D: _ULEB, 0x0E: _OFFSET, 0x0F: _ULEB, 0x10: _OFFSET, 0x11: 1, 0x12: 2, 0x13: 4,
    0x14: 8, 0x15: _ULEB, 0x16: _INDIRECT, 0x17: _OFFSET, 0x18: _BLOCK, 0x19: 0, 0x1A: _ULEB, 0x1B: _ULEB, 0x1C: 4,
    0x1D: _OFFSET, 0x1E: 16, 0x1F: _OFFSET, 0x20: 8, 0x21: _IMPLICIT, 0x22: _ULEB, 0x23: _ULEB, 0x24: 8, 0x25: 1,
    0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4, 0x1F01: _ULEB, 0x1F02: _ULEB, 0x1F20: _OFFSET,
    0x1F21: _OFFSET}
MOST = 2 << 20             # bytes of units that are read: half a second's work
_INFLATED = 1 << 28        # bytes of a compressed section
_LONGEST_CHAIN = 8         # of references from an entry to the one with its name


class Abbreviation(NamedTuple):
    tag: int
    children: bool
    size: int                                      # of all attributes; -1: depends
    attributes: tuple[tuple[int, int, int, int], ...]   # (attribute, form, size or one of the marks above, value if implicit)


class Unit(NamedTuple):
    start: int             # of its header
    entries: int           # of its first entry
    end: int
    version: int
    width: int             # of offsets: 4 or 8
    table: int             # where its abbreviations are


class Reader:
    def __init__(self, contents: Callable[[str], bytes]) -> None:
        self.info, self.abbrev, self.strings, self.line_strings, self.offsets = (
            contents(f".debug_{n}") for n in ("info", "abbrev", "str", "line_str", "str_offsets"))
        self.tables: dict[int, dict[int, Abbreviation]] = {}
        self.units = list(self._units())
        self.bases: dict[int, int] = {}            # of a unit's string offsets
        self.starts = [u.start for u in self.units]
        self.names: dict[int, tuple[str, str]] = {}      # of entries, by place
        self.files: dict[int, str] = {}                  # of units
        self.budget = MOST

    # ---- units ----------------------------------------------------------------------------------------------------

    def _units(self) -> Iterator[Unit]:
        at = 0
        while at + 12 <= len(self.info):
            length, width, body = self.number(at, 4), 4, at + 4
            if length == 0xFFFFFFFF:
                length, width, body = self.number(at + 4, 8), 8, at + 12
            end = body + length
            version = self.number(body, 2)
            if end > len(self.info) or not 2 <= version <= 5:
                raise ValueError(f"a unit of version {version} up to {end:#x}")
            if version == 5:
                kind, table, entries = self.info[body + 2], self.number(body + 4, width), body + 4 + width
                entries += {2: width + 8, 6: width + 8, 4: 8, 5: 8}.get(kind, 0)       # of types, and split ones
            else:
                table, entries = self.number(body + 2, width), body + 3 + width
            yield Unit(at, entries, end, version, width, table)
            at = end

    def abbreviations(self, u: Unit) -> dict[int, Abbreviation]:
        """The unit's abbreviations; those of units with the same table are read once."""
        start, width, version = u.table, u.width, u.version
        if start in self.tables:
            return self.tables[start]
        out: dict[int, Abbreviation] = {}
        data, at = self.abbrev, start
        while True:
            code, at = uleb(data, at)
            if not code:
                break
            tag, at = uleb(data, at)
            children, at = data[at] != 0, at + 1
            attributes = []
            while True:
                name, at = uleb(data, at)
                form, at = uleb(data, at)
                size, implicit = _SIZES[form] if form else 0, 0
                if size == _IMPLICIT:
                    began = at
                    implicit, at = uleb(data, at)
                    implicit = _signed(implicit, at - began)
                    size = 0
                if size == _OFFSET:
                    size = 8 if form == REF_ADDR and version == 2 else width
                if size == _ADDRESS:
                    size = 8
                if not name and not form:
                    break
                attributes.append((name, form, size, implicit))
            sizes = [size for _, _, size, _ in attributes]
            fixed = min(sizes, default=0) >= 0
            out[code] = Abbreviation(tag, children, sum(sizes) if fixed else -1, tuple(attributes))
        self.tables[start] = out
        return out

    def ends(self, name: str) -> list[int]:
        """The places in the string table that say `name`."""
        text, out, at = name.encode("utf-8", "surrogateescape") + b"\0", [], -1
        while (at := self.strings.find(text, at + 1)) >= 0:
            out.append(at)
        return out

    def may_have(self, u: Unit, places: set[bytes], texts: set[bytes]) -> bool:
        """Whether the unit perhaps has one of the names."""
        where, low, high = self.info, u.entries, u.end
        if self.offsets and self._base(u):
            low = self._base(u)
            length = int.from_bytes(self.offsets[low - 8:low - 4], "little")       # behind the header's first field
            where, high = self.offsets, low - 4 + length
        return has(where, low, high, places) or any(self.info.find(t, u.entries, u.end) >= 0 for t in texts)

    def _base(self, u: Unit) -> int:
        """Where the unit's string offsets begin; 0 where it has none."""
        if u.start not in self.bases:
            self.bases[u.start] = self.attributes(u, u.entries).get(AT_STR_OFFSETS, (0, 0))[1]
        return self.bases[u.start]

    # ---- entries --------------------------------------------------------------------------------------------------

    def entries(self, u: Unit, wanted: tuple[int, ...], functions: tuple[int, ...]) -> Iterator[
            tuple[int, int, dict[int, tuple[int, int]], int]]:
        """(place, tag, attributes, place of the entry around it that is one of `functions`, or -1) of the entries with a wanted tag.

        Nothing when the units so far were too much to be read."""
        self.budget -= u.end - u.entries
        if self.budget < 0:
            return
        data, table, at, end = self.info, self.abbreviations(u), u.entries, u.end
        around: list[int] = []                 # by level of entries
        inside = -1
        while at < end:
            start, code = at, data[at]
            at += 1
            if code > 0x7F:
                code, at = uleb(data, start)
            if not code:
                inside = around.pop() if around else -1
                continue
            a = table[code]
            if a.tag in wanted:
                at, values = self.values(u, a, at)
                yield start, a.tag, values, inside
            elif a.size >= 0:
                at += a.size
            else:
                at, _ = self.values(u, a, at)
            if a.children:
                around.append(inside)
                inside = start if a.tag in functions else inside

    def attributes(self, u: Unit, at: int) -> dict[int, tuple[int, int]]:
        code, behind = uleb(self.info, at)
        return self.values(u, self.abbreviations(u)[code], behind)[1]

    def values(self, u: Unit, a: Abbreviation, at: int) -> tuple[int, dict[int, tuple[int, int]]]:
        """(end of the entry, attribute -> (form, number; of a string or block in the entry itself, its place))."""
        data, out = self.info, {}
        for name, form, size, implicit in a.attributes:
            if size == _INDIRECT:
                form, at = uleb(data, at)
                size = _SIZES[form]
                size = u.width if size == _OFFSET else 8 if size == _ADDRESS else size
            began = at
            if size >= 0:
                at += size
                value = int.from_bytes(data[began:at], "little") if name in _KEPT and size else implicit
            elif size == _ULEB:
                value, at = uleb(data, at)
                value = _signed(value, at - began) if form == _SDATA else value
            elif size == _STRING:
                value, at = began, data.index(b"\0", at) + 1
            elif size == _BLOCK:
                length, value = uleb(data, at)
                at = value + length
            else:
                value = at + {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}[size]
                at = value + self.number(at, value - at)
            if name in _KEPT:
                out[name] = form, value
        return at, out

    def name(self, u: Unit, values: dict[int, tuple[int, int]], depth: int = 0) -> tuple[str, str]:
        """(what the entry's symbol is called, the source file of its unit)."""
        for kind in (AT_LINKAGE_NAME, AT_GNU_LINKAGE_NAME, AT_NAME):
            if kind in values and (kind != AT_NAME or AT_SPECIFICATION not in values):
                return self.text(u, *values[kind]), self.file(u)
        for kind in (AT_ORIGIN, AT_SPECIFICATION):
            if kind in values and depth < _LONGEST_CHAIN:
                form, value = values[kind]
                if form == REF_ADDR or form in REFS:
                    return self.name_at(value if form == REF_ADDR else u.start + value, depth + 1)
        return "", self.file(u)

    def name_at(self, at: int, depth: int = 0) -> tuple[str, str]:
        if at not in self.names:
            u = self.units[bisect.bisect_right(self.starts, at) - 1]
            if not u.entries <= at < u.end:
                raise ValueError(f"an entry at {at:#x}")
            self.names[at] = self.name(u, self.attributes(u, at), depth)
        return self.names[at]

    def file(self, u: Unit) -> str:
        """The source file of the unit, as the compiler was given it."""
        if u.start not in self.files:
            values = self.attributes(u, u.entries)
            self.files[u.start] = self.text(u, *values[AT_NAME]) if AT_NAME in values else ""
        return self.files[u.start]

    def text(self, u: Unit, form: int, value: int) -> str:
        data = self.info if form == 0x08 else self.line_strings if form == _LINE_STRP else self.strings
        if form in _STRX:
            at = self._base(u) + value * u.width
            value = int.from_bytes(self.offsets[at:at + u.width], "little")
        elif form not in (0x08, _STRP, _LINE_STRP):
            return ""
        return data[value:data.index(b"\0", value)].decode("utf-8", "surrogateescape")

    def number(self, at: int, width: int) -> int:
        if at + width > len(self.info):
            raise ValueError(f"cut short at {at:#x}")
        return int.from_bytes(self.info[at:at + width], "little")


def contents(binary: Binary, name: str) -> bytes:
    s = binary.section(name)
    if s is None:
        return b""
    data = binary.contents(s)
    if not s.flags & SHF_COMPRESSED:
        return data
    if int.from_bytes(data[:4], "little") != 1:
        raise ValueError("compressed otherwise than with zlib")
    return zlib.decompressobj().decompress(data[24:], _INFLATED)


def has(data: bytes, low: int, high: int, numbers: set[bytes]) -> bool:
    """Whether any of these 4-byte numbers is in data[low:high], at any place."""
    if len(numbers) < 10:
        return any(data.find(n, low, high) >= 0 for n in numbers)
    values = {int.from_bytes(n, "little") for n in numbers}
    view = memoryview(data)
    return any(not values.isdisjoint(view[at:at + (high - at) // 4 * 4].cast("I")) for at in range(low, min(low + 4, high)))


def _signed(value: int, length: int) -> int:
    """What an unsigned LEB128 number of `length` bytes is as a signed one."""
    return value - (1 << 7 * length) if value >> 7 * length - 1 else value


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """(an unsigned LEB128 number, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def relocated(binary: Binary, name: str) -> bytes:
    """A debug section; of an object file, with what its relocations say: places in other debug sections."""
    data = bytearray(contents(binary, name))
    section = binary.section(name)
    if binary.type != elf.ET_REL or section is None:
        return bytes(data)
    howto = for_machine(binary.machine, binary.path).link.HOWTO
    for s in binary.sections:
        if s.type != elf.SHT_RELA or s.info != section.index:
            continue
        values = binary.table(binary.sections[s.link], elf.SYMBOL_DTYPE)["st_value"].tolist()
        for offset, kind, symbol, addend in binary.table(s, elf.RELA_DTYPE).tolist():
            size = howto[kind].size
            data[offset:offset + size] = (values[symbol] + addend & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(data)
