"""Parts of the writer that need no program: packed relocations, unwind rows, packing of holes, edits."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from hypothesis import given
from hypothesis import strategies as st

from psu_bin import elf, fde
from psu_bin.arch.x86_64 import ARCH
from psu_bin.errors import PsuError
from psu_bin.instrument import edits, ehframe, layout, relocations
from psu_bin.instrument.layout import Piece
from psu_bin.instrument.plan_types import Edit, Plan, PlannedFunction, Reroute


def relr_decode(words: list[int]) -> list[int]:
    """DT_RELR as the gABI describes it, bit by bit."""
    out, where = [], 0
    for w in words:
        if not w & 1:
            out.append(w)
            where = w + 8
        else:
            out += [where + 8 * i for i in range(63) if w >> 1 + i & 1]
            where += 63 * 8
    return out


@given(st.integers(1, 400), st.integers(0, 1 << 40))
def test_packed_relocations_name_every_slot(count: int, page: int) -> None:
    words = relocations.relr_words(page * 8, count)
    assert all(0 <= w < 1 << 64 for w in words)
    assert relr_decode(words) == [page * 8 + 8 * i for i in range(count)]


def test_unwind_rows_are_read_by_another_reader() -> None:
    ranges = [fde.Code(0x9000, 0x200), fde.Code(0x9200, 21, b"\x41\x0e\x10"), fde.Code(0x9230, 9)]
    body, where = fde.rows(ARCH, 0x5000, ranges)
    assert len(body) % 8 == 0 and len(body) == len(fde.rows(ARCH, 0, ranges)[0])
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    entries = CallFrameInfo(io.BytesIO(body + ehframe.END), len(body) + 4, 0x5000, structs, for_eh_frame=True).get_entries()
    fdes = [e for e in entries if isinstance(e, FDE)]
    assert [(e["initial_location"], e["address_range"]) for e in fdes] == [(r.start, r.size) for r in ranges]
    assert [0x5000 + e.offset for e in fdes] == where
    for e, rows in zip(fdes, (1, 2, 1), strict=True):
        table = e.get_decoded().table
        assert len(table) == rows and (table[0]["cfa"].reg, table[0]["cfa"].offset) == (7, 8) and table[0][16].arg == -8
    assert fdes[1].get_decoded().table[1]["cfa"].offset == 16


def test_unwind_rows_out_of_reach_are_refused() -> None:
    with pytest.raises(PsuError):
        fde.rows(ARCH, 0, [fde.Code(1 << 32, 8)])


sizes = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([1, 4, 8, 16])), max_size=12)


@given(sizes, st.lists(st.tuples(st.integers(1, 50), st.integers(1, 400)), max_size=6))
def test_pieces_in_holes_do_not_overlap(wanted: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    free, at = [], 0
    for gap, size in gaps:
        free.append((at + gap, at + gap + size))
        at += gap + size
    pieces = [Piece(f"p{i}", 1, 2, align, size) for i, (size, align) in enumerate(wanted)]
    placed, left = layout.fit(free, pieces)
    assert len(placed) + len(left) == len(pieces) and {id(p) for p, _ in placed}.isdisjoint(id(p) for p in left)
    spans = sorted((address, address + p.size) for p, address in placed)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    assert all(any(a <= start and end <= b for a, b in free) for start, end in spans)
    assert all(address % p.align == 0 for p, address in placed)


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.integers(1, 100000), st.sampled_from([4096, 65536]))
def test_a_group_starts_congruent_and_touches_no_page_too_many(memory: int, file: int, size: int, page: int) -> None:
    g = layout.Group(elf.PF_R)
    g.start_at(memory, file, size, page)
    assert (g.address - g.offset) % page == 0 and g.offset >= file and g.address // page * page >= memory
    assert -(-(g.address % 4096 + size) // 4096) == -(-size // 4096)
    assert g.offset < file + 4096 + 16


def moved_piece(front: int = 0) -> tuple[Piece, elf.Section, elf.Section]:
    def section(index: int, address: int, size: int) -> elf.Section:
        return elf.Section(index, f"s{index}", 4, 2, address, address, size, 0, 0, 8, 24)
    a, b = section(1, 0x400, 0x60), section(2, 0x460, 0x30)
    p = Piece("", 4, 2, 8, 0x90 + front, 24, (a, b), front)
    p.address = 0x9000
    return p, a, b


def test_what_is_added_in_front_belongs_to_the_first_section() -> None:
    p, a, b = moved_piece(0x48)
    assert p.header(a) == (0x9000, 0x60 + 0x48) and p.header(b) == (0x9000 + 0x60 + 0x48, 0x30)
    assert p.moved(0x400) == 0x9000 and p.moved(0x460) == 0x90A8
    p, a, b = moved_piece()
    assert p.header(a) == (0x9000, 0x60) and p.header(b) == (0x9060, 0x30)


def plan_with(*what: Edit) -> Plan:
    return Plan((PlannedFunction("f", 0x1000, 16, 0, 0, 1), PlannedFunction("g", 0x1010, 16, 0, 0, 1)), what, (), (), 1)


PLACES = edits.Places(rela=0, dynsym=0, stubs=0x9000, stub_size=8)


def apply(out: bytearray, plan: Plan, offsets: list[int]) -> None:
    (fields,) = edits.by_kind(plan)
    edits.apply(out, ARCH, plan, fields, np.array(offsets), PLACES, "file")


def test_an_edit_changes_its_field_and_nothing_else() -> None:
    out = bytearray(range(32))
    struct.pack_into("<i", out, 8, 0x1010 - (0x508 + 4))
    apply(out, plan_with(Edit(Reroute.REL32, 0x508, 1, True)), [8])
    assert struct.unpack_from("<i", out, 8)[0] == 0x9008 - (0x508 + 4)
    assert out[:8] == bytes(range(8)) and out[12:] == bytes(range(12, 32))


@pytest.mark.parametrize("kind", [Reroute.REL32, Reroute.ABS32, Reroute.ABS64, Reroute.RELR_WORD, Reroute.RELA_ADDEND,
                                  Reroute.DYNSYM])
def test_a_field_that_holds_something_else_is_a_defect(kind: Reroute) -> None:
    out = bytearray(64)
    with pytest.raises(PsuError, match="internal defect"):
        apply(out, plan_with(Edit(kind, 0, 1, True)), [0])
    assert out == bytearray(64)


def test_a_stub_out_of_reach_of_its_reference_is_refused() -> None:
    out = bytearray(struct.pack("<i", 0x1000 - 0x504))
    with pytest.raises(PsuError, match="too large"):
        edits.apply(out, ARCH, plan_with(Edit(Reroute.REL32, 0x500, 0, True)),
                    edits.by_kind(plan_with(Edit(Reroute.REL32, 0x500, 0, True)))[0], np.array([0]),
                    edits.Places(0, 0, 1 << 33, 8), "file")


def test_the_same_edit_twice_counts_once_and_two_functions_are_a_defect() -> None:
    edit = Edit(Reroute.ABS64, 0x500, 1, False)
    out = bytearray(struct.pack("<Q", 0x1010))
    apply(out, plan_with(edit, edit), [0])
    assert out == struct.pack("<Q", 0x9008)
    out = bytearray(struct.pack("<Q", 0x1010))
    with pytest.raises(PsuError, match="two functions"):
        apply(out, plan_with(edit, Edit(Reroute.ABS64, 0x500, 0, False)), [0, 0])
