"""Jump tables: where the indirect jumps of `switch` statements and computed gotos can lead.

Position-independent tables hold 4-byte distances from the table's own start, whose address the function computes;
others hold 8-byte addresses.  Every address that code computes in read-only data is tried as the start of a table, as far
as its entries lead to instructions.  A label inside a function whose address is in data (computed gotos) or computed by
code counts as an entry, too.  More than there is does no harm to those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Kind, Use
from psu_bin.elf import ET_EXEC, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, Binary
from psu_bin.instrument.functions import Functions
from psu_bin.instrument.references import data_sections, words_at

_LONGEST = 1 << 16      # entries of one table


@dataclass(frozen=True)
class Tables:
    """Entries of possible jump tables: instruction `source` names a table with a way to `target`, or is that target."""
    source: np.ndarray      # int64: index of an instruction in the function that may jump so
    function: np.ndarray    # int64: index of Functions that it is in, or -1
    target: np.ndarray      # int64: an address where an instruction begins
    scaled: np.ndarray      # bool, one an instruction: reads a table entry

    def puzzling(self, functions: Functions, code: Code, function: int) -> bool:
        """Whether a function jumps by a table that was not found."""
        low, high = np.searchsorted(code.address, [functions.entry[function], functions.end[function]])
        jumps = bool((code.kind[low:high] == Kind.JUMP_INDIRECT).any())
        return jumps and bool(self.scaled[low:high].any()) and not bool((self.function == function).any())


def find(binary: Binary, arch: Arch, functions: Functions, code: Code) -> Tables:
    """All possible table entries of the module."""
    scaled = arch.scan.scaled_loads(code)
    bases = code.use == Use.ADDRESS
    at = np.flatnonzero(bases)
    start, source = code.target[at], at
    if binary.type == ET_EXEC:
        owner, _, _, value = arch.scan.absolutes(code)
        start = np.concatenate([start, value])
        source = np.concatenate([source, owner])
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for s in binary.sections:
        if not s.flags & SHF_ALLOC or s.type == SHT_NOBITS or s.size < 4:
            continue
        mine = (start >= s.address) & (start + 4 <= s.end)
        if s.flags & SHF_EXECINSTR:
            mine &= code.at(start) == NONE
        base, who = start[mine], source[mine]
        data = binary.contents(s)
        words: np.ndarray = np.ndarray((len(data) - 3,), dtype="<i4", buffer=data, strides=(1,))
        wide: np.ndarray = np.ndarray((max(len(data) - 7, 0),), dtype="<i8", buffer=data, strides=(1,))
        pair = np.unique(np.stack([base, who], axis=1), axis=0) if len(base) else np.zeros((0, 2), np.int64)
        for values, size, relative in ((words, 4, True), (wide, 8, False)):
            base, who = pair[:, 0], pair[:, 1]
            for n in range(_LONGEST):
                where = base - s.address + n * size
                ok = where < len(values)
                base, who, where = base[ok], who[ok], where[ok]
                target = values[where].astype(np.int64) + (base if relative else 0)
                ok = code.at(target) != NONE
                base, who = base[ok], who[ok]
                if not len(base):
                    break
                found.append((who, target[ok]))
    found.append(arch.scan.jump_tables(code, lambda at: _behind(binary, at)))
    label = np.unique(np.concatenate([_labels(binary, arch, functions), start]))
    label = label[(functions.index(label) < 0) & (code.at(label) != NONE)]
    found.append((code.at(label), label))
    who = np.concatenate([f for f, _ in found])
    target = np.concatenate([t for _, t in found])
    return Tables(who, functions.holding(code.address[who]), target, scaled)


def _behind(binary: Binary, address: int) -> bytes:
    """What the file has from `address` to the end of its section; b"" outside of all loaded ones."""
    s = next((s for s in binary.sections if s.flags & SHF_ALLOC and s.type != SHT_NOBITS and s.holds(address)), None)
    return binary.contents(s)[address - s.address:] if s else b""


def _labels(binary: Binary, arch: Arch, functions: Functions) -> np.ndarray:
    """Addresses in code that data holds."""
    if binary.type != ET_EXEC:
        rela = binary.rela
        return np.concatenate([rela["r_addend"][rela["r_type"] == arch.relative], words_at(binary, binary.relr)])
    low, high = functions.entry.min(initial=0), functions.end.max(initial=0)
    out = [np.zeros(0, dtype=np.int64)]
    for s in data_sections(binary):
        words = np.frombuffer(binary.contents(s)[:s.size // 8 * 8], dtype="<i8")
        out.append(words[(words >= low) & (words < high)])
    return np.concatenate(out)
