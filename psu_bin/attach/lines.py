"""Which source line each instruction of a patch object comes from, read from its .debug_line: read().

Only what names a place is kept: address, file, line.  Debuggers get it in a shorter form (symfile.py).  This is not
pyelftools' reader because importing that takes longer than an attach may, and because it would want relocated sections.

Specification: DWARF 5, 6.2 (line number information), 7.5.6 (forms); versions 2 to 4 differ in the tables of
names only.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from psu_bin.attach.patch import MAX_SECTION, DebugLines, PatchObject
from psu_bin.errors import PsuError

_ZLIB = 1
_STRING, _BLOCK, _DATA1, _DATA2, _DATA4, _DATA8, _DATA16, _UDATA, _STRP, _LINE_STRP = (
    0x08, 0x09, 0x0B, 0x05, 0x06, 0x07, 0x1E, 0x0F, 0x0E, 0x1F)
_FIXED = {_DATA1: 1, _DATA2: 2, _DATA4: 4, _DATA8: 8, _DATA16: 16}
_PATH, _DIRECTORY = 1, 2
UNKNOWN = ("", "??")


class Row(NamedTuple):
    """From `offset` of its section on, instructions come from `line` of `file` (0: from no line)."""
    offset: int
    file: tuple[str, str]  # (directory as the compiler wrote it, "" for the one that it ran in; name)
    line: int


class Lines(NamedTuple):
    rows: dict[int, list[Row]]   # by section, ascending; one an offset; the last one ends the code
    directory: str               # where the compiler ran, "" where it did not say (DWARF before 5)


def read(patch: PatchObject) -> Lines:
    """The lines of `patch`; none when it was compiled without.  Raises PsuError when they cannot be read."""
    rows: dict[int, list[Row]] = {}
    directory = ""
    try:
        if patch.debug:
            reader = _Reader(patch, patch.debug)
            while reader.at < len(reader.data):
                directory = reader.unit(rows) or directory
        for section, mine in rows.items():
            if not 0 < section < len(patch.sections) or any(
                    not 0 <= r.offset <= patch.sections[section].size for r in mine):
                raise ValueError(f"code outside of section {section}")
    except (ValueError, IndexError, zlib.error) as e:
        raise PsuError(patch.path, f"its line numbers cannot be read: {e}") from e
    return Lines({section: _in_order(r) for section, r in rows.items()}, directory)


def _plain(data: bytes, compressed: bool) -> bytes:
    if not compressed:
        return data
    if int.from_bytes(data[:4], "little") != _ZLIB:
        raise ValueError("compressed otherwise than with zlib")
    size = int.from_bytes(data[8:16], "little")
    if size > MAX_SECTION:
        raise ValueError(f"{size:#x} bytes of them")
    return zlib.decompressobj().decompress(data[24:], size) if size else b""


class _Reader:
    """A position in .debug_line."""

    def __init__(self, patch: PatchObject, debug: DebugLines) -> None:
        self.patch = patch
        self.data = _plain(*debug.lines)
        self.strings = {_LINE_STRP: _plain(*debug.line_strings), _STRP: _plain(*debug.strings)}
        self.relocs = {r.offset: r for r in debug.relocs}
        self.at = 0
        self.end = len(self.data)

    # ---- fields ---------------------------------------------------------------------------------------------------

    def fixed(self, size: int) -> int:
        if self.at + size > self.end:
            raise ValueError(f"cut short at {self.at:#x}")
        self.at += size
        return int.from_bytes(self.data[self.at - size:self.at], "little")

    def address(self, size: int) -> tuple[int, int]:
        """(section, offset) that a relocated field names."""
        r = self.relocs.get(self.at)
        if r is None:
            raise ValueError(f"no relocation at {self.at:#x}")
        self.fixed(size)
        symbol = self.patch.symbols[r.symbol]
        return symbol.section, symbol.value + r.addend

    def uleb(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.fixed(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError(f"a number without end at {self.at:#x}")

    def sleb(self) -> int:
        start = self.at
        value = self.uleb()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> bits - 1 & 1 else value

    def text(self) -> str:
        start, self.at = self.at, self.data.index(b"\0", self.at, self.end) + 1
        return self.data[start:self.at - 1].decode("utf-8", "surrogateescape")

    def form(self, form: int, width: int) -> str | int:
        """A value of one of the forms that tables of names have."""
        if form == _STRING:
            return self.text()
        if form in self.strings:
            at = self.at
            offset = self.fixed(width)
            r = self.relocs.get(at)
            if r is not None:
                offset = self.patch.symbols[r.symbol].value + r.addend
            strings = self.strings[form]
            if offset < 0:
                raise ValueError(f"no string at {offset:#x}")
            return strings[offset:strings.index(b"\0", offset)].decode("utf-8", "surrogateescape")
        if form == _UDATA:
            return self.uleb()
        if form == _BLOCK:
            return self.fixed(self.uleb())
        if form in _FIXED:
            return self.fixed(_FIXED[form])
        raise ValueError(f"a name of form {form:#x}")

    # ---- one unit -------------------------------------------------------------------------------------------------

    def unit(self, rows: dict[int, list[Row]]) -> str:
        """Read the unit at the position; returns the directory in which its compiler ran."""
        self.end = len(self.data)
        length, width = self.fixed(4), 4
        if length == 0xFFFFFFFF:
            length, width = self.fixed(8), 8
        end = self.at + length
        if end > len(self.data):
            raise ValueError(f"cut short at {self.at:#x}")
        self.end = end
        version = self.fixed(2)
        if not 2 <= version <= 5:
            raise ValueError(f"DWARF version {version}")
        address_size = 8
        if version >= 5:
            address_size = self.fixed(1)
            self.fixed(1)
        header = self.fixed(width)
        program = self.at + header
        step = self.fixed(1)
        if version >= 4:
            self.fixed(1)
        self.fixed(1)
        base = (self.fixed(1) ^ 0x80) - 0x80
        line_range = self.fixed(1)
        opcode_base = self.fixed(1)
        operands = [0] + [self.fixed(1) for _ in range(opcode_base - 1)]
        if not line_range or not opcode_base:
            raise ValueError("a line program without opcodes")
        if version >= 5:
            directories = [str(d[_PATH]) for d in self._table(width)]
            files = [(str(f[_PATH]), f[_DIRECTORY]) for f in self._table(width)]
            directory = directories[0] if directories else ""
        else:
            directories, files, directory = [""], [("??", 0)], ""
            while name := self.text():
                directories.append(name)
            while name := self.text():
                files.append((name, self.uleb()))
                self.uleb(), self.uleb()
        places = [("" if not d or not isinstance(d, int) or d >= len(directories) else directories[d], name)
                  for name, d in files]
        if program > end:
            raise ValueError(f"cut short at {program:#x}")
        self.at = program
        self._run(rows, places, step, base, line_range, opcode_base, operands, address_size)
        self.at = self.end = end
        return directory

    def _table(self, width: int) -> list[dict[int, str | int]]:
        """A version 5 table of directories or files: content type -> value."""
        columns = [(self.uleb(), self.uleb()) for _ in range(self.fixed(1))]
        count = self.uleb()
        if count > len(self.data):
            raise ValueError(f"a table of {count} names")
        out = []
        for _ in range(count):
            row: dict[int, str | int] = {_PATH: "??", _DIRECTORY: 0}
            row.update((kind, self.form(form, width)) for kind, form in columns)
            out.append(row)
        return out

    def _run(self, rows: dict[int, list[Row]], places: list[tuple[str, str]], step: int, base: int, line_range: int,
             opcode_base: int, operands: list[int], address_size: int) -> None:
        """Execute the line program.  Columns, statements, views and discriminators do not matter here."""
        data, end, at = self.data, self.end, self.at
        lifts = [base + n % line_range for n in range(256 - opcode_base)]     # of the special opcodes, which most are
        steps = [n // line_range * step for n in range(256 - opcode_base)]
        section = offset = 0
        file, line = 1, 1
        run: list[Row] = []
        while at < end:
            op = data[at]
            at += 1
            if op >= opcode_base:
                offset += steps[op - opcode_base]
                line += lifts[op - opcode_base]
            elif op == 5:                                      # the column
                while data[at] > 0x7F:
                    at += 1
                at += 1
                continue
            elif op != 1:
                self.at = at
                if op == 0:
                    following = self.uleb() + self.at
                    what = self.fixed(1) if following > self.at else 0
                    if what == 1:                              # the end of a run of code
                        while run and run[-1].offset == offset:     # what has no bytes
                            run.pop()
                        run.append(Row(offset, UNKNOWN, 0))
                        rows.setdefault(section, []).extend(run)
                        section = offset = 0
                        file, line = 1, 1
                        run = []
                    elif what == 2:
                        section, offset = self.address(address_size)
                    elif what == 3:
                        name, d = self.text(), self.uleb()
                        places.append(("", name) if not d else UNKNOWN)
                    at = following
                    continue
                if op == 2:
                    offset += self.uleb() * step
                elif op == 3:
                    line += self.sleb()
                elif op == 4:
                    file = self.uleb()
                elif op == 8:
                    offset += (255 - opcode_base) // line_range * step
                elif op == 9:
                    # The assembler writes it where it leaves the distance to the linker: a relocated difference.
                    if self.at in self.relocs:
                        raise ValueError("distances that only a linker knows")
                    offset += self.fixed(2)
                else:
                    for _ in range(operands[op]):
                        self.uleb()
                at = self.at
                continue
            place = places[file] if file < len(places) else UNKNOWN
            # Only the last row of an offset counts, and only the first one of a place.
            if run and run[-1][0] == offset:
                run.pop()
            if not run or run[-1][2] != line or run[-1][1] != place:
                run.append(Row(offset, place, max(line, 0)))
        if run:
            raise ValueError("a run of code without an end")


def _by_offset(row: Row) -> tuple[int, bool]:
    return row.offset, row.file != UNKNOWN


def _in_order(rows: list[Row]) -> list[Row]:
    """One row an offset (an end only where nothing begins)."""
    out: list[Row] = []
    for row in sorted(rows, key=_by_offset):     # stable
        if out and out[-1].offset == row.offset:
            out.pop()
        out.append(row)
    return out
