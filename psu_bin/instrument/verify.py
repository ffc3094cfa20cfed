"""Reading the written file back, with nothing but the plan in hand: a defect of the writer must not reach a user.

Checked: every stub jumps through its slot, every slot holds its original, every edited reference leads to its stub, every
byte that no step had to change is as in the input, segments do not overlap, and the descriptor says what was planned.
"""

from __future__ import annotations

import numpy as np

from psu_bin import descriptor, elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument.plan_types import Plan, Reroute


def verify(before: Binary, arch: Arch, plan: Plan, data: bytes, where: str) -> None:
    """Raise PsuError when `data` is not the instrumented form of `before` that `plan` asks for."""
    after = Binary(data, where)

    def check(good: bool, what: str) -> None:
        if not good:
            raise PsuError(where, f"internal defect: {what}", "nothing was written; please report it")

    _segments(after, check)
    at = after.dyn(descriptor.DT_PSU)
    check(at is not None, "no descriptor")
    assert at is not None
    d = descriptor.decode(data[after.offset_of(at):], where)
    check([(f.name, f.address, f.size) for f in d.functions] == [(f.name, f.address, f.size) for f in plan.functions],
          "the descriptor names other functions")
    detours = {x.function: x for x in plan.detours}
    originals = _slots(after, arch, d)
    for i, f in enumerate(d.functions):
        stub = arch.stub(d.stub(i), d.slot(i), d.flags)
        there = after.offset_of(d.stub(i))
        check(data[there:there + len(stub)] == stub, f"the stub of {f.name}")
        check(originals[i] == f.original and (i in detours or f.original == f.address), f"the slot of {f.name}")
    rela, old_rela = after.rela, before.rela
    shift = len(rela) - len(old_rela)
    touched = np.zeros(len(before.data), dtype=bool)
    symtab = after.dyn(elf.DT_SYMTAB)
    for e in plan.edits:
        target = d.stub(e.function)
        name = d.functions[e.function].name
        if e.kind is Reroute.RELA_ADDEND:
            check(int(rela["r_addend"][e.at + shift]) == target, f"relocation {e.at} of {name}")
        elif e.kind is Reroute.DYNSYM:
            assert symtab is not None
            there = after.offset_of(symtab + 24 * e.at)
            check(int.from_bytes(data[there + 8:there + 16], "little") == target, f"dynamic symbol {e.at} of {name}")
        else:
            there = after.offset_of(e.at)
            size = 8 if e.kind in (Reroute.ABS64, Reroute.RELR_WORD) else 4
            value = int.from_bytes(data[there:there + size], "little")
            if e.kind is Reroute.REL32:
                value = e.at + 4 + (value - (1 << 32) if value >> 31 else value)
            check(value == target, f"the reference to {name} at {e.at:#x}")
            touched[there:there + size] = True
    for x in plan.detours:
        start = plan.functions[x.function].address + x.skip
        there = after.offset_of(start)
        jump = arch.jump(start, d.stub(x.function))
        check(data[there:there + len(jump)] == jump, f"the detour of {d.functions[x.function].name}")
        touched[there:there + x.length] = True
    _rest(before, after, touched, check)


def _segments(after: Binary, check) -> None:  # noqa: ANN001
    loads = [p for p in after.segments if p.type == elf.PT_LOAD]
    for a, b in zip(loads, loads[1:]):
        check(a.address + a.memsz <= b.address, f"segments {a.index} and {b.index} overlap")
    for p in loads:
        check((p.address - p.offset) % 4096 == 0, f"segment {p.index} is not congruent")
        check(p.offset + p.filesz <= len(after.data), f"segment {p.index} ends behind the file")
        check(not (p.flags & elf.PF_W and p.flags & elf.PF_X and p.address >= loads[-1].address),
              f"segment {p.index} is writable and executable")


def _slots(after: Binary, arch: Arch, d: descriptor.Descriptor) -> list[int]:
    """What each slot holds once the file is loaded at 0: through its relocation where it needs one."""
    count = len(d.functions)
    there = after.offset_of(d.slots)
    words = np.frombuffer(after.data, dtype="<u8", count=count, offset=there)
    if not d.flags & descriptor.MODULE_PIC:
        return [int(x) for x in words]
    relocated = {int(a) for a in after.relr}
    by_rela = {int(r["r_offset"]): int(r["r_addend"]) for r in after.rela[:count] if r["r_type"] == arch.relative}
    return [by_rela.get(d.slot(i), int(words[i]) if d.slot(i) in relocated else -1) for i in range(count)]


def _rest(before: Binary, after: Binary, touched: np.ndarray, check) -> None:  # noqa: ANN001
    """Loaded code and data are as they were, but for the references and what moved or is rewritten by design."""
    for s in before.sections:
        free = s.name in (".dynamic", ".dynsym", ".rela.dyn", ".relr.dyn", ".interp", ".note.psu") or not s.size
        if not s.flags & elf.SHF_ALLOC or s.type == elf.SHT_NOBITS or free or s.offset < 64 + 56 * after.phnum:
            continue
        old = np.frombuffer(before.data, dtype="u1", count=s.size, offset=s.offset)
        new = np.frombuffer(after.data, dtype="u1", count=s.size, offset=s.offset)
        wrong = np.flatnonzero((old != new) & ~touched[s.offset:s.offset + s.size])
        check(not len(wrong), f"{s.name} changed at {s.address + int(wrong[0]) if len(wrong) else 0:#x}")
