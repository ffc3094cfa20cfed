"""The read-back finds each kind of damage; and no damaged input makes anything but an error."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rewriting import compiled

from psu_bin import arch, descriptor, elf
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import driver, image, plan, verify
from psu_bin.instrument.plan_types import Plan, Reroute

pytest_plugins = ["rewriting"]


class Written:
    """A program, its plan, and the instrumented bytes."""

    def __init__(self, path: Path) -> None:
        self.binary = Binary.read(path)
        self.arch = arch.for_machine(self.binary.machine, str(path))
        self.plan: Plan = plan.make(self.binary, self.arch, (), (), None)
        self.symbols, self.files = plan.symbols(self.binary, self.plan, None)
        self.data = image.build(self.binary, self.arch, self.plan, self.symbols, self.files)
        self.after = Binary(self.data, "written")
        at = self.after.dyn(descriptor.DT_PSU)
        assert at
        self.found = descriptor.decode(descriptor.gather(self.after.bytes_at, at, "written"), "written")

    def verify(self, data: bytes) -> None:
        verify.verify(self.binary, self.arch, self.plan, self.symbols, self.files, data, "written")

    def section(self, name: str) -> elf.Section:
        s = self.after.section(name)
        assert s
        return s

    def edit(self, kind: Reroute) -> int:
        return next(e.at for e in self.plan.edits if e.kind is kind)


@pytest.fixture(scope="module")
def pie(built: Path) -> Written:
    return Written(compiled(built / "verify-pie", "ways.c", "target.c", "-Os", "-rdynamic", "-pthread"))


@pytest.fixture(scope="module")
def fixed(built: Path) -> Written:
    return Written(compiled(built / "verify-fixed", "ways.c", "target.c", "-O2", "-no-pie", "-pthread"))


@pytest.fixture(scope="module")
def resolved(built: Path) -> Written:
    """Its slots are relocated by one function."""
    return Written(compiled(built / "verify-resolved", "ways.c", "target.c", "-O2", "-DNO_IFUNC", "-rdynamic", "-pthread"))


def _row(w: Written) -> int:
    """The offset of the relocation that calls it."""
    return w.after.offset_of(w.after.dyn(elf.DT_RELA) or 0) + 24 * (w.binary.dyn(elf.DT_RELACOUNT) - 1)


RESOLVER_DAMAGE: dict[str, Callable[[Written], int]] = {
    "its place": lambda w: _row(w), "its type": lambda w: _row(w) + 8, "its symbol": lambda w: _row(w) + 12,
    "the function's address": lambda w: _row(w) + 16, "the relocation before": lambda w: _row(w) - 8,
    "a slot": lambda w: w.after.offset_of(w.found.slot(3)),
    "how many are relative": lambda w: w.section(".dynamic").offset + 8 + 16 * [t for t, _ in w.after.dynamic].index(
        elf.DT_RELACOUNT),
    **{f"byte {n} of the function": lambda w, n=n: w.after.offset_of(   # type: ignore[misc]
        int(w.after.rela["r_addend"][w.binary.dyn(elf.DT_RELACOUNT) - 1])) + n for n in (0, 8, 15, 20, 24, 28, 35, 41)},
}


@pytest.mark.parametrize("what", RESOLVER_DAMAGE)
def test_damage_of_what_relocates_the_slots_is_found(resolved: Written, what: str) -> None:
    resolved.verify(resolved.data)
    bad = bytearray(resolved.data)
    bad[RESOLVER_DAMAGE[what](resolved)] ^= 1
    with pytest.raises(PsuError):
        resolved.verify(bytes(bad))


# Each gives the offset of a byte to damage, and what is then wrong.
DAMAGE: dict[str, Callable[[Written], int]] = {
    "a stub": lambda w: w.after.offset_of(w.found.stub(3)) + 2,
    "a relocation of a slot": lambda w: w.after.offset_of(w.after.dyn(elf.DT_RELA) or 0) + 24 * 3 + 16,
    "a slot's relocation's place": lambda w: w.after.offset_of(w.after.dyn(elf.DT_RELA) or 0) + 24 * 3,
    "a call": lambda w: w.after.offset_of(w.edit(Reroute.REL32)),
    "an addend": lambda w: (w.after.offset_of(w.after.dyn(elf.DT_RELA) or 0) + 16
                            + 24 * (w.edit(Reroute.RELA_ADDEND) + len(w.found.functions))),
    "another relocation": lambda w: w.after.offset_of(w.after.dyn(elf.DT_RELA) or 0) + w.section(".rela.dyn").size - 24,
    "a dynamic symbol": lambda w: w.section(".dynsym").offset + 24 * w.edit(Reroute.DYNSYM) + 8,
    "a dynamic symbol's size": lambda w: w.section(".dynsym").offset + 24 * w.edit(Reroute.DYNSYM) + 16,
    "another dynamic symbol": lambda w: w.section(".dynsym").offset + 24 + 4,
    "the dynamic strings": lambda w: w.section(".dynstr").offset + 5,
    "a hash table": lambda w: w.section(".gnu.hash").offset + 9,
    "symbol versions": lambda w: w.section(".gnu.version").offset + 2,
    "the order of needed libraries": lambda w: w.section(".dynamic").offset + 8,
    "a dynamic tag": lambda w: w.section(".dynamic").offset + 16 * 4,
    "the detour": lambda w: w.after.offset_of(w.plan.functions[w.plan.detours[0].function].address) + 1,
    "the moved entry": lambda w: w.after.offset_of(w.found.functions[w.plan.detours[0].function].original),
    "the way back from the moved entry": lambda w: (
        w.after.offset_of(w.found.functions[w.plan.detours[0].function].original) + len(w.plan.detours[0].copy) + 1),
    "code": lambda w: w.section(".text").offset + 1,
    "data": lambda w: w.section(".rodata").offset + 4,
    "a page of unwind rows": lambda w: w.section(".eh_frame").offset + w.section(".eh_frame").size - 30,
    "the stubs' unwind row": lambda w: w.section(".eh_frame").offset + 24 + 8,
    "the search table": lambda w: w.section(".eh_frame_hdr").offset + 12 + 4,
    "the descriptor": lambda w: w.section(".psu.desc").offset + 20,
    "the descriptor's names": lambda w: w.section(".psu.desc").offset + 120,
    "the interpreter's name": lambda w: w.section(".interp").offset + 3,
    "a note": lambda w: w.section(".note.gnu.build-id").offset + 20,
    "a segment's rights": lambda w: 64 + 56 * w.after.segments[-7].index + 4,
    "the last segment's address": lambda w: 64 + 56 * [p.index for p in w.after.segments if p.type == 1][-1] + 17,
    "an old segment's size": lambda w: 64 + 56 * [p.index for p in w.after.segments if p.type == 1][1] + 32,
    "a section header": lambda w: w.after.shoff + 64 * w.section(".psu.text").index + 24,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(pie: Written, what: str) -> None:
    pie.verify(pie.data)
    bad = bytearray(pie.data)
    bad[DAMAGE[what](pie)] ^= 1
    with pytest.raises(PsuError):
        pie.verify(bytes(bad))


def test_damage_in_a_position_dependent_file_is_found(fixed: Written) -> None:
    fixed.verify(fixed.data)
    for at in (fixed.after.offset_of(fixed.found.slot(2)), fixed.after.offset_of(fixed.edit(Reroute.REL32)),
               fixed.section(".rela.plt").offset + 16):
        bad = bytearray(fixed.data)
        bad[at] ^= 1
        with pytest.raises(PsuError):
            fixed.verify(bytes(bad))


def test_every_loaded_byte_is_looked_at(pie: Written) -> None:
    """Flip bytes all over the loaded part: only padding, and numbers that no loader reads, may pass unnoticed."""
    covered = np.zeros(len(pie.data), dtype=bool)
    for s in pie.after.sections:
        if s.flags & elf.SHF_ALLOC and s.type != elf.SHT_NOBITS:
            covered[s.offset:s.offset + s.size] = True
    dynsym = pie.section(".dynsym")
    numbers = {dynsym.offset + 24 * i + k for i in range(dynsym.size // 24) for k in (6, 7)}     # st_shndx
    slots = pie.section(".psu.slots")         # relocated: what is in the file does not count
    numbers |= set(range(slots.offset, slots.offset + slots.size))
    dynamic = pie.section(".dynamic")
    numbers |= set(range(dynamic.offset + 16 * len(pie.after.dynamic) + 8, dynamic.offset + dynamic.size))
    text = pie.section(".psu.text")           # padding behind moved entries
    numbers |= {text.offset + i for i in range(text.size) if pie.data[text.offset + i] == 0xCC}
    missed = []
    for at in random.Random(1).sample(np.flatnonzero(covered).tolist(), 400):
        bad = bytearray(pie.data)
        bad[at] ^= 0x10
        try:
            pie.verify(bytes(bad))
        except PsuError:
            continue
        if at not in numbers:
            missed.append(next(f"{s.name}+{at - s.offset:#x}" for s in pie.after.sections
                               if s.offset <= at < s.offset + s.size and s.address))
    assert not missed


def test_a_plan_that_is_wrong_is_not_written(pie: Written) -> None:
    edit = next(e for e in pie.plan.edits if e.kind is Reroute.REL32)
    wrong = type(edit)(edit.kind, edit.at + 1, edit.function, True)
    with pytest.raises(PsuError, match="internal defect"):
        image.build(pie.binary, pie.arch, Plan(pie.plan.functions, (wrong,), (), (), 1), pie.symbols, pie.files)


def test_a_damaged_input_gives_an_error_or_a_file_that_passes(tmp_path: Path, built: Path) -> None:
    """Whatever is in the headers and tables, nothing but PsuError leaves."""
    good = compiled(built / "fuzz", "small.c", "-O2").read_bytes()
    b = Binary(good, "good")
    places = [range(16, 64), range(64, 64 + 56 * b.phnum), range(b.shoff, b.shoff + 64 * b.shnum)]
    for name in (".dynamic", ".dynsym", ".rela.dyn", ".rela.plt", ".eh_frame_hdr", ".eh_frame", ".symtab", ".dynstr",
                 ".note.gnu.property", ".gnu.version_r"):
        s = b.section(name)
        if s:
            places.append(range(s.offset, s.offset + s.size))
    chance = random.Random(7)
    passed = 0
    for n in range(250):
        bad = bytearray(good)
        where = chance.choice(places)
        for _ in range(chance.choice((1, 1, 3))):
            at = chance.choice(where)
            if chance.random() < 0.3:
                value = chance.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x1000))
                struct.pack_into("<I", bad, min(at, len(bad) - 4), value)
            else:
                bad[at] = chance.randrange(256)
        path = tmp_path / "bad"
        path.write_bytes(bad)
        try:
            driver.instrument(path, tmp_path / "out", (), (), None)
            passed += 1
        except PsuError as e:
            assert "internal defect" not in str(e), f"case {n}: {e} {path}"
    assert passed > 50
