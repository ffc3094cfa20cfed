"""Writing the instrumented file: Binary + Plan -> bytes.

The driver is build(): a list of steps over one Writer.  Everything that must not change is copied from the input as it is;
each field that changes is checked against what the plan says it holds.

The order matters in one place: layout first (sizes only), then contents, because stubs, slots and tables refer to each
other's addresses.
"""

from __future__ import annotations

import struct

import numpy as np

from psu_bin import descriptor, elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import dynamic, ehframe, tail
from psu_bin.instrument.layout import Group, Piece, end_of_kept, end_of_memory, room_for_headers, section_of
from psu_bin.instrument.plan_types import Plan, Reroute

GNU_PROPERTY_X86_FEATURE_1_AND, FEATURE_1_IBT = 0xC0000002, 1


class Writer:
    """The state of one run: the input, the plan, the pieces, and the output under construction."""

    # pieces made in _reserve and dynamic.reserve
    strings: Piece
    relocations: Piece | None
    dynamic_piece: Piece | None
    frames: Piece
    frame_header: Piece | None
    descriptor: Piece
    stubs: Piece
    copies: Piece
    slots: Piece
    relr: bool

    def __init__(self, binary: Binary, arch: Arch, plan: Plan, symbols: tuple[descriptor.Symbol, ...],
                 files: tuple[str, ...]) -> None:
        self.binary = binary
        self.symbols = symbols
        self.files = files
        self.arch = arch
        self.plan = plan
        self.pic = binary.type == elf.ET_DYN
        self.flags = (descriptor.MODULE_PIC if self.pic else 0) | (descriptor.MODULE_IBT if _wants_ibt(binary) else 0)
        self.stub_size = arch.stub_size(self.flags)
        self.out = bytearray()
        self.segments, self.moved_ranges = room_for_headers(binary)
        self.read_only, self.code, self.data = Group(elf.PF_R), Group(elf.PF_R | elf.PF_X), Group(elf.PF_R | elf.PF_W)
        if self.segments == 2:
            self.read_only = self.code
        self.groups = [g for i, g in enumerate((self.read_only, self.code, self.data)) if i or g is not self.code]
        self.moved: list[Piece] = []

    # ---- addresses -----------------------------------------------------------------------------------------------

    def stub(self, index: int) -> int:
        return self.stubs.address + index * self.stub_size

    def slot(self, index: int) -> int:
        return self.slots.address + index * 8

    def to_offset(self, address: int) -> int:
        """Offset in the output of a file address, in moved ranges and in place."""
        for p in self.moved:
            assert p.moved
            if p.moved[0] <= address < p.moved[0] + p.moved[1]:
                return p.offset + address - p.moved[0]
        return self.binary.offset_of(address)


def build(binary: Binary, arch: Arch, plan: Plan, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...],
          ) -> bytes:
    """The instrumented file's bytes.  Raises PsuError when the input cannot be extended."""
    w = Writer(binary, arch, plan, symbols, files)
    _reserve(w)                  # sizes of all pieces
    _place(w)                    # addresses of all pieces
    original = _copies(w)        # moved entries; what each slot holds at first
    _descriptor(w, original)
    _stubs_and_slots(w, original)
    _unwind(w)
    w.out += binary.data[:end_of_kept(binary)]
    dynamic.fill(w, original)    # strings, relocations, dynamic section
    _edits(w)
    _write_groups(w)
    tail.write(w)                # symbol table, section headers
    _headers(w)
    return bytes(w.out)


