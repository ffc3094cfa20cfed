"""The end of the file, which is not loaded: symbol table, string tables, section headers.

A function's own symbol stays at its original code, where gdb sets breakpoints and perf counts; each stub gets a local symbol
NAME.psu.  Section headers are sorted by address, as strip expects, so section numbers change, and with them everything
that holds one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from psu_bin import elf
from psu_bin.elf import Section
from psu_bin.instrument.layout import Piece, rewritten_sections

if TYPE_CHECKING:
    from psu_bin.instrument.image import Writer

SUFFIX = b".psu\0"
SHF_INFO_LINK = 0x40


class _Header:
    """A section header on its way: from the input, changed, or new."""

    def __init__(self, s: Section | None, piece: Piece | None, name: bytes) -> None:
        self.old = s.index if s else 0
        self.name = name
        if s:
            self.type, self.flags, self.address, self.offset = s.type, s.flags, s.address, s.offset
            self.size, self.link, self.info, self.align, self.entsize = s.size, s.link, s.info, s.align, s.entsize
        if piece:
            self.type, self.flags = piece.type, s.flags if s else piece.flags
            self.address, self.offset, self.size = piece.address, piece.offset, piece.size
            self.align, self.entsize = piece.align, piece.entsize
            if not s:
                self.link = self.info = 0


def write(w: Writer) -> None:
    """Append the tail and point the ELF header at it."""
    if not w.binary.sections:
        w.out[40:48] = bytes(8)
        return
    headers = _headers(w)
    number = {h.old: i for i, h in enumerate(headers) if h.old}
    _fix_numbers(w, headers, number)
    _symbol_table(w, headers, number)
    _names_and_table(w, headers, number)


def _headers(w: Writer) -> list[_Header]:
    pieces = [p for g in w.groups for p in g.pieces]
    taken = {p.replaces: p for p in pieces if p.replaces}
    loaded, rest = [], []
    for s in w.binary.sections[1:]:
        h = _Header(s, taken.get(s.index), s.name.encode("utf-8", "surrogateescape"))
        moved = next((p for p in w.moved if p.moved and s.flags & elf.SHF_ALLOC and s.size and not h.old == p.replaces
                      and p.moved[0] <= s.address and s.end <= p.moved[0] + p.moved[1]), None)
        if moved:
            assert moved.moved
            h.offset = moved.offset + s.address - moved.moved[0]
            h.address = moved.address + s.address - moved.moved[0]
        (loaded if s.flags & elf.SHF_ALLOC else rest).append(h)
    for p in pieces:
        if not p.replaces and not p.moved:
            loaded.append(_Header(None, p, p.name.encode()))
    # Thread-local bss occupies no addresses: a stable sort keeps it where it was among sections of one address.
    loaded.sort(key=lambda h: h.address)
    null = _Header(w.binary.sections[0], None, b"")
    return [null, *loaded, *rest]


def _fix_numbers(w: Writer, headers: list[_Header], number: dict[int, int]) -> None:
    for h in headers:
        h.link = number.get(h.link, 0)
        if h.type in (elf.SHT_RELA, 9) and h.flags & SHF_INFO_LINK or h.type == elf.SHT_RELA and not h.flags & elf.SHF_ALLOC:
            h.info = number.get(h.info, 0)
    dynsym = next((h for h in headers if h.type == elf.SHT_DYNSYM), None)
    if dynsym:
        piece = next((p for p in w.moved if p.offset == dynsym.offset), None)
        raw = bytearray(piece.data if piece else w.out[dynsym.offset:dynsym.offset + dynsym.size])
        _renumber(w, raw, number)
        raw = _aimed(w, raw, headers)
        w.out[dynsym.offset:dynsym.offset + dynsym.size] = raw


def _renumber(w: Writer, raw: bytearray, number: dict[int, int]) -> None:
    table = np.frombuffer(raw, dtype=elf.SYMBOL_DTYPE)
    new = np.arange(0x10000, dtype="<u2")
    for old, now in number.items():
        new[old] = now
    table["st_shndx"][:] = new[table["st_shndx"]]


def _aimed(w: Writer, raw: bytearray, headers: list[_Header]) -> bytearray:
    """Symbols whose value became a stub's address belong to the stubs' section."""
    table = np.frombuffer(raw, dtype=elf.SYMBOL_DTYPE)
    stubs = next(i for i, h in enumerate(headers) if h.address == w.stubs.address and h.name == w.stubs.name.encode())
    inside = ((table["st_value"] >= w.stubs.address) & (table["st_value"] < w.stubs.address + w.stubs.size)
              & (table["st_shndx"] != 0))
    table["st_shndx"][inside] = stubs
    return raw


def _symbol_table(w: Writer, headers: list[_Header], number: dict[int, int]) -> None:
    b = w.binary
    old = next((s for s in b.sections if s.type == elf.SHT_SYMTAB), None)
    if old is None:
        return
    raw = bytearray(b.contents(old))
    _renumber(w, raw, number)
    strings = bytearray(b.contents(b.sections[old.link]))
    stubs = next(i for i, h in enumerate(headers) if h.name == w.stubs.name.encode())
    new = np.zeros(len(w.plan.functions), dtype=elf.SYMBOL_DTYPE)
    names = []
    for f in w.plan.functions:
        names.append(len(strings))
        strings += f.name.encode("utf-8", "surrogateescape") + SUFFIX
    new["st_name"] = names
    new["st_info"] = elf.STB_LOCAL << 4 | elf.STT_FUNC
    new["st_shndx"] = stubs
    new["st_value"] = w.stubs.address + w.stub_size * np.arange(len(new), dtype="<u8")
    new["st_size"] = w.stub_size
    local = old.info
    body = bytes(raw[:24 * local]) + new.tobytes() + bytes(raw[24 * local:])
    header, names_header = headers[number[old.index]], headers[number[old.link]]
    header.info = local + len(new)
    _append(w, header, body)
    _append(w, names_header, bytes(strings))
    # Kept relocations name symbols by number; the globals have moved up.
    for h in headers:
        if h.type == elf.SHT_RELA and h.link == number[old.index] and not h.flags & elf.SHF_ALLOC:
            rows = np.frombuffer(w.out[h.offset:h.offset + h.size // 24 * 24], dtype=elf.RELA_DTYPE).copy()
            rows["r_sym"][rows["r_sym"] >= local] += len(new)
            w.out[h.offset:h.offset + rows.nbytes] = rows.tobytes()


def _append(w: Writer, h: _Header, body: bytes) -> None:
    w.out += b"\0" * (-len(w.out) % max(1, h.align))
    h.offset, h.size = len(w.out), len(body)
    w.out += body


def _names_and_table(w: Writer, headers: list[_Header], number: dict[int, int]) -> None:
    names, at = bytearray(b"\0"), {b"": 0}
    for h in headers:
        if h.name not in at:
            at[h.name] = len(names)
            names += h.name + b"\0"
    shstrndx = number[w.binary.shstrndx]
    if w.binary.shstrndx in rewritten_sections(w.binary):
        _append(w, headers[shstrndx], bytes(names))
    w.out += b"\0" * (-len(w.out) % 8)
    table = len(w.out)
    for h in headers:
        w.out += struct.pack("<IIQQQQIIQQ", at[h.name], h.type, h.flags, h.address, h.offset, h.size, h.link, h.info,
                             h.align, h.entsize)
    struct.pack_into("<Q", w.out, 40, table)
    struct.pack_into("<HH", w.out, 60, len(headers), shstrndx)
