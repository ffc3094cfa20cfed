"""Whether a thread that is blocked in a system call has the return addresses of all its calls in memory: Unwinding.keeps.

Needed where a call instruction leaves the return address in a register (AArch64: x30).  A function that calls another
has to put it away first, and compilers put it onto the stack; only the innermost one, a leaf, may have it in the register
still.  So the unwind rules (.eh_frame) of the code around the system call decide, for that one instruction.

They are believed where they say that the return address is in memory, and nowhere else: no rules, rules in another form
than compilers write, a signal frame, injected code: then nothing is known.  Two things make them trustworthy there:

- The thread is behind a system call instruction, in the middle of a function as it were.  (It may be stopped anywhere, by
  a debugger or a control group; then the kernel says that it is in no system call.)
- They describe the ends of the function, too, by rows in which the return address is back in its register.  Clang before
  version 15 left those out: its rules are right at calls and wrong wherever no frame is left, or none was made.

Specification: Linux Standard Base 5, 10.6 (.eh_frame, .eh_frame_hdr).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from psu_bin.attach import cfi, target
from psu_bin.attach.process import Mapping, Process
from psu_bin.errors import PsuError

PT_GNU_EH_FRAME = 0x6474E550
MOST_TABLE = 1 << 26                          # bytes: a million functions have 8 MiB
PCREL_SDATA4, UDATA4, DATAREL_SDATA4 = 0x1B, 0x03, 0x3B              # DW_EH_PE_


class Rules(NamedTuple):
    """The unwind rules of one function, whose code is [start, end)."""
    start: int
    end: int
    rows: tuple[cfi.Row, ...]


class _Table(NamedTuple):
    """The search table of a loaded file: pairs (function, its FDE) relative to `base`, ascending."""
    base: int
    entries: tuple[tuple[int, int], ...]


class Unwinding:
    """The unwind rules of what is loaded in a process, read as they are asked for."""

    def __init__(self, process: Process, maps: tuple[Mapping, ...], system_call: bytes) -> None:
        self.process = process
        self.maps = maps
        self.system_call = system_call        # the instruction
        self._tables: dict[int, _Table | None] = {}
        self._kept: dict[int, bool] = {}

    def keeps(self, pc: int) -> bool:
        """Whether a thread blocked in a system call in front of `pc` has all its return addresses in memory."""
        if pc not in self._kept:
            self._kept[pc] = self._look(pc)
        return self._kept[pc]

    def _look(self, pc: int) -> bool:
        try:
            if self.process.read(pc - len(self.system_call), len(self.system_call)) != self.system_call:
                return False
            rules = self.rules(pc)
        except (PsuError, ValueError, IndexError, KeyError, struct.error):
            return False
        return rules is not None and in_memory(rules, pc - len(self.system_call), pc)

    def rules(self, pc: int) -> Rules | None:
        """Those of the function that `pc` is in, None where there are none.  Raises as its parts for odd ones."""
        m = next((m for m in self.maps if m.start <= pc < m.end and m.prot[2] == "x"), None)
        if m is None:
            return None
        first = next((x for x in reversed(self.maps) if x.start <= m.start and x.offset == 0
                      and (x.path, x.inode) == (m.path, m.inode)), None)
        if first is None:
            return None
        if first.start not in self._tables:
            self._tables[first.start] = self._table(first)
        table = self._tables[first.start]
        if table is None:
            return None
        entry = table.base + last_before(table.entries, pc - table.base)
        size = struct.unpack("<I", self.process.read(entry, 4))[0]
        if not 8 <= size <= 1 << 20:
            raise ValueError("length of an FDE")
        body = self.process.read(entry + 4, size)
        cie_at = entry + 4 - struct.unpack_from("<I", body)[0]
        size = struct.unpack("<I", self.process.read(cie_at, 4))[0]
        if not 8 <= size <= 1 << 20:
            raise ValueError("length of a CIE")
        return decode(entry, body, self.process.read(cie_at + 4, size), pc)

    def _table(self, first: Mapping) -> _Table | None:
        image = target.image(self.process, first, self.maps)
        where = next((s for s in image.segments if s[0] == PT_GNU_EH_FRAME), None) if image else None
        if image is None or where is None or not 12 <= where[2] <= MOST_TABLE:
            return None
        base = image.load_bias + where[1]
        return _Table(base, search_table(self.process.read(base, where[2])))


def search_table(data: bytes) -> tuple[tuple[int, int], ...]:
    """The pairs of an .eh_frame_hdr in the form that all linkers write.  Raises ValueError for another one."""
    if data[:4] != bytes((1, PCREL_SDATA4, UDATA4, DATAREL_SDATA4)):
        raise ValueError("an .eh_frame_hdr in another form")
    (count,) = struct.unpack_from("<I", data, 8)
    return tuple(struct.iter_unpack("<ii", data[12:12 + 8 * count]))


def last_before(entries: tuple[tuple[int, int], ...], at: int) -> int:
    """Where the FDE is of the last function that begins at or before `at`.  Raises IndexError: there is none."""
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if entries[middle][0] <= at else (low, middle)
    if not low:
        raise IndexError("no function there")
    return entries[low - 1][1]


def decode(entry: int, body: bytes, cie_body: bytes, pc: int) -> Rules | None:
    """The rules in an FDE at address `entry` and its CIE, both without their lengths; None when `pc` is not in its function.

    Raises ValueError, IndexError, KeyError or struct.error for what compilers do not write."""
    if cie_body[:4] != bytes(4) or cie_body[4] not in (1, 3):
        raise ValueError("a CIE in another form")
    cie = cfi.read_cie(cie_body, 4, len(cie_body))
    # R encoding, P personality, L language data, B signed by key B; not S: a signal frame.
    if cie.augmentation[:1] != "z" or set(cie.augmentation[1:]) - set("RPLB") or cie.encoding != PCREL_SDATA4:
        raise ValueError("a CIE in another form")
    distance, size = struct.unpack_from("<iI", body, 4)
    start = entry + 8 + distance
    if not start <= pc < start + size:
        return None
    return Rules(start, start + size, cfi.run(body, cfi.past_augmentation(cie, body, 12), len(body), start, cie))


def in_memory(rules: Rules, *places: int) -> bool:
    """Whether the return address is in memory at each of `places`, by rules that describe the function's ends, too."""
    saved = [row.register >= 0 and row.saved is not None and row.saved < 0 for row in rules.rows]
    if True not in saved or all(saved[saved.index(True):]):
        return False
    for at in places:
        if not rules.start <= at < rules.end:
            return False
        if not [s for s, row in zip(saved, rules.rows) if row.start <= at][-1]:
            return False
    return True
