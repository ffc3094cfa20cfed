"""Writing the instrumented file: Binary + Plan -> bytes.

build() is the list of steps.  All addresses are fixed first, because stubs, slots and tables refer to each other; then
the input is copied and the new pieces are put in; then what must change changes, each field checked against what the
plan says it holds.  Everything else stays byte for byte as it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from psu_bin import descriptor, elf, fde
from psu_bin.arch import Arch
from psu_bin.elf import Binary, Section
from psu_bin.errors import PsuError
from psu_bin.instrument import cut, dynamic, edits, ehframe, exports, layout, marks, relocations, tail
from psu_bin.instrument.layout import Group, Piece
from psu_bin.instrument.plan_types import Plan
from psu_bin.instrument.relocations import Form

PHDR = struct.Struct("<IIQQQQQQ")
MIN_PART = 512                   # of the descriptor, which may be in two: a section header is 64 bytes


class Image:
    """The output under construction."""

    def __init__(self, binary: Binary, arch: Arch, plan: Plan, stub_symbols: bool) -> None:
        self.binary = binary
        self.arch = arch
        self.plan = plan
        self.stub_symbols = stub_symbols    # a name for each stub, not one for all
        self.relocated = binary.type == elf.ET_DYN
        self.flags = ((descriptor.MODULE_PIC if self.relocated else 0)
                      | (descriptor.MODULE_IBT if marks.wanted(binary, arch) else 0)
                      | (descriptor.MODULE_MOVES_STACK if plan.moves_stack else 0)
                      | (descriptor.MODULE_FAR if plan.far else 0))
        self.stub_size = arch.stub_size(self.flags)
        self.form = relocations.form(binary, arch)
        self.request = dynamic.request(binary, self.form is Form.ROWS)
        self.room = layout.room_for_headers(binary, arch)
        alloc = elf.SHF_ALLOC
        count = len(plan.functions)
        # New data and code: their sizes are known.
        self.slots = Piece(descriptor.SECTION_SLOTS, elf.SHT_PROGBITS, alloc | elf.SHF_WRITE, 8, 8 * count)
        self.stubs = Piece(descriptor.SECTION_STUBS, elf.SHT_PROGBITS, alloc | elf.SHF_EXECINSTR, arch.stub_align,
                           _copies_size(arch, self.copies_start, plan))
        self.dynamic = _dynamic_piece(binary, self.request)
        # Read-only pieces: some sizes depend on contents, see place().
        self.tables: list[Piece] = []
        self.strings = Piece(".dynstr", elf.SHT_STRTAB, alloc, 1)
        self.descriptor = _part(descriptor.SECTION_DESCRIPTOR, 0)
        self.relocations = relocations.table(binary, count) if self.form in (Form.ROWS, Form.PACKED) else None
        self.search_table: Piece | None = None
        self.rows: Piece | None = None             # unwind rows in a section of their own
        self.more_rows: ehframe.Place | None = None   # or in .eh_frame
        self.data, self.code, self.read_only = (
            Group(elf.PF_R | elf.PF_W), Group(elf.PF_R | elf.PF_X), Group(elf.PF_R))
        self.copies: list[int] = []                # address of each detour's moved entry
        self.dynamic_data = b""
        self.original = np.array([f.address for f in plan.functions], dtype=np.int64)   # what each slot holds at first
        self.out = bytearray()

    @property
    def groups(self) -> list[Group]:
        """The new segments, ascending by address."""
        return [g for g in (self.data, self.code, self.read_only) if g.pieces]

    @property
    def pieces(self) -> list[Piece]:
        """Everything placed, in holes too."""
        return [self.slots, self.stubs, *([self.dynamic] if self.dynamic else []), *self.tables]

    @property
    def resolver(self) -> int:
        """The address behind the stubs: of the function that relocates the slots, if there is one."""
        return self.stubs.address + _up(len(self.plan.functions) * self.stub_size, self.arch.stub_align)

    @property
    def copies_start(self) -> int:
        """The distance of the first moved entry from the first stub."""
        behind = _up(len(self.plan.functions) * self.stub_size, self.arch.stub_align)
        return behind + (self.arch.resolver_size if self.form is Form.RESOLVER else 0)

    def stub(self, function: int) -> int:
        return self.stubs.address + function * self.stub_size

    def moved(self, address: int) -> int:
        """Where what was at `address` of the input is now."""
        for p in self.pieces:
            if p.old_start <= address < p.old_end:
                return p.moved(address)
        return address

    def offset(self, address: int) -> int:
        """The offset in the output of an address of the output."""
        for g in self.groups:
            if g.address <= address < g.address + g.size:
                return address - g.address + g.offset
        return self.binary.offset_of(address)

    def put(self, address: int, data: bytes) -> None:
        at = self.offset(address)
        self.out[at:at + len(data)] = data


def build(binary: Binary, arch: Arch, plan: Plan, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...],
          stub_symbols: bool = False) -> bytes:
    """The instrumented file's bytes.  Raises PsuError when the input cannot be extended."""
    m = Image(binary, arch, plan, stub_symbols)
    _place_data_and_code(m)
    _check_reach(m)
    _place_tables(m, symbols, files)
    # Every address is known.
    _fill_code(m)
    _fill_tables(m)
    _copy_input(m)
    _put_pieces(m)
    # The output is the input with additions; nothing leads to them yet.
    _reroute(m)
    _resolver(m)
    _detour(m)
    _program_headers(m)
    tail.write(m)
    return bytes(m.out)


