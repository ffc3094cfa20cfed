"""The functions of a module: where each begins and ends, what it is called, and whether it can be one to update.

Names come from `.symtab`, or the separate debug file's, and `.dynsym`; extents from symbol sizes and the unwind table.
Several symbols at one address are one function.  What compilers split off (`name.cold`) belongs to the function it was
split from: a jump between the two is a jump inside the function.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from psu_bin.elf import (SHF_ALLOC, SHF_EXECINSTR, SHN_LORESERVE, SHN_UNDEF, SHT_NOBITS, STB_LOCAL, STB_WEAK, STT_FILE,
                         STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT, Binary, Section, SymbolTable, code_mark)
from psu_bin.errors import PsuError
from psu_bin.instrument.debuglink import usual_place
from psu_bin.instrument.unwind import Frames

_COLD = re.compile(r"\.cold(\.\d+)?$")
_STARTUP = frozenset({
    "_start", "_init", "_fini", "__start", "_start_c", "__libc_csu_init", "__libc_csu_fini", "_dl_relocate_static_pie",
    "deregister_tm_clones", "register_tm_clones", "__do_global_dtors_aux", "__do_global_ctors_aux", "frame_dummy",
    "__do_init", "__do_fini", "__rel_iplt_start", "__gmon_start__"})


_HUGE = 1 << 48       # no code is as large: bounds what a damaged symbol can say


class Role(enum.IntEnum):
    FUNCTION = 0    # can be one to update
    PART = 1        # split off another function
    STARTUP = 2     # C runtime start-up code
    RESOLVER = 3    # chooses the implementation of an indirect function
    INSIDE = 4      # its entry lies inside another function
    THUNK = 5       # a compiler's jump to an address in a register
    EMPTY = 6       # no code


REASONS = {
    Role.STARTUP: "C runtime start-up code",
    Role.RESOLVER: "the resolver of an indirect function (IFUNC)",
    Role.INSIDE: "its entry lies inside another function",
    Role.THUNK: "a thunk that a compiler or linker made",
    Role.EMPTY: "has no code",
}


@dataclass(frozen=True)
class Functions:
    """The functions of a module, ascending by entry."""
    entry: np.ndarray               # int64
    end: np.ndarray                 # int64: after the last byte
    role: np.ndarray                # uint8, Role
    owner: np.ndarray               # int64: index of the function that a PART belongs to (itself for others)
    names: tuple[str, ...]          # the name it goes by: a global one before a weak one before a local one
    aliases: tuple[tuple[str, ...], ...]  # all names
    labels: np.ndarray              # int64: other addresses in code that symbols name, ascending
    islands: np.ndarray             # int64 (n, 2): data in executable sections: [start, end)

    def index(self, addresses: np.ndarray) -> np.ndarray:
        """The function that begins at each address, or -1."""
        if not len(self.entry):
            return np.full(len(addresses), -1, dtype=np.int64)
        at = np.searchsorted(self.entry, addresses).clip(0, len(self.entry) - 1)
        return np.where(self.entry[at] == addresses, at, -1)

    def holding(self, addresses: np.ndarray) -> np.ndarray:
        """The function (owner of a part) whose code each address is in, or -1."""
        if not len(self.entry):
            return np.full(len(addresses), -1, dtype=np.int64)
        at = np.searchsorted(self.entry, addresses, side="right") - 1
        return np.where((at >= 0) & (addresses < self.end[at.clip(0)]), self.owner[at.clip(0)], -1)


def executable(binary: Binary) -> tuple[Section, ...]:
    """The sections with code, ascending by address."""
    return tuple(sorted((s for s in binary.sections if s.flags & SHF_ALLOC and s.flags & SHF_EXECINSTR
                         and s.type != SHT_NOBITS and s.size), key=lambda s: s.address))


def base_name(name: str) -> str:
    """A symbol's name without the version that linkers append (`name@@VERSION`)."""
    at = name.find("@@")
    return name[:at] if at > 0 else name


def tables(binary: Binary, debug: Binary | None) -> tuple[SymbolTable, ...]:
    """The symbol tables that name things in `binary`, the fullest first."""
    full = binary.symtab or (debug.symtab if debug else None)
    return tuple(t for t in (full, binary.dynsym) if t is not None)


def files_of(table: SymbolTable) -> np.ndarray:
    """For each symbol, the index of the STT_FILE symbol that it follows, or -1; it means something for locals only."""
    where = np.arange(len(table.entries))
    is_file = (table.entries["st_info"] & 15) == STT_FILE
    return np.maximum.accumulate(np.where(is_file, where, -1)) if len(where) else where


class _Name(NamedTuple):
    """One function symbol."""
    rank: int        # 0 global, 1 weak, 2 local: the lowest gives the function its name
    order: int       # which table it is from
    name: str
    file: int        # of a local symbol: index of its STT_FILE symbol, else -1
    indirect: bool   # STT_GNU_IFUNC


