"""The symbols of a module that a patch can bind to, for the descriptor.

Static ones included, with the source file that tells two of one name apart.  A static local variable has a number that
the compiler made up (`name.N`), which differs from build to build; the functions that refer to it identify it.  Who calls
a copy that the compiler made of a function (`f.isra.0`) is noted, because a new version of the function does not reach it.
"""

from __future__ import annotations

import re

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code
from psu_bin.descriptor import (BIND_GLOBAL, BIND_LOCAL, BIND_WEAK, KIND_FUNCTION, KIND_IFUNC, KIND_NOTYPE, KIND_OBJECT,
                                KIND_TLS, NO_FILE, NO_FUNCTION, Symbol)
from psu_bin.elf import (ET_EXEC, SHN_LORESERVE, SHN_UNDEF, STB_LOCAL, STB_WEAK, STT_COMMON, STT_FUNC, STT_GNU_IFUNC,
                         STT_NOTYPE, STT_OBJECT, STT_TLS, Binary, SymbolTable, code_mark)
from psu_bin.instrument import functions as function_list
from psu_bin.instrument.functions import Functions, base_name
from psu_bin.instrument.plan_types import Plan

_KINDS = {STT_NOTYPE: KIND_NOTYPE, STT_OBJECT: KIND_OBJECT, STT_FUNC: KIND_FUNCTION, STT_COMMON: KIND_OBJECT,
          STT_TLS: KIND_TLS, STT_GNU_IFUNC: KIND_IFUNC}
_STATIC_LOCAL = re.compile(r"\.\d+$")
_COPY = re.compile(r"\.(part|isra|constprop|clone)(\.|$)")


def _rows(table: SymbolTable) -> np.ndarray:
    """The numbers of the symbols that a patch can bind to."""
    e = table.entries
    kind = e["st_info"] & 15
    placed = (e["st_shndx"] != SHN_UNDEF) & (e["st_shndx"] < SHN_LORESERVE)
    return np.flatnonzero(placed & np.isin(kind, list(_KINDS)) & (e["st_name"] != 0))


def collect(binary: Binary, plan: Plan, debug: Binary | None) -> tuple[tuple[Symbol, ...], tuple[str, ...]]:
    """(symbols ascending by address, source files that they name): everything a patch for `binary` may bind to."""
    number = {f.address: i for i, f in enumerate(plan.functions)}
    files: dict[str, int] = {}
    seen: set[tuple[str, int, int, bool]] = set()
    found: list[Symbol] = []
    for table in function_list.tables(binary, debug):
        e = table.entries
        owner = function_list.files_of(table)
        for i in _rows(table).tolist():
            name = base_name(table.name(i))
            kind, bind = _KINDS[int(e["st_info"][i]) & 15], int(e["st_info"][i]) >> 4
            address, local = int(e["st_value"][i]), bind == STB_LOCAL
            file = files.setdefault(table.name(int(owner[i])), len(files)) if local and owner[i] >= 0 else NO_FILE
            if not name or local and kind == KIND_NOTYPE and code_mark(name) or (name, kind, address, local) in seen:
                continue
            seen.add((name, kind, address, local))
            bound = BIND_LOCAL if local else BIND_WEAK if bind == STB_WEAK else BIND_GLOBAL
            function = number.get(address, NO_FUNCTION) if kind in (KIND_FUNCTION, KIND_NOTYPE) else NO_FUNCTION
            found.append(Symbol(name, kind, bound, address, int(e["st_size"][i]), function, file))
    found.sort(key=lambda s: (s.address, s.kind, s.bind, s.name))
    at_entry: dict[int, int] = {}
    for i, s in enumerate(found):
        if s.kind == KIND_FUNCTION:
            at_entry.setdefault(s.address, i)
    users = dict(plan.users)
    for i, s in enumerate(found):
        if s.address in users and (s.bind == BIND_LOCAL and s.kind in (KIND_OBJECT, KIND_TLS)
                                   or s.kind == KIND_FUNCTION and _COPY.search(s.name)):
            who = tuple(sorted(at_entry[a] for a in users[s.address] if a in at_entry))
            found[i] = Symbol(s.name, s.kind, s.bind, s.address, s.size, s.function, s.file, who)
    return tuple(found), tuple(files)


def users(binary: Binary, arch: Arch, known: Functions, code: Code,
          debug: Binary | None) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(address of a static local variable or of a copy of a function, entries of the functions that refer to it),
    ascending."""
    spans = {(e, e + 1) for e, names in zip(known.entry.tolist(), known.aliases) if any(map(_COPY.search, names))}
    for table in function_list.tables(binary, debug)[:1]:
        e = table.entries
        kind, bind = e["st_info"] & 15, e["st_info"] >> 4
        rows = _rows(table)
        for i in rows[(kind[rows] == STT_OBJECT) & (bind[rows] == STB_LOCAL)].tolist():
            if e["st_value"][i] < 1 << 62 and e["st_size"][i] < 1 << 62 and _STATIC_LOCAL.search(table.name(i)):
                spans.add((int(e["st_value"][i]), int(e["st_value"][i]) + max(int(e["st_size"][i]), 1)))
    if not spans:
        return ()
    ordered = np.array(sorted(spans), dtype=np.int64)
    at, target = np.flatnonzero(code.target != NONE), code.target[code.target != NONE]
    if binary.type == ET_EXEC:
        owner, _, _, value = arch.scan.absolutes(code)
        at, target = np.concatenate([at, owner]), np.concatenate([target, value])
    which = np.searchsorted(ordered[:, 0], target, side="right") - 1
    inside = (which >= 0) & (target < ordered[which.clip(0), 1])
    who = known.holding(code.address[at[inside]])
    pairs = np.unique(np.stack([which[inside], who], axis=1)[who >= 0], axis=0)
    out: dict[int, list[int]] = {}
    for variable, f in pairs.tolist():
        out.setdefault(int(ordered[variable, 0]), []).append(int(known.entry[f]))
    return tuple((address, tuple(out[address])) for address in sorted(out))