def _up(value: int, align: int) -> int:
    return -(-value // align) * align


def _copies_size(arch: Arch, start: int, plan: Plan) -> int:
    """Bytes of stubs (`start`) and moved entries."""
    for d in plan.detours:
        start = _up(start + d.size + arch.back(plan.far).size, arch.stub_align)
    return start


def _dynamic_piece(binary: Binary, request: dynamic.Request) -> Piece | None:
    """The dynamic section when it has to move, else None."""
    p = binary.segment(elf.PT_DYNAMIC)
    if p is None or dynamic.fits(binary, request):
        return None
    covers = tuple(s for s in binary.sections if s.type == layout.SHT_DYNAMIC and s.address == p.address)
    return Piece(".dynamic", layout.SHT_DYNAMIC, elf.SHF_ALLOC | elf.SHF_WRITE, 8,
                 dynamic.entries_needed(binary, request) * dynamic.ENTRY.size, dynamic.ENTRY.size, covers[:1])


def _place_data_and_code(m: Image) -> None:
    """Addresses of slots, stubs and moved entries; what each slot holds at first."""
    page = m.arch.page_size
    for g, pieces in ((m.data, [m.slots] + ([m.dynamic] if m.dynamic else [])), (m.code, [m.stubs])):
        g.start_at(*_ends(m), layout.total_size(pieces), page)
        for p in pieces:
            g.add(p)
    # Moved entries whose frame is that of a function entry share the stubs' unwind row: they come first.
    at = m.stubs.address + m.copies_start
    m.copies = [0] * len(m.plan.detours)
    for i, d in sorted(enumerate(m.plan.detours), key=lambda x: bool(x[1].cfi)):
        m.copies[i] = m.original[d.function] = at
        at = _up(at + d.size + m.arch.back(m.plan.far).size, m.arch.stub_align)


def _check_reach(m: Image) -> None:
    """Stubs come behind everything: refuse a file whose code cannot reach that far."""
    span = m.code.address + m.code.size - min(p.address for p in m.binary.segments if p.type == elf.PT_LOAD)
    what, reach = ("addresses", m.arch.data_reach) if m.plan.far else ("branches", m.arch.reach)
    if span >= reach - layout.REACH_KEPT:
        raise PsuError(m.binary.path, f"too large: code and data span {span >> 20} MiB, {what} reach {reach >> 20} MiB")
    # In a far module calls are turned to stubs that attach finds room for near all of them.
    calls = m.plan.sites[-1][0] - m.plan.sites[0][0] if m.plan.far and m.plan.sites else 0
    if calls >= m.arch.reach - (m.arch.reach >> 3):
        raise PsuError(m.binary.path, f"too large: its code spans {calls >> 20} MiB, branches reach {m.arch.reach >> 20} MiB")


def _ends(m: Image) -> tuple[int, int]:
    """(address, file offset) behind everything placed so far."""
    last = m.groups[-1] if m.groups else None
    if last:
        return last.address + last.size, last.offset + last.size
    return layout.memory_end(m.binary), layout.loaded_end(m.binary)


def _place_tables(m: Image, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...]) -> None:
    """Addresses of all read-only pieces: in holes of the input's segments where they fit, else in the new segment."""
    b = m.binary
    at, size = dynamic.strings(b)
    m.strings.covers = tuple(s for s in b.sections if s.flags & elf.SHF_ALLOC and (s.address, s.size) == (at, size))[:1]
    m.strings.data = b.data[b.offset_of(at):][:size] + m.request.added
    m.strings.size = len(m.strings.data)
    described = descriptor.encode(_describe(m, symbols, files))
    m.tables = [m.strings] + ([m.relocations] if m.relocations else [])
    table = ehframe.search_table(b)
    if table:
        m.search_table = Piece(".eh_frame_hdr", elf.SHT_PROGBITS, elf.SHF_ALLOC, 4,
                               ehframe.header_size(table, len(_unwind_ranges(m))), 0, (table.section,))
        m.tables.append(m.search_table)
    m.tables += exports.pieces(b, m.plan)
    _add_moved(m, m.room.units)
    choice = _fit(m, m.tables, table, len(described))
    # Moving the loader's other tables, too, can make better use of the holes.
    kept = m.tables
    m.tables = list(kept)
    _add_moved(m, [(s,) for s in layout.loader_tables(b)])
    second = _fit(m, m.tables, table, len(described))
    if second.cost + layout.SMALL_PAGE <= choice.cost:
        choice = second
    else:
        m.tables = kept
    m.more_rows, m.rows = choice.more_rows, choice.rows
    m.descriptor, *more = choice.descriptor
    m.tables += choice.descriptor + ([m.rows] if m.rows else [])
    for p, address in choice.placed:
        p.address = address
    group = m.read_only if m.room.segments == 3 else m.code
    if choice.left and group is m.read_only:
        group.start_at(*_ends(m), layout.total_size(choice.left), m.arch.page_size)
    for p in choice.left:
        group.add(p)
    m.descriptor.data = described
    for p in more:
        m.descriptor.data, p.data = descriptor.split(described, m.descriptor.size, p.address)


