"""What debuggers get to read about an injected object: a small ELF file in the object's own memory.

GDB, LLDB and others look for such files in a list that starts at `__jit_debug_descriptor` (GDB manual, "JIT Compilation
Interface"; shim/debugger.c).  It is in memory and not on disk because it has to be in a core dump, too, long after the
process and what psu-bin keeps of it are gone.  It is not the patch object because debug sections are many times the
size of the code: it names functions and source lines, no variables and types.

    ELF header, section headers     .text has only an address and a size: the code is there already
    symbols, strings                the strings serve as .debug_str, too
    .debug_info, .debug_abbrev      one unit, each C function with its range
    .debug_line                     address, file, line
    .eh_frame                       the one that unwinders in the process use, which lies behind: the file ends with it

Most of it fits in the page that the code has begun.  Its size must be known before its address: addresses are 8 bytes
wherever they are, everything else is a distance.

Specification: gABI, chapter 4; DWARF 4, 3.1, 3.3, 6.2, 7.5.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from psu_bin import elf
from psu_bin.attach import lines
from psu_bin.attach.patch import PatchObject
from psu_bin.errors import PsuError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_SECTIONS = ("", ".text", ".eh_frame", ".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".symtab",
             ".strtab")
_TEXT, _FRAMES, _INFO, _ABBREV, _LINE, _STR, _SYMTAB, _STRTAB = range(1, 9)

_LANG_C99 = 0x0C
# DW_TAG_compile_unit with children: name, comp_dir, language, low_pc, high_pc, stmt_list; DW_TAG_subprogram: name,
# external, low_pc, high_pc.  Forms: string, strp, data2, addr, data8 (a distance), sec_offset, flag_present, data4.
_ABBREVIATIONS = bytes((
    1, 0x11, 1, 0x03, 0x08, 0x1B, 0x08, 0x13, 0x05, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0,
    2, 0x2E, 0, 0x03, 0x0E, 0x3F, 0x19, 0x11, 0x01, 0x12, 0x06, 0, 0,
    0))

# The special opcodes of the line program: most steps are of some bytes and lines.
_LINE_BASE, _LINE_RANGE, _OPCODE_BASE = -3, 12, 13
_OPERANDS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))
_SET_FILE, _ADVANCE_LINE, _ADVANCE_PC, _COPY = 4, 3, 2, 1


def make(patch: PatchObject, sections: list[int], warnings: list[str]) -> Symfile:
    """The file for `patch`, whose placed code is `sections`; without lines, and with a warning, where unreadable."""
    try:
        known = lines.read(patch)
    except PsuError as e:
        warnings.append(f"{e.where}: {e.what}; debuggers will see the names of its functions only")
        known = lines.Lines({}, "")
    return Symfile(patch, sections, known)


class Symfile:
    """The file for one patch object.  sections: those of its code that are placed."""

    def __init__(self, patch: PatchObject, sections: list[int], known: lines.Lines) -> None:
        self.patch = patch
        self.functions = [f for s in sections for f in patch.functions_in(s)]
        self.known = known
        self.sections = sections
        # All that has an address has a fixed size, so a file for address 0 has the size of the real one.
        self.size = len(self.build(dict.fromkeys(sections, 0), 0, 0, 0, 0))

    def build(self, code: Mapping[int, int], start: int, end: int, at: int, frames: int) -> bytes:
        """The file for `at`, without the .eh_frame, whose `frames` bytes follow it in memory.

        code: addresses of the sections; start, end: bounds of all code."""
        names = bytearray(b"\0")

        def name(text: str) -> int:
            at = len(names)
            names.extend(_text(text))
            return at

        called = [name(f.name) for f in self.functions]
        symbols = bytes(_SYMBOL.size) + b"".join(
            _SYMBOL.pack(n, elf.STB_GLOBAL << 4 | elf.STT_FUNC, 0, _TEXT, code[f.section] + f.start, f.end - f.start)
            for f, n in zip(self.functions, called))
        titles = [0] + [name(n) for n in _SECTIONS[1:]]
        line = self._lines(code)
        bodies = {_SYMTAB: symbols, _STRTAB: bytes(names)}
        if line:
            bodies |= {_INFO: self._info(code, called, start, end), _ABBREV: _ABBREVIATIONS, _LINE: line}
        body = bytearray()
        first = _HEADER.size + len(_SECTIONS) * _SECTION.size
        places = {}
        for n in (_SYMTAB, _STRTAB, _INFO, _ABBREV, _LINE):
            places[n] = first + len(body)
            body += bodies.get(n, b"")
        body += bytes(-len(body) % 8)
        size = first + len(body)
        bodies[_STR], places[_STR] = bodies[_STRTAB], places[_STRTAB]
        headers = [(0,) * 10,
                   (titles[_TEXT], elf.SHT_NOBITS, elf.SHF_ALLOC | elf.SHF_EXECINSTR, start, 0, end - start, 0, 0, 16,
                    0),
                   (titles[_FRAMES], elf.SHT_PROGBITS, elf.SHF_ALLOC, at + size, size, frames, 0, 0, 8, 0)]
        headers += [(titles[n], elf.SHT_PROGBITS, 0, 0, places[n], len(bodies.get(n, b"")), 0, 0, 1, 0)
                    for n in (_INFO, _ABBREV, _LINE, _STR)]
        headers += [(titles[_SYMTAB], elf.SHT_SYMTAB, 0, 0, places[_SYMTAB], len(symbols), _STRTAB, 1, 8, _SYMBOL.size),
                    (titles[_STRTAB], elf.SHT_STRTAB, 0, 0, places[_STRTAB], len(names), 0, 0, 1, 0)]
        head = _HEADER.pack(_IDENT, elf.ET_EXEC, self.patch.machine, 1, 0, 0, _HEADER.size, 0, _HEADER.size, 0, 0,
                            _SECTION.size, len(_SECTIONS), _STRTAB)
        return head + b"".join(_SECTION.pack(*h) for h in headers) + bytes(body)

    def _info(self, code: Mapping[int, int], called: list[int], start: int, end: int) -> bytes:
        """.debug_info.  called: offsets of the functions' names."""
        out = bytearray(struct.pack("<HIB", 4, 0, 8))
        main = next((r.file for s in self.sections for r in self.known.rows.get(s, ())), lines.UNKNOWN)
        out += b"\1" + _text(self.patch.file or main[1]) + _text(self.known.directory)
        out += struct.pack("<HQQI", _LANG_C99, start, end - start, 0)
        for f, name in zip(self.functions, called):
            if not f.name.startswith("_Z"):      # those are named by their symbol, which debuggers demangle
                out += b"\2" + struct.pack("<IQI", name, code[f.section] + f.start, f.end - f.start)
        out += b"\0"
        return struct.pack("<I", len(out)) + bytes(out)

    def _lines(self, code: Mapping[int, int]) -> bytes:
        """.debug_line; b"" when the patch has no line numbers."""
        files: dict[tuple[str, str], int] = {}
        program = bytearray()
        for s in self.sections:
            rows = self.known.rows.get(s)
            if rows:
                program += _program(rows, code[s], files)
        if not program:
            return b""
        directories = {d: n for n, d in enumerate(dict.fromkeys(d for d, _ in files if d), 1)}
        tables = b"".join(map(_text, directories)) + b"\0"
        tables += b"".join(_text(n) + _uleb(directories.get(d, 0)) + b"\0\0" for d, n in files) + b"\0"
        head = struct.pack("<BBBbBB", 1, 1, 1, _LINE_BASE, _LINE_RANGE, _OPCODE_BASE) + _OPERANDS + tables
        unit = struct.pack("<HI", 4, len(head)) + head + bytes(program)
        return struct.pack("<I", len(unit)) + unit


