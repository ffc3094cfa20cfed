"""Near stubs: a NOP in the padding before a function, which direct calls run through on their way into it.

A call through the stub of the table costs a taken branch more, and in a large program that is 15% of the time (the branch
predictor remembers so many, see docs/DESIGN.md).  A near stub costs nothing while its function has no patch: it is *open*,
falls through into the function.  Attach *closes* it before the function's first patch: one aligned store makes it a jump
to the stub of the table, and from then on the slot decides, as it does for everybody who has the function's address.

    prev:   ...                         prev:   ...
            ret                                 ret
            nop            <- calls             jmp stub       <- calls      (or jmp *slot(%rip))
    f:      push %rbp                   f:      push %rbp

Only padding is used that nothing else refers to, and only where the store is whole for whoever executes it
(Arch.store_unit).  The function's unwind row is made to begin at the near stub: an unwinder, or a profiler's signal, may
look just there.  Functions with landing pads are left alone, as their tables count from where the row begins.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from psu_bin.arch import Arch, NearForm
from psu_bin.arch.code import Code, Kind
from psu_bin.elf import Binary
from psu_bin.instrument import functions
from psu_bin.instrument.functions import Functions, Role
from psu_bin.instrument.plan_types import Detour, NearStub, Write
from psu_bin.instrument.unwind import Frames

FARTHEST = 256               # bytes of padding that are looked at
_PCREL_SDATA4 = 0x1B


def find(binary: Binary, arch: Arch, known: Functions, frames: Frames, code: Code, named: np.ndarray,
         planned: Mapping[int, Detour | None], flags: int) -> dict[int, NearStub]:
    """The near stubs of those functions of `planned` (indices in `known`) that can have one.

    planned: the updatable functions, with the detours of those that have one: these need no near stub, and may reach into
    the padding behind them.
    named: every address in code that anything may refer to, ascending.
    flags: the module's."""
    forms = arch.near_forms(flags)
    moved = [int(known.entry[f]) + d.skip + d.length for f, d in planned.items() if d]
    ends = np.sort(np.concatenate([known.end, frames.end, np.array(moved, dtype=np.int64)]))
    sections = functions.executable(binary)
    out: dict[int, NearStub] = {}
    for f in (f for f, d in planned.items() if d is None):
        entry = int(known.entry[f])
        section = next((s for s in sections if s.address < entry < s.end), None)
        if section is None:
            continue
        first = int(np.searchsorted(ends, entry, side="right")) - 1
        start = max(int(ends[first]) if first >= 0 else 0, section.address)
        if start == entry and _after_start_up(known, entry):
            start = _last_end(code, entry)
        if not start < entry <= start + FARTHEST:
            continue
        padding = binary.bytes_at(start, entry - start)
        if not arch.is_padding(padding):
            continue
        for n in reversed(range(len(forms))):
            writes = _writes(binary, arch, known, frames, entry, named, padding, forms[n])
            if writes is not None:
                out[f] = NearStub(f, writes[0].at, n > 0, writes)
                break
    return out


def _after_start_up(known: Functions, entry: int) -> bool:
    """Whether the C library's start-up code comes before: it has neither sizes nor unwind rows, and so no known end."""
    before = int(np.searchsorted(known.entry, entry)) - 1
    return before >= 0 and known.role[before] == Role.STARTUP


def _last_end(code: Code, entry: int) -> int:
    """The address behind a jump or return from where there are only NOPs up to the entry, or the entry itself."""
    i, end = int(code.at(np.array([entry]))[0]), entry
    while i > 0 and entry - end < FARTHEST and int(code.address[i - 1] + code.length[i - 1]) == end:
        i -= 1
        if code.kind[i] in (Kind.JUMP, Kind.RETURN, Kind.JUMP_INDIRECT):
            return end
        if code.kind[i] != Kind.NOP:
            break
        end = int(code.address[i])
    return entry


def _writes(binary: Binary, arch: Arch, known: Functions, frames: Frames, entry: int, named: np.ndarray, padding: bytes,
            form: NearForm) -> tuple[Write, ...] | None:
    """What makes a near stub of the last of the padding in front of a function; None where that cannot be."""
    size = len(form.nop)
    at = entry - size
    if size > len(padding) or at // arch.store_unit != (entry - 1) // arch.store_unit:
        return None
    # Somebody may name the first byte (GCC's -fpatchable-function-entry does): who jumps there is well served.
    if np.searchsorted(named, at, side="right") != np.searchsorted(named, entry) or not _unused(known, frames, at, entry):
        return None
    row = _row(binary, frames, entry, size)
    return None if row is None else (Write(at, padding[-size:], form.nop), *row)


def _unused(known: Functions, frames: Frames, start: int, end: int) -> bool:
    """No function's code and no unwind row reaches into [start, end); start-up code was seen to end before."""
    inside = np.arange(start, end)
    holder = known.holding(inside)
    return bool(((holder < 0) | (known.role[holder.clip(0)] == Role.STARTUP)).all() and (frames.covering(inside) < 0).all())


def _row(binary: Binary, frames: Frames, entry: int, size: int) -> tuple[Write, ...] | None:
    """The changes that make the function's unwind row begin `size` bytes earlier; None where that is not possible."""
    fde = int(frames.covering(np.array([entry]))[0])
    if fde < 0:
        return ()
    cie, field = frames.cie[fde], int(frames.field[fde])
    if int(frames.begin[fde]) != entry or cie.lsda or cie.encoding != _PCREL_SDATA4:
        return None
    old = binary.bytes_at(field, 8)
    distance, length = struct.unpack("<iI", old)
    row = Write(field, old, struct.pack("<iI", distance - size, length + size))
    program, at = frames.program[fde], int(frames.program_at[fde])
    if not program.rstrip(b"\0"):
        return (row,)
    delayed = _delayed(program, size // cie.code_factor)
    if delayed is None or size % cie.code_factor:
        return None
    return row, Write(at, program[:len(delayed)], delayed)


def _delayed(program: bytes, steps: int) -> bytes | None:
    """What call frame instructions begin with, whose first one is DW_CFA_advance_loc in one of its forms, when that goes
    `steps` farther; None where it is another one, or cannot."""
    if program[0] & 0xC0 == 0x40 and (program[0] & 0x3F) + steps <= 0x3F:
        return bytes((program[0] + steps,))
    form = {2: "<BB", 3: "<BH", 4: "<BI"}.get(program[0])
    if form is None:
        return None
    op, step = struct.unpack_from(form, program)
    return struct.pack(form, op, step + steps) if step + steps < 1 << 8 * (struct.calcsize(form) - 1) else None