def find(binary: Binary, frames: Frames, resolvers: np.ndarray, debug: Binary | None,
         is_thunk: Callable[[str], bool]) -> Functions:
    """The functions of `binary`.  resolvers: entries that IRELATIVE relocations name; is_thunk: whether a name is a thunk's.

    Raises PsuError when no symbol table names any.
    """
    starts = np.array([s.address for s in executable(binary)], dtype=np.int64)
    ends = np.array([s.end for s in executable(binary)], dtype=np.int64)
    found: dict[int, list[_Name]] = {}
    sizes: dict[int, int] = {}
    labels: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    islands: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    for order, table in enumerate(tables(binary, debug)):
        e = table.entries
        kind, bind = e["st_info"] & 15, e["st_info"] >> 4
        value, size = e["st_value"].astype(np.int64), np.minimum(e["st_size"], _HUGE).astype(np.int64)
        section = np.searchsorted(starts, value, side="right") - 1
        defined = (e["st_shndx"] != SHN_UNDEF) & (e["st_shndx"] < SHN_LORESERVE) & (section >= 0)
        defined[defined] &= value[defined] < ends[section[defined]]
        files = files_of(table)
        for i in np.flatnonzero(defined & ((kind == STT_FUNC) | (kind == STT_GNU_IFUNC))).tolist():
            rank = 2 if bind[i] == STB_LOCAL else 1 if bind[i] == STB_WEAK else 0
            at = int(value[i])
            found.setdefault(at, []).append(_Name(rank, order, base_name(table.name(i)), int(files[i]) if rank == 2 else -1,
                                                  kind[i] == STT_GNU_IFUNC))
            sizes[at] = max(sizes.get(at, 0), int(size[i]))
        untyped = np.flatnonzero(defined & (kind == STT_NOTYPE))
        marks = np.array([code_mark(table.name(i)) if bind[i] == STB_LOCAL else "" for i in untyped.tolist()], dtype="U1")
        labels.append(value[untyped[marks == ""]])
        islands.append(_between_marks(value[untyped], marks, starts, ends))
        data = np.flatnonzero(defined & (kind == STT_OBJECT) & (size > 0))
        islands.append(np.stack([value[data], value[data] + size[data]], axis=1))
    if not found:
        usual = usual_place(binary)
        raise PsuError(binary.path, "no function symbols", "it was stripped: give its separate debug file with --debug-file"
                       + (f" {usual}" if usual else ""))
    entry = np.array(sorted(found), dtype=np.int64)
    end = _ends(entry, np.array([sizes[at] for at in entry.tolist()], dtype=np.int64),
                ends[np.searchsorted(starts, entry, side="right") - 1], frames)
    groups = [sorted(found[at]) for at in entry.tolist()]
    role, owner = _roles(entry, end, groups, resolvers, is_thunk)
    island = np.concatenate(islands)
    return Functions(entry, end, role, owner, tuple(g[0].name for g in groups),
                     tuple(tuple(dict.fromkeys(n.name for n in g)) for g in groups),
                     np.setdiff1d(np.concatenate(labels), entry), island[np.argsort(island[:, 0])])


def _between_marks(address: np.ndarray, marks: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[start, end) of the data between code that mapping symbols show: from a $d to the next $x or the section's end."""
    some = marks != ""
    address, marks = address[some], marks[some]
    order = np.lexsort((marks == "x", address))             # where both are, the code mark counts
    address, marks = address[order], marks[order]
    stop = np.append(address[1:], np.int64(_HUGE))
    data = np.flatnonzero((marks == "d") & (stop > address))
    limit = ends[(np.searchsorted(starts, address[data], side="right") - 1).clip(0)]
    return np.stack([address[data], np.minimum(stop[data], limit)], axis=1)


def _roles(entry: np.ndarray, end: np.ndarray, groups: list[list[_Name]], resolvers: np.ndarray,
           is_thunk: Callable[[str], bool]) -> tuple[np.ndarray, np.ndarray]:
    """The role of each function, and the function that each belongs to."""
    role = np.zeros(len(entry), dtype=np.uint8)
    reach = np.maximum.accumulate(np.concatenate([[0], end]))[:-1]
    role[entry < reach] = Role.INSIDE
    role[end <= entry] = Role.EMPTY
    role[np.isin(entry, resolvers)] = Role.RESOLVER
    owner = np.arange(len(entry))
    by_name: dict[tuple[str, int], int] = {}
    for i, group in enumerate(groups):
        for n in group:
            by_name.setdefault((n.name, group[0].file), i)
            by_name.setdefault((n.name, -1), i)
    for i, group in enumerate(groups):
        name, file = group[0].name, group[0].file
        if any(n.indirect for n in group):
            role[i] = Role.RESOLVER
        elif name in _STARTUP:
            role[i] = Role.STARTUP
        elif is_thunk(name):
            role[i] = Role.THUNK
        elif ".cold" in name and _COLD.search(name):
            role[i] = Role.PART
            parent = _COLD.sub("", name)
            owner[i] = by_name.get((parent, file), by_name.get((parent, -1), i))
    return role, owner


def _ends(entry: np.ndarray, size: np.ndarray, limit: np.ndarray, frames: Frames) -> np.ndarray:
    """Where each function ends.  A symbol without a size (assembly) ends with its unwind entry, or at the next one."""
    end = np.minimum(entry + size, limit)
    bare = np.flatnonzero(size == 0)
    if len(bare):
        following = np.append(entry[1:], limit[-1] if len(limit) else 0)
        fde = frames.covering(entry[bare])
        exact = (fde >= 0) & (frames.begin[fde.clip(0)] == entry[bare]) if len(frames.begin) else fde >= 0
        stop = np.where(exact, frames.end[fde.clip(0)], limit[bare]) if len(frames.begin) else limit[bare]
        end[bare] = np.minimum(np.minimum(stop, following[bare]), limit[bare])
    return end
