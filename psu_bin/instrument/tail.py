"""The end of the file, which is not loaded: debug sections, symbol table, section headers.

A function's own symbol stays at its original code, where gdb sets breakpoints and perf counts; each stub gets a local
symbol NAME.psu, behind the other local ones.  Loaded sections are listed by address, as strip expects, so sections get
other numbers; with them everything that holds one, the dynamic symbols too.  A file without symbol table gets none.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from psu_bin import descriptor, elf
from psu_bin.elf import Section
from psu_bin.errors import PsuError
from psu_bin.instrument import edits
from psu_bin.instrument.layout import SHT_DYNAMIC, Piece
from psu_bin.instrument.relocations import Form

if TYPE_CHECKING:
    from psu_bin.instrument.image import Image

SHT_REL = 9
SHF_INFO_LINK = 0x40
HEADER_DTYPE = np.dtype([("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"),
                         ("size", "<u8"), ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entsize", "<u8")])
FILE_SYMBOL = "psu-bin"
STUB_SUFFIX, COPY_SUFFIX = ".psu", ".psu.entry"
ALL_STUBS, ALL_COPIES, RESOLVER = "psu_stubs", "psu_entries", "psu_relocate"


class Tail:
    """The section headers of the output under construction, in their new order, and the contents that go with them."""

    def __init__(self, m: Image) -> None:
        self.m = m
        b = m.binary
        self.old = np.frombuffer(b.data, dtype=HEADER_DTYPE, count=b.shnum, offset=b.shoff)
        self.symtab = next((s for s in b.sections if s.type == elf.SHT_SYMTAB), None)
        self.contents = {s.index: b.contents(s) for s in b.sections if not s.flags & elf.SHF_ALLOC and s.type}
        self.names = bytearray(b.contents(b.sections[b.shstrndx])) if b.shstrndx < b.shnum else bytearray(1)
        # (header, index in the input or -1)
        self.rows: list[tuple[np.void, int]] = []
        self.number = np.arange(0x10000, dtype=np.uint16)      # section number in the input -> in the output

    def name(self, text: str) -> int:
        """The offset of `text` in the section names."""
        at = self.names.find(text.encode() + b"\0")
        if at < 0:
            at = len(self.names)
            self.names += text.encode() + b"\0"
        return at

    def index(self, name: str) -> int:
        """The new number of the (new) section `name`."""
        at = self.name(name)
        return next(i for i, (row, _) in enumerate(self.rows) if row["name"] == at)


def write(m: Image) -> None:
    """Append the tail to the output and point the ELF header at it."""
    b = m.binary
    if not b.shnum:
        struct.pack_into("<Q", m.out, 40, 0)
        return
    if any(s.type == elf.SHT_SYMTAB_SHNDX for s in b.sections) or b.shnum + 8 >= elf.SHN_LORESERVE:
        raise PsuError(b.path, f"has too many sections: {b.shnum}")
    t = Tail(m)
    _headers(t)
    _renumber(t)
    _loaded_symbols(t)
    _symbols(t)
    _append(t)
    overlay = max([b.shoff + b.shnum * b.shentsize, b.phoff + b.phnum * b.phentsize]
                  + [p.offset + p.filesz for p in b.segments]
                  + [s.offset + s.size for s in b.sections if s.type != elf.SHT_NOBITS])
    m.out += b.data[overlay:]     # what others appended to the file stays at its end


def _headers(t: Tail) -> None:
    """All headers in their new order, loaded ones by address."""
    m = t.m
    placed = {s.index: p for p in m.pieces for s in p.covers}
    loaded: list[tuple[np.void, int]] = []
    rest: list[tuple[np.void, int]] = []
    extra: list[tuple[np.void, int]] = []
    for s in m.binary.sections:
        row = t.old[s.index].copy()
        if s.index in placed:
            _place(m, row, s, placed[s.index])
            extra.append((row, s.index))
        elif s.index and s.flags & elf.SHF_ALLOC:
            if m.more_rows and m.more_rows.section.index == s.index:
                row["offset"] -= s.address - m.more_rows.start
                row["address"], row["size"] = m.more_rows.start, m.more_rows.end - m.more_rows.start
            loaded.append((row, s.index))
        else:
            rest.append((row, s.index))
    for p in m.pieces:
        if not p.covers:
            extra.append((_new(t, p), -1))
    # What did not move keeps its order; the rest goes where its address says.
    for row, old in sorted(extra, key=lambda x: int(x[0]["address"])):
        behind = [i for i, (x, _) in enumerate(loaded) if x["address"] <= row["address"]]
        loaded.insert(behind[-1] + 1 if behind else 0, (row, old))
    t.rows = [rest[0], *loaded, *rest[1:]]


def _place(m: Image, row: np.void, s: Section, p: Piece) -> None:
    address, size = p.header(s)
    row["address"], row["size"], row["offset"] = address, size, m.offset(address)


def _new(t: Tail, p: Piece) -> np.void:
    m = t.m
    row: np.void = np.zeros(1, dtype=HEADER_DTYPE)[0]
    link = {elf.SHT_RELA: elf.SHT_DYNSYM, SHT_DYNAMIC: elf.SHT_STRTAB}.get(p.type)
    if link:
        row["link"] = next((s.index for s in m.binary.sections if s.type == link and s.flags & elf.SHF_ALLOC), 0)
    row["name"], row["type"], row["flags"], row["align"] = t.name(p.name), p.type, p.flags, p.align
    row["address"], row["offset"], row["size"], row["entsize"] = p.address, m.offset(p.address), p.size, p.entsize
    return row


def _renumber(t: Tail) -> None:
    """Headers that name other sections."""
    for new, (_, old) in enumerate(t.rows):
        if old >= 0:
            t.number[old] = new
    for row, _ in t.rows:
        if row["link"] < t.m.binary.shnum:
            row["link"] = t.number[row["link"]]
        if (row["flags"] & SHF_INFO_LINK or row["type"] in (elf.SHT_RELA, SHT_REL)) and row["info"] < t.m.binary.shnum:
            row["info"] = t.number[row["info"]]


def _loaded_symbols(t: Tail) -> None:
    """Dynamic symbols: section numbers, and the stubs' section for those that lead to stubs now."""
    m = t.m
    s = next((s for s in m.binary.sections if s.type == elf.SHT_DYNSYM), None)
    if s is None:
        return
    at = m.offset(m.moved(s.address))
    size = next((p.header(s)[1] for p in m.tables if s in p.covers), s.size)
    table = np.frombuffer(m.out, dtype=elf.SYMBOL_DTYPE, count=size // edits.SYMBOL_SIZE, offset=at)
    table["st_shndx"] = t.number[table["st_shndx"]]
    stubs = m.stubs.address, m.stubs.address + m.stubs.size
    inside = (table["st_value"] >= stubs[0]) & (table["st_value"] < stubs[1]) & (table["st_shndx"] != elf.SHN_UNDEF)
    table["st_shndx"][inside] = t.index(descriptor.SECTION_STUBS)


def _symbols(t: Tail) -> None:
    """The symbol table with the stubs' symbols, and whatever counts symbols."""
    m, s = t.m, t.symtab
    if s is None or not 0 < s.link < m.binary.shnum:
        return
    table = np.frombuffer(t.contents[s.index], dtype=elf.SYMBOL_DTYPE).copy()
    _move(t, table)
    table["st_shndx"] = t.number[table["st_shndx"]]
    strings = t.names if s.link == m.binary.shstrndx else bytearray(t.contents[s.link])
    new = _stub_symbols(t, strings)
    local = min(s.info, len(table))
    t.contents[s.index] = np.concatenate([table[:local], new, table[local:]]).tobytes()
    if strings is not t.names:
        t.contents[s.link] = bytes(strings)
    t.rows[int(t.number[s.index])][0]["info"] = local + len(new)
    for r in m.binary.sections:          # kept relocations name symbols by number
        if r.type == elf.SHT_RELA and r.link == s.index and not r.flags & elf.SHF_ALLOC:
            rows = m.binary.table(r, elf.RELA_DTYPE).copy()
            rows["r_sym"][rows["r_sym"] >= local] += len(new)
            t.contents[r.index] = rows.tobytes()


def _move(t: Tail, table: np.ndarray) -> None:
    """Symbols of sections that moved."""
    m = t.m
    for p in m.pieces:
        for s in p.covers:
            mine = (table["st_shndx"] == s.index) & ((table["st_info"] & 15) != elf.STT_TLS)
            table["st_value"][mine] = table["st_value"][mine] + (p.header(s)[0] - s.address) % (1 << 64)
    if m.more_rows:
        mine = (table["st_shndx"] == m.more_rows.section.index) & ((table["st_info"] & 15) == elf.STT_SECTION)
        table["st_value"][mine] = m.more_rows.start


def _stub_symbols(t: Tail, strings: bytearray) -> np.ndarray:
    """Symbols: one for all stubs, one for all moved entries; if wanted one for each (more than 40 bytes)."""
    m, plan = t.m, t.m.plan
    stubs = m.stubs.address + m.stub_size * np.arange(len(plan.functions))
    sizes = [d.size + m.arch.back(plan.far).size for d in plan.detours]
    # (name, address, size)
    symbols = [(FILE_SYMBOL, 0, 0)]
    if m.stub_symbols:
        symbols += [(f.name + STUB_SUFFIX, at, m.stub_size) for f, at in zip(plan.functions, stubs.tolist())]
        symbols += [(plan.functions[d.function].name + COPY_SUFFIX, at, n)
                    for d, at, n in zip(plan.detours, m.copies, sizes)]
    else:
        symbols.append((ALL_STUBS, m.stubs.address, m.stub_size * len(plan.functions)))
        if plan.detours:
            end = max(at + n for at, n in zip(m.copies, sizes))
            symbols.append((ALL_COPIES, min(m.copies), end - min(m.copies)))
    if m.form is Form.RESOLVER:
        symbols.append((RESOLVER, m.resolver, m.arch.resolver_size))
    raw = [name.encode("utf-8", "surrogateescape") + b"\0" for name, _, _ in symbols]
    new = np.zeros(len(symbols), dtype=elf.SYMBOL_DTYPE)
    new["st_name"] = len(strings) + np.cumsum([0, *map(len, raw[:-1])])
    strings += b"".join(raw)
    new["st_value"], new["st_size"] = [at for _, at, _ in symbols], [n for _, _, n in symbols]
    new["st_info"] = elf.STB_LOCAL << 4 | elf.STT_FUNC
    new["st_shndx"] = t.index(descriptor.SECTION_STUBS)
    new["st_info"][0], new["st_shndx"][0] = elf.STB_LOCAL << 4 | elf.STT_FILE, elf.SHN_ABS
    return new


def _append(t: Tail) -> None:
    """Contents of sections that are not loaded, then the headers."""
    m, b = t.m, t.m.binary
    t.contents[b.shstrndx] = bytes(t.names)
    rows = {old: row for row, old in t.rows if old >= 0}
    for s in sorted((s for s in b.sections if s.index in t.contents), key=lambda s: (s.offset, s.index)):
        row, body = rows[s.index], t.contents[s.index]
        if s.type == elf.SHT_NOBITS:
            row["offset"] = len(m.out)
            continue
        m.out += bytes(-len(m.out) % max(1, s.align)) + body
        row["offset"], row["size"] = len(m.out) - len(body), len(body)
    m.out += bytes(-len(m.out) % 8)
    struct.pack_into("<Q", m.out, 40, len(m.out))
    struct.pack_into("<HHH", m.out, 58, HEADER_DTYPE.itemsize, len(t.rows), int(t.number[b.shstrndx]))
    m.out += b"".join(row.tobytes() for row, _ in t.rows)
