"""Which operands of code refer to a range of addresses: asked about what is to move, when plan.py has no answer.

First a quick look without decoding; it misses nothing, and nearly always finds nothing.  What it finds is decoded: an
accident among the bytes of other instructions does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.arch.code import Field, Region, Use
from psu_bin.elf import Binary, Section
from psu_bin.instrument import unwind


@dataclass(frozen=True)
class Operand:
    """A field in code that leads to `target`."""
    at: int               # its address
    size: int             # bytes; 0: several instructions make the address together
    relative: bool        # else an absolute address
    target: int


def referring(binary: Binary, arch: Arch, low: int, high: int) -> list[Operand]:
    """The operands that refer to [low, high); absolute ones only in a position-dependent file."""
    fixed = binary.type == elf.ET_EXEC
    found: list[Operand] = []
    for s in binary.sections:
        if not s.flags & elf.SHF_EXECINSTR or s.type == elf.SHT_NOBITS or not s.flags & elf.SHF_ALLOC:
            continue
        if arch.may_refer(binary.contents(s), s.address, low, high, fixed):
            found += _decoded(binary, arch, s, low, high, fixed)
    return found


def _decoded(binary: Binary, arch: Arch, s: Section, low: int, high: int, fixed: bool) -> list[Operand]:
    frames = unwind.read(binary)
    known = np.concatenate([frames.begin, frames.end])
    starts = np.unique(np.concatenate([[s.address], known[(known > s.address) & (known < s.end)]])).astype(np.int64)
    code = arch.scan.decode((Region(s.address, binary.contents(s), starts, np.append(starts[1:], s.end)),))
    hit = np.flatnonzero((code.target >= low) & (code.target < high) & (code.use != Use.FLOW)
                         & (code.field != Field.NONE))
    out = [Operand(int(code.address[i] + code.field_at[i]), 4 if code.field[i] == Field.REL32 else 0, True,
                   int(code.target[i])) for i in hit]
    if fixed:
        _, at, size, value = arch.scan.absolutes(code)
        out += [Operand(int(at[i]), int(size[i]), False, int(value[i]))
                for i in np.flatnonzero((value >= low) & (value < high))]
    return out
