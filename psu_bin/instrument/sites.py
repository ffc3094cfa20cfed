"""Direct calls that stay as they are in the file: attach turns them before their function's first patch.

A call through a stub costs a taken branch more, and in a large program that is 5 to 15% of the time (the branch predictor
remembers so many, see docs/DESIGN.md).  So calls and tail calls whose instruction one store can change while others execute it
go on to the function's entry.  The descriptor says where they are.  Before the function gets its first patch, the agent
*turns* every one of them to a stub (attach/turning.py, shim/turn.c), and from then on the slot decides, as it does for everybody
who has the function's address.  So I1 holds whenever it matters: while a function has a version other than its original, no
path leads to its entry but through its slot.

    call f               until f's first patch: e8 rel32, leads to f
    call f + k * 2^24    from then on: only the highest byte of rel32 is another one (x86-64)
    bl   f.stub          (AArch64: one instruction is one word)

On x86-64 a displacement has no alignment, and a store across two words could be seen half done.  Steps of 16 MiB change its
highest byte only; what lies there is a stub for just these calls, made when it is needed (attach/mirrors.py).  So it is, near
the code, in a module whose table of stubs is out of reach (descriptor.MODULE_FAR).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary
from psu_bin.instrument.plan_types import Detour, Edit, PlannedFunction


def find(binary: Binary, arch: Arch, planned: list[PlannedFunction], detours: tuple[Detour, ...], edits: list[Edit],
         flags: int) -> tuple[tuple[int, int], ...]:
    """(address of the field, function) of the direct calls of planned functions that need no edit, ascending.

    flags: the module's."""
    form = arch.site_form
    room = len(form.stub(0, 0, flags)) if form.step else 0
    entry = np.array([f.address for f in planned], dtype=np.int64)
    # Stubs stand as far apart as the entries; a detoured function's entry is a jump to its stub.
    open_ = np.append(np.diff(entry) >= room, True)
    open_[[d.function for d in detours if d.length]] = False
    moved = [(int(entry[d.function]) + d.skip, d.length) for d in detours if d.length]
    may_turn = turnable(binary, arch)
    out: set[tuple[int, int]] = set()
    for e in edits:
        if (e.call_site and e.kind.name == form.kind and open_[e.function]
                and not any(at <= e.at < at + length for at, length in moved) and may_turn(e.at)):
            out.add((e.at, e.function))
    return tuple(sorted(out))


def turnable(binary: Binary, arch: Arch) -> Callable[[int], bool]:
    """Whether attach may change the field of a direct call at an address while somebody executes it."""
    form = arch.site_form
    size = arch.fields[form.kind].size
    code = [(s.address, s.address + s.filesz) for s in binary.segments
            if s.type == elf.PT_LOAD and s.flags & (elf.PF_R | elf.PF_W | elf.PF_X) == elf.PF_R | elf.PF_X]
    return lambda at: any(low <= at and at + size <= high for low, high in code) and form.turnable(binary.bytes_at(at, size))
