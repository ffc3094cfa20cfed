"""Entry detours: whether a function's first instructions can move away to make room for a jump to its stub.

For a function with a reference that no edit can reroute (a 2-byte jump, a word that may be a pointer).  It must be
certain that nothing leads into the middle of the bytes that the jump replaces, that the moved instructions mean the
same elsewhere, and that unwinding through them works.  Where it is not, the function is not updatable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Kind, Moved
from psu_bin.elf import ET_EXEC, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, Binary
from psu_bin.instrument import unwind
from psu_bin.instrument.functions import Functions
from psu_bin.instrument.plan_types import Detour, Reroute
from psu_bin.instrument.references import References, unclear, words_at
from psu_bin.instrument.tables import Tables
from psu_bin.instrument.unwind import Cie, Frames

FACTOR = -8              # of data, in the CIE that fde.py writes


@dataclass(frozen=True)
class Ground:
    """What the decision rests on, made once for a module."""
    binary: Binary
    arch: Arch
    functions: Functions
    frames: Frames
    code: Code
    references: References
    tables: Tables
    edited: np.ndarray       # int64: addresses of fields that edits reroute
    named: np.ndarray        # int64, ascending: every address in code that anything may refer to
    vague: np.ndarray        # stretches of code that could not be read


def survey(binary: Binary, arch: Arch, functions: Functions, frames: Frames, code: Code, references: References,
           tables: Tables) -> Ground:
    """Collect every address that code or data may refer to: exactly where it can be known, all that is possible else."""
    named = [code.target[code.target != NONE], binary.rela["r_addend"], words_at(binary, binary.relr),
             tables.target, functions.labels]
    if binary.dynsym is not None:
        named.append(binary.dynsym.entries["st_value"].astype(np.int64))
    vague = unclear(code)
    for start, end in vague.tolist():
        offset = binary.offset_of(start)
        named.append(arch.scan.possible_targets(binary.data[offset:offset + end - start], start, functions.entry))
    if binary.type == ET_EXEC and len(functions.entry):
        named.append(arch.scan.absolutes(code)[3])
        low, high = functions.entry[0], functions.end.max()
        for s in binary.sections:
            if s.flags & SHF_ALLOC and not s.flags & SHF_EXECINSTR and s.type != SHT_NOBITS:
                for width, step in ((8, 1), (4, 4)):
                    data = binary.contents(s)
                    if len(data) >= width:
                        words: np.ndarray = np.ndarray(((len(data) - width) // step + 1,), dtype=f"<i{width}",
                                                       buffer=data, strides=(step,))
                        named.append(words[(words >= low) & (words < high)].astype(np.int64))
    return Ground(binary, arch, functions, frames, code, references, tables,
                  np.array([e.at for e in references.edits if e.kind.name in arch.fields and e.kind != Reroute.RELR_WORD],
                           dtype=np.int64),
                  np.unique(np.concatenate(named).astype(np.int64)), vague)


def make(g: Ground, function: int) -> Detour | str:
    """The detour of `function` (an index of Functions), its number still that index; or why there can be none."""
    entry, end = int(g.functions.entry[function]), int(g.functions.end[function])
    if function in g.references.loops:
        return "jumps back to its own entry"
    fde = int(g.frames.covering(np.array([entry]))[0])
    if ((g.vague[:, 0] < end) & (g.vague[:, 1] > entry)).any():
        return "contains bytes that could not be read as code"
    first = int(g.code.at(np.array([entry]))[0])
    if first == NONE:
        return "its entry could not be read as code"
    if g.tables.puzzling(g.functions, g.code, function):
        return "has a jump table that was not understood"
    limit = _room(g, first, entry, end)
    offset = g.binary.offset_of(entry)
    data = g.binary.data[offset:offset + limit - entry]
    # A landing pad belongs to a call where it is: in a copy it would not be found.
    calls_may_move = fde < 0 or g.frames.cie[fde].lsda == unwind.OMIT
    moved = g.arch.scan.movable(g.code, first, entry, limit, data, calls_may_move)
    if isinstance(moved, str):
        return moved
    start, stop = entry + moved.skip, entry + moved.skip + moved.length
    low, high = np.searchsorted(g.named, [start + (moved.skip == 0), stop])
    if low != high:
        return f"something may refer to {int(g.named[low]):#x}, behind its entry"
    if moved.grown and ((g.edited >= start) & (g.edited < stop)).any():
        return "has a short jump and a reference to another function in its first bytes"
    cfi = _cfi(g, fde, entry, moved)
    if cfi is None:
        return "its unwind information cannot be moved"
    return Detour(function, moved.length, moved.copy, moved.fixups, moved.skip, cfi, moved.head)


def _room(g: Ground, first: int, entry: int, end: int) -> int:
    """Where the bytes that the jump may use end: the function, and the padding between it and what follows."""
    following = np.searchsorted(g.functions.entry, entry, side="right")
    stop = int(g.functions.entry[following]) if following < len(g.functions.entry) else end + 16
    i = int(np.searchsorted(g.code.address, end))
    while (end < stop and i < len(g.code.address) and g.code.address[i] == end
           and g.code.kind[i] in (Kind.NOP, Kind.TRAP)):
        end += int(g.code.length[i])
        i += 1
    return min(end, stop)


def _cfi(g: Ground, fde: int, entry: int, moved: Moved) -> bytes | None:
    """The call frame instructions for the moved bytes of the function at `entry`, which `fde` describes (-1: nothing
    does); None where they cannot be said."""
    if fde < 0:
        return b""
    cie = g.frames.cie[fde]
    if int(g.frames.begin[fde]) != entry or not _standard(g.arch, cie):
        return None
    out, program, at, where, told = b"", g.frames.program[fde], 0, 0, 0
    while at < len(program):
        op, end = program[at], at + 1
        if op >> 6 == 1:
            where += (op & 0x3F) * cie.code_factor
        elif op in (0x02, 0x03, 0x04):
            end += 1 << op - 2
            where += int.from_bytes(program[at + 1:end], "little") * cie.code_factor
        elif op != 0:
            if op not in (0x0C, 0x0D, 0x0E, 0x2D) and op >> 6 != 2 or where <= moved.skip and where:
                return None          # nothing else belongs to the first instructions of a function
            for _ in range(2 if op == 0x0C else 0 if op == 0x2D else 1):      # 2D: the return address is signed (AArch64)
                while program[end] >= 0x80:
                    end += 1
                end += 1
            rule = program[at:end]
            if op >> 6 == 2 and cie.data_factor != FACTOR:
                value = unwind.uleb(program, at + 1)[0] * cie.data_factor
                if value % FACTOR or value // FACTOR >= 0x80:
                    return None
                rule = bytes((op, value // FACTOR))
            place = moved.place(where - moved.skip)
            if place > told:
                out += b"\x02" + bytes([place - told])     # DW_CFA_advance_loc1
                told = place
            out += rule
        if where > moved.skip + moved.length:
            break
        at = end
    return out


def _standard(arch: Arch, cie: Cie) -> bool:
    """Whether a frame begins as a call leaves it."""
    return (not cie.signal and cie.return_register == arch.return_column
            and cie.program.rstrip(b"\0") == arch.stub_cfi.rstrip(b"\0"))
