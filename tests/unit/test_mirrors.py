"""Mirrors of pages of code: which pages, what is in them, and where turned calls find their stubs.  No process."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import capstone
import pytest

from psu_bin import descriptor
from psu_bin.arch import for_machine
from psu_bin.attach import mirrors, shim
from psu_bin.attach.mirrors import PAGE, Run
from psu_bin.attach.target import Module
from psu_bin.descriptor import Descriptor, Function

ARCH = for_machine(62, "")
BIAS = 0x555500000000
STEP = ARCH.site_form.step
ENTRIES = (0x1000, 0x1010, 0x1016, 0x101A, 0x1FFC, 0x3000, 0x5000)
DETOURED = 0x1010


def module(flags: int = descriptor.MODULE_PIC) -> Module:
    functions = tuple(Function(f"f{e:x}", e, e, 4, descriptor.DETOURED if e == DETOURED else 0, 0, 1) for e in ENTRIES)
    d = Descriptor(62, flags, 0x8000, 8, 0xA000, b"", functions, (), (), ())
    return Module("/m", BIAS, BIAS + 0xB000, BIAS, 62, b"", True, None, d)


def number(entry: int) -> int:
    return ENTRIES.index(entry)


def test_whole_pages_and_both_that_a_stub_lies_in() -> None:
    assert mirrors._runs(ARCH, module(), [number(0x1000), number(0x5000)]) == [
        (BIAS + 0x1000, BIAS + 0x2000), (BIAS + 0x5000, BIAS + 0x6000)]
    assert mirrors._runs(ARCH, module(), [number(0x1FFC)]) == [(BIAS + 0x1000, BIAS + 0x3000)]


@pytest.mark.parametrize("flags", [descriptor.MODULE_PIC, descriptor.MODULE_PIC | descriptor.MODULE_IBT])
@pytest.mark.parametrize("distance", [-STEP & (1 << 64) - 1, 3 * STEP])
def test_stubs_jump_through_their_slots(flags: int, distance: int) -> None:
    m = module(flags)
    start = BIAS + 0x1000 + distance & (1 << 64) - 1
    data, rows = mirrors._contents(ARCH, m, Run(distance, start, start + PAGE))
    assert len(data) == PAGE
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    stubs = set()
    for entry in (0x1000, 0x101A):           # 0x1010 is detoured, 0x1016 too close to the next, 0x1FFC goes over the end
        at = start + entry - 0x1000
        i = next(disassembler.disasm(data[entry - 0x1000:], at))
        assert "jmp" in i.mnemonic
        (field,) = struct.unpack_from("<i", i.bytes, i.size - 4)
        assert at + i.size + field == m.slot(number(entry))
        stubs |= set(range(entry - 0x1000, entry - 0x1000 + i.size))
    inside = rows - start
    assert 0 < inside < PAGE and struct.unpack_from("<I", data, inside + 4) == (0,)      # a CIE
    used = stubs | {n for n, byte in enumerate(data) if byte != 0xCC and n >= inside}
    assert {n for n, byte in enumerate(data) if byte != 0xCC} <= used


def test_place() -> None:
    m = module()
    low, high = Run(STEP, BIAS + 0x1000 + STEP, BIAS + 0x2000 + STEP), Run(2 * STEP, BIAS + 0x1000 + 2 * STEP, BIAS + 0x3000 + 2 * STEP)
    assert mirrors.place(ARCH, [low, high], m, number(0x1000)) == BIAS + 0x1000 + STEP
    assert mirrors.place(ARCH, [low, high], m, number(0x1FFC)) == BIAS + 0x1FFC + 2 * STEP
    assert mirrors.place(ARCH, [low, high], m, number(0x5000)) is None
    assert [n for n, _ in mirrors.mirrored(ARCH, m, high)] == [number(e) for e in (0x1000, 0x101A, 0x1FFC)]


def test_a_place_is_free_in_reach_and_promised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m = module()
    taken = [SimpleNamespace(start=BIAS - STEP, end=BIAS - STEP + 0x2000), SimpleNamespace(start=BIAS, end=BIAS + 0xB000)]
    process = SimpleNamespace(maps=lambda: tuple(taken), where="process 1")
    runs: list[Run] = []
    monkeypatch.setattr(mirrors.placement, "reserved", lambda process, maps: [])
    first = mirrors.choose(process, ARCH, m, BIAS + 0x1000, BIAS + 0x2000, runs, [])
    assert first == Run(-2 * STEP & (1 << 64) - 1, BIAS + 0x1000 - 2 * STEP, BIAS + 0x2000 - 2 * STEP)
    assert mirrors.choose(process, ARCH, m, BIAS + 0x1000, BIAS + 0x2000, [], [(first.start, first.end)]).distance == -3 * STEP & (1 << 64) - 1
    # Where the module has mirrors already, the same distance comes first.
    runs.append(Run(5 * STEP, BIAS + 0x5000 + 5 * STEP, BIAS + 0x6000 + 5 * STEP))
    assert mirrors.choose(process, ARCH, m, BIAS + 0x1000, BIAS + 0x2000, runs, []).distance == 5 * STEP
    taken[:] = [SimpleNamespace(start=0, end=1 << 47)]
    with pytest.raises(mirrors.PsuError, match="no room"):
        mirrors.choose(process, ARCH, m, BIAS + 0x1000, BIAS + 0x2000, runs, [])


def test_a_run_is_known_by_what_is_in_it_unless_it_was_dropped() -> None:
    m = module()
    run = Run(2 * STEP, BIAS + 0x1000 + 2 * STEP, BIAS + 0x2000 + 2 * STEP)
    memory = {run.start: mirrors._contents(ARCH, m, run)[0], run.start + PAGE: bytes(PAGE)}
    process = SimpleNamespace(read=lambda at, size: memory[at])

    def known(patch: int, state: int) -> list[Run]:
        objects = tuple(shim.Object(i, patch, state, 0, ((at, PAGE),)) for i, at in enumerate(memory))
        return mirrors.known(process, SimpleNamespace(read_objects=lambda process: objects), m)

    assert known(shim.NO_PATCH, shim.CURRENT) == [run]
    assert known(shim.NO_PATCH, shim.RETIRED) == []
    assert known(1, shim.CURRENT) == []


# ---- a module whose stubs are out of reach ---------------------------------------------------------------------------

FAR_ARCH = for_machine(183, "")
STUBS, SLOTS = 0xD000000, 0xE000000
COUNT, IN_PAGE = 700, 252


def far_module(bias: int = BIAS, flags: int = descriptor.MODULE_PIC) -> Module:
    functions = tuple(Function(f"f{n}", 0x1000 + 8 * n, 0x1000 + 8 * n, 8, 0, 0, 1) for n in range(COUNT))
    d = Descriptor(183, flags | descriptor.MODULE_FAR, STUBS, 16, SLOTS, b"", functions, (), (), (0x1004, 0x500000))
    return Module("/m", bias, bias + SLOTS + 0x10000, bias, 183, b"", True, None, d)


def test_stubs_of_a_far_module_are_in_a_table_with_room_for_rows() -> None:
    m = far_module()
    assert mirrors._in_page(FAR_ARCH, m) == IN_PAGE
    assert mirrors._runs(FAR_ARCH, m, [0, IN_PAGE - 1]) == [(0, PAGE)]
    assert mirrors._runs(FAR_ARCH, m, [IN_PAGE, COUNT - 1]) == [(PAGE, 3 * PAGE)]
    start = BIAS - 0x100000
    run = Run(start - PAGE & (1 << 64) - 1, start, start + 2 * PAGE)
    numbers = list(range(IN_PAGE, COUNT))
    assert [n for n, _ in mirrors.mirrored(FAR_ARCH, m, run)] == numbers
    assert mirrors.place(FAR_ARCH, [run], m, 0) is None
    assert mirrors._contents(FAR_ARCH, m, Run(start & (1 << 64) - 1, start, start + PAGE))[1] == start + 16 * IN_PAGE, "a full page"
    data, rows = mirrors._contents(FAR_ARCH, m, run)
    for n in numbers:
        at = mirrors.place(FAR_ARCH, [run], m, n)
        assert at is not None and data[at - start:][:16] == FAR_ARCH.stub(at, m.slot(n), m.descriptor.flags)
    assert start < rows < start + 2 * PAGE and struct.unpack_from("<I", data, rows - start + 4) == (0,)


def test_a_run_of_a_far_module_is_known_by_what_is_in_it() -> None:
    m, other = far_module(), far_module(BIAS + 0x100000000)
    start = BIAS - 0x100000
    runs = [Run(at - page * PAGE & (1 << 64) - 1, at, at + PAGE) for at, page in ((start, 2), (start + 2 * PAGE, 0))]
    memory = {r.start: mirrors._contents(FAR_ARCH, m, r)[0] for r in runs}
    process = SimpleNamespace(read=lambda at, size: memory[at])
    objects = tuple(shim.Object(i, shim.NO_PATCH, shim.CURRENT, 0, ((at, PAGE),)) for i, at in enumerate(memory))
    runtime = SimpleNamespace(read_objects=lambda process: objects)
    assert mirrors.known(process, runtime, m) == runs
    assert mirrors.known(process, runtime, other) == []


@pytest.mark.parametrize(("bias", "flags"), [(BIAS, descriptor.MODULE_PIC), (0, 0)])
def test_the_place_for_a_far_module_is_near_its_calls(bias: int, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    m = far_module(bias, flags)
    taken = [SimpleNamespace(start=max(m.start, 0x1000), end=m.end)]
    process = SimpleNamespace(maps=lambda: tuple(taken), where="process 1")
    monkeypatch.setattr(mirrors.placement, "reserved", lambda process, maps: [])
    monkeypatch.setattr(mirrors.placement, "LOWEST", 0)
    first, last = bias + 0x1004, bias + 0x500000
    if not bias:                                      # the module is where there is nothing below
        with pytest.raises(mirrors.PsuError, match="no room within 128 MiB"):
            mirrors._choose_far(process, FAR_ARCH, m, 0, PAGE, [])
        taken[:] = [SimpleNamespace(start=0, end=0x6000000), SimpleNamespace(start=0x6010000, end=m.end)]
    promised: list[tuple[int, int]] = []
    for _ in range(4):
        run = mirrors._choose_far(process, FAR_ARCH, m, PAGE, 2 * PAGE, promised)
        assert run.end - run.start == PAGE and run.distance == run.start - PAGE & (1 << 64) - 1
        assert all(run.end <= a or b <= run.start for a, b in promised + [(t.start, t.end) for t in taken])
        assert last - run.start <= FAR_ARCH.reach and run.end - first <= FAR_ARCH.reach
        promised.append((run.start, run.end))