def _add_moved(m: Image, units: Iterable[tuple[Section, ...]]) -> None:
    """Pieces for sections that move as they are, unless they are in a piece already."""
    for unit in units:
        there = {s.index for p in m.tables for s in p.covers}
        if not there & {s.index for s in unit}:
            start, size = unit[0].address, unit[-1].end - unit[0].address
            m.tables.append(Piece("", unit[0].type, unit[0].flags, max(8, *(s.align for s in unit)), size,
                                  unit[0].entsize, unit, data=m.binary.data[m.binary.offset_of(start):][:size]))


@dataclass(frozen=True)
class Fit:
    """A way to place the read-only pieces."""
    placed: list[tuple[Piece, int]]            # (piece, address in a hole)
    left: list[Piece]                          # for the new segment
    descriptor: list[Piece]                    # in one part or two
    more_rows: ehframe.Place | None            # where .eh_frame grows
    rows: Piece | None                         # else a piece for its rows
    cut: int                                   # bytes that the end of the first segment can do without

    @property
    def cost(self) -> int:
        """Bytes that the file grows by."""
        return layout.total_size(self.left) - self.cut


def _fit(m: Image, tables: list[Piece], table: ehframe.SearchTable | None, size_of_descriptor: int) -> Fit:
    """The best way to place `tables` and a descriptor of that size."""
    free = layout.holes(m.binary, tables, m.room.end)
    place = rows = None
    if table:
        size = len(fde.rows(m.arch, m.stubs.address, _unwind_ranges(m))[0])
        place = ehframe.beside(m.binary, table, size, free)
        if place:
            free = [part for hole in free for part in _without(hole, (place.address, place.end))]
        else:
            rows = Piece(".psu.eh_frame", elf.SHT_PROGBITS, elf.SHF_ALLOC, 8, size + len(ehframe.END))
            tables = [*tables, rows]
    # objcopy --only-keep-debug wants notes in front of what else their segment has.
    notes = [p for p in tables if p.type == elf.SHT_NOTE]
    others = [p for p in tables if p not in notes]
    head = cut.first_segment(m.binary)
    last = head.address + head.filesz if head else 0
    step = max(cut.unit(m.binary), m.arch.page_size)

    def with_descriptor(*sizes: int, hole: tuple[int, int] | None = None) -> Fit:
        """With the descriptor in parts of these sizes, the first of them in `hole`."""
        parts = [_part(name, size) for name, size in zip((descriptor.SECTION_DESCRIPTOR, descriptor.SECTION_REST), sizes)]
        placed, left = layout.fit([h for h in free if h != hole], others + parts[hole is not None:], last)
        saved = sum(end - max([start] + [at + p.size for p, at in placed if start <= at < end])
                    for start, end in free if end == last and (start, end) != hole) // step * step
        return Fit(([(parts[0], _up(hole[0], 8))] if hole else []) + placed, notes + left, parts, place, rows, saved)

    out = [with_descriptor(size_of_descriptor)]
    for hole in free:
        first = hole[1] - _up(hole[0], 8)
        if descriptor.HEADER.size + MIN_PART <= first <= size_of_descriptor - MIN_PART:
            out.append(with_descriptor(first, size_of_descriptor - first, hole=hole))
    best = min(out, key=lambda x: x.cost)
    return best if best.cost + MIN_PART <= out[0].cost else out[0]


