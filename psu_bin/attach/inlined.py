"""Into which functions the compiler has inlined others, read from a program's .debug_info: find().

A function that is replaced goes on in its inlined copies, so the functions with such copies must be in the patch, too.
They are named in warnings (callers.py), nothing else depends on this.  The reader is one of our own because importing
pyelftools takes longer than an attach may: it looks only at units that name a wanted function, and keeps only what
names functions.

Odd: a name is a tail of another in the string table (linkers merge them), so each place where it ends counts.  With LTO
the inlined copy is in another unit than the function, which it names by its place in the section.

Specification: DWARF 5, 7.5 (units, abbreviations, forms); 3.3.8 (inlined subroutines).
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from psu_bin.elf import SHF_COMPRESSED, Binary

_SUBPROGRAM, _INLINED = 0x2E, 0x1D
_NAME, _ORIGIN, _SPECIFICATION, _LINKAGE_NAME, _STR_OFFSETS, _GNU_LINKAGE_NAME = 0x03, 0x31, 0x47, 0x6E, 0x72, 0x2007
_BYTE_SIZE, _ENCODING, _TYPE = 0x0B, 0x3E, 0x49                    # for results.py
_LOCATION = 0x02                                                   # for owners.py
_KEPT = (_NAME, _ORIGIN, _SPECIFICATION, _LINKAGE_NAME, _GNU_LINKAGE_NAME, _STR_OFFSETS, _BYTE_SIZE, _ENCODING, _TYPE,
         _LOCATION)
_ULEB, _STRING, _BLOCK, _BLOCK1, _BLOCK2, _BLOCK4, _INDIRECT, _IMPLICIT = -1, -2, -3, -4, -5, -6, -7, -8
_OFFSET, _ADDRESS = -9, -10                                        # as wide as the unit says
_STRP, _LINE_STRP, _STRX, _REF_ADDR, _REF_UDATA = 0x0E, 0x1F, (0x1A, 0x25, 0x26, 0x27, 0x28), 0x10, 0x15
_REFS = (0x11, 0x12, 0x13, 0x14, _REF_UDATA)                       # from the start of the unit
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


class Copy(NamedTuple):
    """One function with an inlined copy of another."""
    function: str          # as its symbol is called
    unit: str              # the source file that the function is from, as the compiler was given it
    caller: str


class _Abbreviation(NamedTuple):
    tag: int
    children: bool
    size: int                                      # of all attributes; -1: depends
    attributes: tuple[tuple[int, int, int, int], ...]   # (attribute, form, size or one of the marks above, value if implicit)


class _Unit(NamedTuple):
    start: int             # of its header
    entries: int           # of its first entry
    end: int
    version: int
    width: int             # of offsets: 4 or 8
    table: int             # where its abbreviations are


def find(binary: Binary, names: Iterable[str]) -> set[Copy]:
    """The inlined copies of the functions called `names`.

    Empty where there is no debug information, or none that this can read: damaged, split into other files, compressed
    otherwise than with zlib."""
    try:
        return Reader(lambda name: _contents(binary, name)).copies(set(names))
    except (ValueError, IndexError, KeyError, RecursionError, zlib.error):
        return set()       # then the warnings name fewer callers, which is all that it is for


class Reader:
    def __init__(self, contents: Callable[[str], bytes]) -> None:
        self.info, self.abbrev, self.strings, self.line_strings, self.offsets = (
            contents(f".debug_{n}") for n in ("info", "abbrev", "str", "line_str", "str_offsets"))
        self.tables: dict[int, dict[int, _Abbreviation]] = {}
        self.units = list(self._units())
        self.bases: dict[int, int] = {}            # of a unit's string offsets
        self.starts = [u.start for u in self.units]
        self.names: dict[int, tuple[str, str]] = {}      # of entries, by place
        self.files: dict[int, str] = {}                  # of units
        self.budget = MOST

    def copies(self, wanted: set[str]) -> set[Copy]:
        places = {at.to_bytes(4, "little") for name in wanted for at in self._ends(name)}
        # Names that are no longer than their place in the table would be are in the entries themselves.
        texts = {text for name in wanted if len(text := name.encode("utf-8", "surrogateescape") + b"\0") <= 8}
        first = [u for u in self.units if self._may_have(u, places, texts)]
        out: set[Copy] = set()
        origins: set[int] = set()
        for u in first:
            self._walk(u, wanted, out, origins)
        # Units of other files refer to these entries by their place.
        marks = {at.to_bytes(4, "little") for at in origins}
        for u in self.units:
            if u not in first and _has(self.info, u.entries, u.end, marks) and self._inlines(u):
                self._walk(u, wanted, out, origins)
        return out

    # ---- units ----------------------------------------------------------------------------------------------------

    def _units(self) -> Iterator[_Unit]:
        at = 0
        while at + 12 <= len(self.info):
            length, width, body = self._number(at, 4), 4, at + 4
            if length == 0xFFFFFFFF:
                length, width, body = self._number(at + 4, 8), 8, at + 12
            end = body + length
            version = self._number(body, 2)
            if end > len(self.info) or not 2 <= version <= 5:
                raise ValueError(f"a unit of version {version} up to {end:#x}")
            if version == 5:
                kind, table, entries = self.info[body + 2], self._number(body + 4, width), body + 4 + width
                entries += {2: width + 8, 6: width + 8, 4: 8, 5: 8}.get(kind, 0)       # of types, and split ones
            else:
                table, entries = self._number(body + 2, width), body + 3 + width
            yield _Unit(at, entries, end, version, width, table)
            at = end

    def _abbreviations(self, u: _Unit) -> dict[int, _Abbreviation]:
        """The unit's abbreviations; those of units with the same table are read once."""
        start, width, version = u.table, u.width, u.version
        if start in self.tables:
            return self.tables[start]
        out: dict[int, _Abbreviation] = {}
        data, at = self.abbrev, start
        while True:
            code, at = _uleb(data, at)
            if not code:
                break
            tag, at = _uleb(data, at)
            children, at = data[at] != 0, at + 1
            attributes = []
            while True:
                name, at = _uleb(data, at)
                form, at = _uleb(data, at)
                size, implicit = _SIZES[form] if form else 0, 0
                if size == _IMPLICIT:
                    implicit, at = _uleb(data, at)
                    size = 0
                if size == _OFFSET:
                    size = 8 if form == _REF_ADDR and version == 2 else width
                if size == _ADDRESS:
                    size = 8
                if not name and not form:
                    break
                attributes.append((name, form, size, implicit))
            sizes = [size for _, _, size, _ in attributes]
            fixed = min(sizes, default=0) >= 0
            out[code] = _Abbreviation(tag, children, sum(sizes) if fixed else -1, tuple(attributes))
        self.tables[start] = out
        return out

    def _ends(self, name: str) -> list[int]:
        """The places in the string table that say `name`."""
        text, out, at = name.encode("utf-8", "surrogateescape") + b"\0", [], -1
        while (at := self.strings.find(text, at + 1)) >= 0:
            out.append(at)
        return out

    def _may_have(self, u: _Unit, places: set[bytes], texts: set[bytes]) -> bool:
        """Whether the unit perhaps has one of the names."""
        where, low, high = self.info, u.entries, u.end
        if self.offsets and self._base(u):
            low = self._base(u)
            length = int.from_bytes(self.offsets[low - 8:low - 4], "little")       # behind the header's first field
            where, high = self.offsets, low - 4 + length
        return _has(where, low, high, places) or any(self.info.find(t, u.entries, u.end) >= 0 for t in texts)

    def _inlines(self, u: _Unit) -> bool:
        return any(a.tag == _INLINED for a in self._abbreviations(u).values())

    def _base(self, u: _Unit) -> int:
        """Where the unit's string offsets begin; 0 where it has none."""
        if u.start not in self.bases:
            self.bases[u.start] = self._attributes(u, u.entries).get(_STR_OFFSETS, (0, 0))[1]
        return self.bases[u.start]

    # ---- entries --------------------------------------------------------------------------------------------------

    def entries(self, u: _Unit, wanted: tuple[int, ...], functions: tuple[int, ...]) -> Iterator[
            tuple[int, int, dict[int, tuple[int, int]], int]]:
        """(place, tag, attributes, place of the entry around it that is one of `functions`, or -1) of the entries with a wanted tag.

        Nothing when the units so far were too much to be read."""
        self.budget -= u.end - u.entries
        if self.budget < 0:
            return
        data, table, at, end = self.info, self._abbreviations(u), u.entries, u.end
        around: list[int] = []                 # by level of entries
        inside = -1
        while at < end:
            start, code = at, data[at]
            at += 1
            if code > 0x7F:
                code, at = _uleb(data, start)
            if not code:
                inside = around.pop() if around else -1
                continue
            a = table[code]
            if a.tag in wanted:
                at, values = self._values(u, a, at)
                yield start, a.tag, values, inside
            elif a.size >= 0:
                at += a.size
            else:
                at, _ = self._values(u, a, at)
            if a.children:
                around.append(inside)
                inside = start if a.tag in functions else inside

    def _walk(self, u: _Unit, wanted: set[str], out: set[Copy], origins: set[int]) -> None:
        """Add the unit's copies to `out`, and the places of the wanted functions' entries to `origins`."""
        for start, tag, values, inside in self.entries(u, (_INLINED, _SUBPROGRAM), (_SUBPROGRAM,)):
            name, where = self._name(u, values)
            if name in wanted and tag == _SUBPROGRAM:
                origins.add(start)
            if name in wanted and tag == _INLINED and inside >= 0:
                caller, _ = self._name_at(inside)
                out.add(Copy(name, where, caller))

    def _attributes(self, u: _Unit, at: int) -> dict[int, tuple[int, int]]:
        code, behind = _uleb(self.info, at)
        return self._values(u, self._abbreviations(u)[code], behind)[1]

    def _values(self, u: _Unit, a: _Abbreviation, at: int) -> tuple[int, dict[int, tuple[int, int]]]:
        """(end of the entry, attribute -> (form, number; of a string or block in the entry itself, its place))."""
        data, out = self.info, {}
        for name, form, size, implicit in a.attributes:
            if size == _INDIRECT:
                form, at = _uleb(data, at)
                size = _SIZES[form]
                size = u.width if size == _OFFSET else 8 if size == _ADDRESS else size
            began = at
            if size >= 0:
                at += size
                value = int.from_bytes(data[began:at], "little") if name in _KEPT and size else implicit
            elif size == _ULEB:
                value, at = _uleb(data, at)
            elif size == _STRING:
                value, at = began, data.index(b"\0", at) + 1
            elif size == _BLOCK:
                length, value = _uleb(data, at)
                at = value + length
            else:
                value = at + {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}[size]
                at = value + self._number(at, value - at)
            if name in _KEPT:
                out[name] = form, value
        return at, out

    def _name(self, u: _Unit, values: dict[int, tuple[int, int]], depth: int = 0) -> tuple[str, str]:
        """(what the entry's symbol is called, the source file of its unit)."""
        for kind in (_LINKAGE_NAME, _GNU_LINKAGE_NAME, _NAME):
            if kind in values and (kind != _NAME or _SPECIFICATION not in values):
                return self._text(u, *values[kind]), self._file(u)
        for kind in (_ORIGIN, _SPECIFICATION):
            if kind in values and depth < _LONGEST_CHAIN:
                form, value = values[kind]
                if form == _REF_ADDR or form in _REFS:
                    return self._name_at(value if form == _REF_ADDR else u.start + value, depth + 1)
        return "", self._file(u)

    def _name_at(self, at: int, depth: int = 0) -> tuple[str, str]:
        if at not in self.names:
            u = self.units[bisect.bisect_right(self.starts, at) - 1]
            if not u.entries <= at < u.end:
                raise ValueError(f"an entry at {at:#x}")
            self.names[at] = self._name(u, self._attributes(u, at), depth)
        return self.names[at]

    def _file(self, u: _Unit) -> str:
        """The source file of the unit, as the compiler was given it."""
        if u.start not in self.files:
            values = self._attributes(u, u.entries)
            self.files[u.start] = self._text(u, *values[_NAME]) if _NAME in values else ""
        return self.files[u.start]

    def _text(self, u: _Unit, form: int, value: int) -> str:
        data = self.info if form == 0x08 else self.line_strings if form == _LINE_STRP else self.strings
        if form in _STRX:
            at = self._base(u) + value * u.width
            value = int.from_bytes(self.offsets[at:at + u.width], "little")
        elif form not in (0x08, _STRP, _LINE_STRP):
            return ""
        return data[value:data.index(b"\0", value)].decode("utf-8", "surrogateescape")

    def _number(self, at: int, width: int) -> int:
        if at + width > len(self.info):
            raise ValueError(f"cut short at {at:#x}")
        return int.from_bytes(self.info[at:at + width], "little")


def _contents(binary: Binary, name: str) -> bytes:
    s = binary.section(name)
    if s is None:
        return b""
    data = binary.contents(s)
    if not s.flags & SHF_COMPRESSED:
        return data
    if int.from_bytes(data[:4], "little") != 1:
        raise ValueError("compressed otherwise than with zlib")
    return zlib.decompressobj().decompress(data[24:], _INFLATED)


def _has(data: bytes, low: int, high: int, numbers: set[bytes]) -> bool:
    """Whether any of these 4-byte numbers is in data[low:high], at any place."""
    if len(numbers) < 10:
        return any(data.find(n, low, high) >= 0 for n in numbers)
    values = {int.from_bytes(n, "little") for n in numbers}
    view = memoryview(data)
    return any(not values.isdisjoint(view[at:at + (high - at) // 4 * 4].cast("I")) for at in range(low, min(low + 4, high)))


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """(an unsigned LEB128 number, where it ends); of a signed one the end is right."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