def _program(rows: list[lines.Row], base: int, files: dict[tuple[str, str], int]) -> bytes:
    """The line program of one section."""
    out = bytearray()
    at, file, line, running = 0, 1, 1, False
    for row in rows:
        if not running:
            if row.file == lines.UNKNOWN:
                continue
            out += b"\0\x09\x02" + struct.pack("<Q", base + row.offset)
            at, file, line, running = row.offset, 1, 1, True
        if row.file == lines.UNKNOWN and not row.line:
            out += bytes((_ADVANCE_PC,)) + _uleb(row.offset - at) + b"\0\x01\x01"
            running = False
            continue
        number = files.setdefault(row.file, len(files) + 1)
        if number != file:
            out += bytes((_SET_FILE,)) + _uleb(number)
            file = number
        step, lift = row.offset - at, row.line - line
        if not _LINE_BASE <= lift < _LINE_BASE + _LINE_RANGE:
            out += bytes((_ADVANCE_LINE,)) + _sleb(lift)
            lift = 0
        special = lift - _LINE_BASE + _LINE_RANGE * step + _OPCODE_BASE
        if special > 255:
            out += bytes((_ADVANCE_PC,)) + _uleb(step)
            special = lift - _LINE_BASE + _OPCODE_BASE
        out.append(special)
        at, line = row.offset, row.line
    return bytes(out) if not running else bytes(out) + b"\0\x01\x01"


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _uleb(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def _sleb(value: int) -> bytes:
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value & 0x7F,))