def _part(name: str, size: int) -> Piece:
    return Piece(name, elf.SHT_PROGBITS, elf.SHF_ALLOC, 8, size)


def _without(hole: tuple[int, int], used: tuple[int, int]) -> list[tuple[int, int]]:
    """What of `hole` is outside `used`."""
    parts = (hole[0], min(hole[1], used[0])), (max(hole[0], used[1]), hole[1])
    return [p for p in parts if p[0] < p[1]]


def _describe(m: Image, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...]) -> descriptor.Descriptor:
    moved = {d.function for d in m.plan.detours if d.length}
    functions = tuple(
        descriptor.Function(f.name, f.address, int(m.original[i]), f.size,
                            f.flags | (descriptor.DETOURED if i in moved else 0), f.preserve, f.callers)
        for i, f in enumerate(m.plan.functions))
    return descriptor.Descriptor(m.arch.machine, m.flags, m.stubs.address, m.stub_size, m.slots.address,
                                 m.binary.build_id, functions, symbols, files,
                                 tuple(at for at, _ in m.plan.sites))


def _unwind_ranges(m: Image) -> list[fde.Code]:
    """The new code by unwind row, ascending: stubs and moved entries without frame, then the others one by one."""
    own = sorted((at, d) for at, d in zip(m.copies, m.plan.detours) if d.cfi)
    end = m.stubs.address + m.stubs.size
    first = own[0][0] if own else end
    ranges = [fde.Code(m.stubs.address, first - m.stubs.address)]
    return ranges + [fde.Code(at, d.size + m.arch.back(m.plan.far).size, d.rows) for at, d in own]