def _wants_ibt(binary: Binary) -> bool:
    p = binary.segment(elf.PT_GNU_PROPERTY)
    if p is None:
        return False
    body = binary.data[p.offset:p.offset + p.filesz]
    at = 16
    while at + 8 <= len(body):
        kind, size = struct.unpack_from("<II", body, at)
        if kind == GNU_PROPERTY_X86_FEATURE_1_AND and size == 4:
            return bool(struct.unpack_from("<I", body, at + 8)[0] & FEATURE_1_IBT)
        at += 8 + -(-size // 8) * 8
    return False


def _reserve(w: Writer) -> None:
    alloc = elf.SHF_ALLOC
    count = len(w.plan.functions)
    for address, size in w.moved_ranges:
        s = section_of(w.binary, address, size)
        p = Piece(s.name if s else ".psu.moved", s.type if s else elf.SHT_NOTE, s.flags if s else alloc,
                  max(8, s.align if s else 8), w.binary.data[w.binary.offset_of(address):][:size], size,
                  s.entsize if s else 0, replaces=s.index if s else 0, moved=(address, size))
        w.read_only.pieces.append(p)
        w.moved.append(p)
    dynamic.reserve(w)
    copies = len(w.plan.detours)
    w.frames = Piece(".psu.eh_frame", elf.SHT_PROGBITS, alloc, 8)
    ranges = [(0, 0, b"")] + [(0, 0, d.cfi) for d in w.plan.detours]
    w.frames.size = len(ehframe.frames(0, w.arch.stub_cfi, ranges)[0])
    w.read_only.pieces.append(w.frames)
    w.frame_header = None
    size = ehframe.header_size(w.binary, 1 + copies)
    if size:
        old = w.binary.section(".eh_frame_hdr")
        assert old is not None
        w.frame_header = Piece(".eh_frame_hdr", elf.SHT_PROGBITS, alloc, 4, size=size, replaces=old.index)
        w.read_only.pieces.append(w.frame_header)
    w.descriptor = Piece(descriptor.SECTION_DESCRIPTOR, elf.SHT_PROGBITS, alloc, 8)
    w.stubs = Piece(descriptor.SECTION_STUBS, elf.SHT_PROGBITS, alloc | elf.SHF_EXECINSTR, 16, size=count * w.stub_size)
    w.copies = Piece(".psu.copies", elf.SHT_PROGBITS, alloc | elf.SHF_EXECINSTR, 16,
                     size=sum(_copy_size(w, len(d.copy)) for d in w.plan.detours))
    w.code.pieces += [w.stubs] + ([w.copies] if copies else [])
    w.slots = Piece(descriptor.SECTION_SLOTS, elf.SHT_PROGBITS, alloc | elf.SHF_WRITE, 8, size=count * 8)
    w.data.pieces.insert(0, w.slots)


def _copy_size(w: Writer, length: int) -> int:
    return -(-(length + w.arch.jump_size) // 16) * 16


def _place(w: Writer) -> None:
    """Addresses for everything.  The descriptor is compressed, so only a bound of its size is known: it comes last."""
    page = w.arch.page_size
    address = -(-end_of_memory(w.binary) // page) * page
    offset = -(-end_of_kept(w.binary) // page) * page
    w.descriptor.size = _descriptor_bound(w)
    w.read_only.pieces.append(w.descriptor)
    for g in w.groups:
        g.place(address, offset, page)
        address = -(-(g.address + g.size) // page) * page
        offset = -(-(g.offset + g.size) // page) * page


def _descriptor_bound(w: Writer) -> int:
    """Bytes that the packed descriptor can need: only the addresses of moved entries are not final yet."""
    size = len(descriptor.encode(_describe(w, [f.address for f in w.plan.functions])))
    return size + 64 + 32 * len(w.plan.detours)


def _copies(w: Writer) -> list[int]:
    """Fill in the moved entries; returns what each slot holds at first."""
    original = [f.address for f in w.plan.functions]
    at = w.copies.address
    body = bytearray()
    for d in w.plan.detours:
        code = bytearray(d.copy)
        for field, target in d.fixups:
            distance = target - (at + field + 4)
            if not -(1 << 31) <= distance < 1 << 31:
                raise PsuError(w.binary.path, "too large: a moved entry is out of reach of what it refers to")
            code[field:field + 4] = struct.pack("<i", distance)
        back = w.plan.functions[d.function].address + d.skip + d.length
        code += w.arch.jump(at + len(code), back)
        code = code.ljust(_copy_size(w, len(d.copy)), w.arch.padding)
        original[d.function] = at
        at += len(code)
        body += code
    w.copies.data = bytes(body)
    return original


def _descriptor(w: Writer, original: list[int]) -> None:
    w.descriptor.data = descriptor.encode(_describe(w, original))


def _describe(w: Writer, original: list[int]) -> descriptor.Descriptor:
    moved = {d.function for d in w.plan.detours}
    functions = tuple(descriptor.Function(f.name, f.address, original[i], f.size,
                                          f.flags | (descriptor.DETOURED if i in moved else 0), f.preserve, f.callers)
                      for i, f in enumerate(w.plan.functions))
    return descriptor.Descriptor(w.arch.machine, w.flags, w.stubs.address, w.stub_size, w.slots.address,
                                 w.binary.build_id, functions, w.symbols, w.files)


def _stubs_and_slots(w: Writer, original: list[int]) -> None:
    w.stubs.data = b"".join(w.arch.stub(w.stub(i), w.slot(i), w.flags) for i in range(len(w.plan.functions)))
    w.slots.data = np.array(original, dtype="<u8").tobytes()


def _unwind(w: Writer) -> None:
    ranges = [(w.stubs.address, w.stubs.size, b"")]
    at = w.copies.address
    for d in w.plan.detours:
        size = _copy_size(w, len(d.copy))
        ranges.append((at, size, d.cfi))
        at += size
    w.frames.data, fdes = ehframe.frames(w.frames.address, w.arch.stub_cfi, ranges)
    if w.frame_header:
        new = [(start, fde) for (start, _, _), fde in zip(ranges, fdes)]
        w.frame_header.data = ehframe.header(w.binary, w.frame_header.address, new)


def _edits(w: Writer) -> None:
    for e in w.plan.edits:
        expected, target = w.plan.functions[e.function].address, w.stub(e.function)
        if e.kind in (Reroute.RELA_ADDEND, Reroute.RELR_WORD):
            if e.kind is Reroute.RELR_WORD:
                _put(w, w.to_offset(e.at), 8, expected, target, e.at)
            continue                   # addends: dynamic.fill
        if e.kind is Reroute.DYNSYM:
            table = w.binary.dyn(elf.DT_SYMTAB)
            assert table is not None
            at = w.to_offset(table + 24 * e.at + 8)
            _put(w, at, 8, expected, target, e.at)
            _store(w, at + 8, struct.pack("<Q", w.stub_size))
            continue
        at = w.to_offset(e.at)
        size = 8 if e.kind is Reroute.ABS64 else 4
        old = int.from_bytes(w.out[at:at + size], "little")
        w.out[at:at + size] = w.arch.reroute(e.kind, e.at, target, old, expected)
    for d in w.plan.detours:
        start = w.plan.functions[d.function].address + d.skip
        at = w.to_offset(start)
        if w.out[at:at + d.length] != w.binary.data[at:at + d.length]:
            raise PsuError(w.binary.path, f"internal defect: a reference inside the detoured entry at {start:#x}")
        w.out[at:at + d.length] = w.arch.jump(start, w.stub(d.function)).ljust(d.length, w.arch.padding)


def _put(w: Writer, offset: int, size: int, expected: int, new: int, where: int) -> None:
    body = _load(w, offset, size)
    old = int.from_bytes(body, "little")
    if old != expected:
        raise PsuError(w.binary.path, f"internal defect: {where:#x} holds {old:#x}, not {expected:#x}")
    _store(w, offset, new.to_bytes(size, "little"))


def _load(w: Writer, offset: int, size: int) -> bytes:
    for p in w.moved:
        if p.offset <= offset < p.offset + p.size:
            return p.data[offset - p.offset:offset - p.offset + size]
    return bytes(w.out[offset:offset + size])


def _store(w: Writer, offset: int, data: bytes) -> None:
    for p in w.moved:
        if p.offset <= offset < p.offset + p.size:
            body = bytearray(p.data)
            body[offset - p.offset:offset - p.offset + len(data)] = data
            p.data = bytes(body)
            return
    w.out[offset:offset + len(data)] = data


def _write_groups(w: Writer) -> None:
    for g in w.groups:
        for p in g.pieces:
            if len(p.data) > p.size:
                raise PsuError(w.binary.path, f"internal defect: {p.name} needs {len(p.data)} bytes, has {p.size}")
            w.out += b"\0" * (p.offset - len(w.out)) + p.data.ljust(p.size, b"\0")


def _headers(w: Writer) -> None:
    """Program headers and the ELF header's counts."""
    moved = {(p.moved[0], p.moved[1]): p for p in w.moved if p.moved}
    rows = []
    for s in w.binary.segments:
        address, offset, filesz, memsz = s.address, s.offset, s.filesz, s.memsz
        home = next(((a, p) for (a, n), p in moved.items() if s.type not in (elf.PT_LOAD, elf.PT_PHDR) and s.filesz
                     and a <= s.address and s.address + s.filesz <= a + n), None)
        if home:
            address = home[1].address + s.address - home[0]
            offset = home[1].offset + s.address - home[0]
        elif s.type == elf.PT_PHDR:
            filesz = memsz = 56 * (w.binary.phnum + len(w.groups))
        elif s.type == elf.PT_GNU_EH_FRAME and w.frame_header:
            address, offset = w.frame_header.address, w.frame_header.offset
            filesz = memsz = w.frame_header.size
        elif s.type == elf.PT_DYNAMIC and w.dynamic_piece:
            address, offset = w.dynamic_piece.address, w.dynamic_piece.offset
            filesz = memsz = w.dynamic_piece.size
        rows.append([s.type, s.flags, offset, address, address, filesz, memsz, s.align])
    last = max(i for i, r in enumerate(rows) if r[0] == elf.PT_LOAD)
    new = [[elf.PT_LOAD, g.flags, g.offset, g.address, g.address, g.size, g.size, w.arch.page_size] for g in w.groups]
    rows[last + 1:last + 1] = new
    w.out[64:64 + 56 * len(rows)] = b"".join(struct.pack("<IIQQQQQQ", *r) for r in rows)
    struct.pack_into("<H", w.out, 56, len(rows))