def _fill_code(m: Image) -> None:
    """Stubs, moved entries, slots."""
    code = bytearray(b"".join(m.arch.stub(m.stub(i), m.slots.address + 8 * i, m.flags)
                              for i in range(len(m.plan.functions))))
    references = {e.at: e for e in m.plan.edits} if m.plan.detours else {}
    for at, d in sorted(zip(m.copies, m.plan.detours), key=lambda x: x[0]):
        start = m.plan.functions[d.function].address + d.skip
        copy, pad = bytearray(d.pad + d.copy), len(d.pad)
        for position, target in d.fixups:
            _lead(m, copy, m.arch.moved_field, at, pad + position, target)
        for position in range(d.length):           # references to other functions move, too
            e = references.get(start + position)
            if e and e.kind.name in m.arch.fields:
                _lead(m, copy, e.kind.name, at, pad + position, m.stub(e.function))
        copy += m.arch.back(m.plan.far).encode(at + len(copy), start + d.length)
        code += _trap(m, at - m.stubs.address - len(code)) + copy
    m.stubs.data = bytes(code) + _trap(m, m.stubs.size - len(code))
    m.slots.data = m.original.astype("<i8").tobytes()


def _trap(m: Image, size: int) -> bytes:
    return m.arch.padding * (size // len(m.arch.padding))


def _lead(m: Image, code: bytearray, kind: str, at: int, position: int, target: int) -> None:
    """Make the field at `position` of `code`, which will stand at address `at`, lead to `target`."""
    field = m.arch.fields[kind]
    old = np.frombuffer(code[position:position + field.size], dtype=np.uint8).reshape(1, -1)
    new, fits = field.encode(np.array([at + position]), old, np.array([target]))
    if not fits[0]:
        raise PsuError(m.binary.path, f"too large: {at:#x} does not reach {target:#x}")
    code[position:position + field.size] = new.tobytes()


def _fill_tables(m: Image) -> None:
    """Relocations, unwind rows, the dynamic section."""
    addresses = {t: m.moved(v) for t, v in m.binary.dynamic if t in layout.ADDRESS_TAGS}
    addresses |= {elf.DT_STRTAB: m.strings.address, descriptor.DT_PSU: m.descriptor.address}
    if m.relocations:
        addresses |= relocations.fill(m.binary, m.arch, m.relocations, m.slots.address, m.original)
    elif m.form is Form.RESOLVER:
        addresses |= relocations.counted(m.binary, -1)
    table = ehframe.search_table(m.binary)
    if m.search_table and table:
        place = m.more_rows.address if m.more_rows else m.rows.address if m.rows else 0
        ranges = _unwind_ranges(m)
        body, fdes = fde.rows(m.arch, place, ranges)
        if m.rows:
            m.rows.data = body + ehframe.END
        m.search_table.data = ehframe.header(m.binary.path, table, m.search_table.address,
                                             m.more_rows.start if m.more_rows else table.eh_frame,
                                             [(r.start, at) for r, at in zip(ranges, fdes)])
    segment = m.binary.segment(elf.PT_DYNAMIC)
    size = m.dynamic.size if m.dynamic else segment.filesz if segment else 0
    m.dynamic_data = dynamic.encode(m.binary, m.request, addresses, size)
    if m.dynamic:
        m.dynamic.data = m.dynamic_data


def _copy_input(m: Image) -> None:
    """What is loaded stays where it is; what moved is cleared, but for .dynamic: its segment is writable."""
    end = max([layout.loaded_end(m.binary)] + [g.offset + g.size for g in m.groups])
    m.out = bytearray(m.binary.data[:layout.loaded_end(m.binary)]).ljust(end, b"\0")
    for p in m.tables:
        if p.covers:
            m.put(p.old_start, bytes(p.old_end - p.old_start))


def _put_pieces(m: Image) -> None:
    for p in m.pieces:
        p.offset = m.offset(p.address)
        if len(p.data) != p.size:
            raise edits.defect(m.binary.path, f"{p.name} has {len(p.data)} bytes, not {p.size}")
        m.put(p.address, p.data)
    if m.more_rows:
        body, _ = fde.rows(m.arch, m.more_rows.address, _unwind_ranges(m))
        m.put(m.more_rows.address, body + (ehframe.END if m.more_rows.address > m.more_rows.start else b""))


def _reroute(m: Image) -> None:
    """The plan's edits, and the dynamic section."""
    b = m.binary
    rela = b.dyn(elf.DT_RELA)
    rela_at = m.moved(rela) if rela else 0
    if m.relocations and m.form is Form.ROWS:
        rela_at = m.relocations.address + m.relocations.front
    places = edits.Places(m.offset(rela_at) if rela else 0, m.offset(m.moved(edits.symbol_table(b))),
                          m.stubs.address, m.stub_size)
    for fields in edits.by_kind(m.plan):
        edits.apply(m.out, m.arch, m.plan, fields, layout.holding(b.segments, fields.at), places, b.path)
    segment = b.segment(elf.PT_DYNAMIC)
    if segment and not m.dynamic:
        m.out[segment.offset:segment.offset + len(m.dynamic_data)] = m.dynamic_data
    elif segment and m.dynamic:
        dynamic.follow(b, m.arch, m.out, m.dynamic.address, places.rela)


def _resolver(m: Image) -> None:
    """One relative relocation calls the function that relocates the slots, which returns what that one gave."""
    row = relocations.resolver_row(m.binary, m.arch)
    if m.form is not Form.RESOLVER or row is None:
        return
    at = m.offset(m.moved(m.binary.dyn(elf.DT_RELA) or 0)) + relocations.RELA_SIZE * row
    where, _, result = relocations.ROW.unpack_from(m.out, at)
    relocations.ROW.pack_into(m.out, at, where, m.arch.scan.IRELATIVE, m.resolver)
    m.put(m.resolver, m.arch.resolver(m.resolver, m.slots.address, len(m.plan.functions), result))


def _detour(m: Image) -> None:
    """Entries of detoured functions become jumps to their stubs."""
    for d in m.plan.detours:
        start = m.plan.functions[d.function].address + d.skip
        if not d.length:
            continue
        # A copy that grew has its 2-byte jumps in the long form.
        if len(d.copy) == d.length and m.binary.bytes_at(start, d.length) != d.copy:
            raise edits.defect(m.binary.path, f"the entry at {start:#x} is not what was moved")
        jump = d.head + m.arch.jump(start + len(d.head), m.stub(d.function))
        m.put(start, jump + _trap(m, d.length - len(jump)))


def _program_headers(m: Image) -> None:
    """The new table, right behind the ELF header."""
    rows = []
    count = m.binary.phnum + len(m.groups)
    first = next(p for p in m.binary.segments if p.type == elf.PT_LOAD)
    for p in m.binary.segments:
        old = m.binary.data[m.binary.phoff + PHDR.size * p.index:m.binary.phoff + PHDR.size * (p.index + 1)]
        if p.type == elf.PT_PHDR:
            where = first.address + layout.EHDR_SIZE, layout.EHDR_SIZE, PHDR.size * count
        elif p.type == elf.PT_DYNAMIC and m.dynamic:
            where = m.dynamic.address, m.dynamic.offset, m.dynamic.size
        elif p.type == elf.PT_GNU_EH_FRAME and m.search_table:
            where = m.search_table.address, m.search_table.offset, m.search_table.size
        elif p.type in layout.MOVABLE_SEGMENTS and p.filesz and m.moved(p.address) != p.address:
            where = m.moved(p.address), m.offset(m.moved(p.address)), p.filesz
        else:
            rows.append(old)
            continue
        address, offset, size = where
        rows.append(PHDR.pack(p.type, p.flags, offset, address, address, size, size, p.align))
    last = max(p.index for p in m.binary.segments if p.type == elf.PT_LOAD)
    rows[last + 1:last + 1] = [PHDR.pack(elf.PT_LOAD, g.flags, g.offset, g.address, g.address, g.size, g.size,
                                         m.arch.page_size) for g in m.groups]
    start = layout.EHDR_SIZE
    m.out[start:m.room.end] = b"".join(rows).ljust(m.room.end - start, b"\0")
    struct.pack_into("<Q", m.out, 32, start)
    struct.pack_into("<H", m.out, 56, len(rows))
