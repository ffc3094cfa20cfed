"""Every reference of a module to the entry of one of its functions.

Position-independent files tell where their pointers are (dynamic relocations), and code refers to code relative to
itself.  Position-dependent files do not, unless the linker kept its relocations (`--emit-relocs`): a word in data or
an operand in code that equals an entry may be a pointer or a number.  Such a reference is *uncertain*: it is never
edited, the function needs an entry that catches it (plan.py, detours) or is not updatable.

Kept relocations are no complete list (the assembler resolves calls inside a section by itself), so code is always
read; they decide which absolute words are pointers, and cross-check: one that names an entry and is not found in the
code as read makes its function uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Field, Kind, Region, Use
from psu_bin.elf import (DT_FINI, DT_INIT, ET_EXEC, SHF_ALLOC, SHF_EXECINSTR, SHN_LORESERVE, SHN_UNDEF, SHT_PROGBITS,
                         STT_FUNC, STT_NOTYPE, Binary, Relocations, Section)
from psu_bin.instrument import layout, sites
from psu_bin.instrument.functions import Functions, executable
from psu_bin.instrument.landing import landing_pads
from psu_bin.instrument.plan_types import Edit, Reroute
from psu_bin.instrument.unwind import Frames

_SHT_ARRAYS = (14, 15, 16)      # SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY: nothing but function pointers
_POINTERS_ONLY = frozenset({".got", ".got.plt", ".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors"})
_NO_POINTERS = frozenset({".eh_frame", ".eh_frame_hdr", ".gcc_except_table", ".interp", ".dynamic", ".dynstr"})


@dataclass
class References:
    """What was found; `function` numbers are indices of Functions."""
    edits: list[Edit] = field(default_factory=list)
    uncertain: dict[int, list[str]] = field(default_factory=dict)   # references that no edit can reroute
    forbidden: dict[int, str] = field(default_factory=dict)         # uses of the entry that no detour can satisfy
    loops: set[int] = field(default_factory=set)                    # functions that jump to their own entry
    taken: set[int] = field(default_factory=set)                    # address taken
    calls: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))  # (instruction, function called)

    def doubt(self, function: int, what: str) -> None:
        self.uncertain.setdefault(function, []).append(what)


def resolvers(binary: Binary, arch: Arch) -> np.ndarray:
    """The entries that IRELATIVE relocations name."""
    out = [t["r_addend"][t["r_type"] == arch.scan.IRELATIVE] for t in (binary.rela, binary.jmprel)]
    return np.unique(np.concatenate(out)).astype(np.int64)


def regions(binary: Binary, arch: Arch, functions: Functions, frames: Frames) -> tuple[Region, ...]:
    """The code to decode: each executable section without the data in it, with every known start of an instruction."""
    known = np.concatenate([functions.entry, functions.end, functions.labels, frames.begin, frames.end])
    pads = landing_pads(binary, frames) if arch.scan.FOLLOWS_VALUES else np.zeros(0, dtype=np.int64)
    out = []
    for s in executable(binary):
        here = known[(known > s.address) & (known < s.end)]
        starts = np.unique(np.concatenate([[s.address], here]))
        ends = np.append(starts[1:], s.end)
        for low, high in functions.islands.tolist():
            if low < s.end and high > s.address:
                starts = np.where((starts >= low) & (starts < high), np.minimum(high, ends), starts)
                ends = np.where((starts < low) & (ends > low), low, ends)
                if high < s.end and not ((starts == high) & (ends > high)).any():
                    after = starts[starts > high]
                    starts = np.append(starts, high)
                    ends = np.append(ends, after.min() if len(after) else s.end)
        keep = starts < ends
        order = np.argsort(starts[keep], kind="stable")
        out.append(Region(s.address, binary.contents(s), starts[keep][order], ends[keep][order],
                          pads[(pads >= s.address) & (pads < s.end)]))
    return tuple(out)


def find(binary: Binary, arch: Arch, functions: Functions, frames: Frames, code: Code) -> References:
    """All references to function entries."""
    r = References()
    _in_code(r, binary, arch, functions, frames, code)
    _in_unclear_code(r, binary, arch, functions, code)
    _fall_through(r, functions, code)
    _dynamic(r, binary, arch, functions)
    kept = binary.kept_relocations
    if binary.type == ET_EXEC:
        _absolute(r, binary, arch, functions, code, kept)
    _got_relative(r, binary, arch, functions, code)
    _cross_check(r, arch, functions, code, kept)
    for tag, name in ((DT_INIT, "DT_INIT"), (DT_FINI, "DT_FINI")):
        value = binary.dyn(tag)
        if value is not None:
            _doubt(r, functions, np.array([value]), f"named by the dynamic section ({name})")
    _doubt(r, functions, np.array([binary.entry]), "the entry point of the program")
    for f in functions.index(np.array(sorted(frames.personalities), dtype=np.int64)).tolist():
        if f >= 0:
            r.forbidden[f] = "an exception personality routine that unwind tables name directly"
    return r


def _doubt(r: References, functions: Functions, entries: np.ndarray, what: str) -> None:
    for f in functions.index(entries).tolist():
        if f >= 0:
            r.doubt(f, what)
            r.taken.add(f)


def unclear(code: Code) -> np.ndarray:
    """The stretches [start, end) in which decoding went wrong: data between code, or another surprise."""
    at = np.searchsorted(code.chains[:, 0], code.wrong, side="right") - 1
    return code.chains[np.unique(at[at >= 0])]


def _in_code(r: References, binary: Binary, arch: Arch, functions: Functions, frames: Frames, code: Code) -> None:
    """What instructions refer to relative to themselves."""
    stubs = layout.room_for_stubs(binary, arch, len(functions.entry))
    far = layout.far(binary, arch, len(functions.entry))
    may_turn = sites.turnable(binary, arch)
    target = functions.index(code.target)
    at = np.flatnonzero((code.target != NONE) & (target >= 0))
    at = at[~_got_bases(binary, arch, functions, code, at)]
    target, address = target[at], code.address[at]
    own = (code.use[at] == Use.FLOW) & (code.kind[at] != Kind.CALL) & (
        functions.holding(address) == functions.owner[target])
    r.loops.update(target[own & (functions.owner[target] == target)].tolist())
    at, target, address = at[~own], target[~own], address[~own]
    flow = code.use[at] == Use.FLOW
    r.calls = np.stack([at[flow], target[flow]], axis=1)
    vague = np.zeros(len(at), dtype=bool)
    for low, high in unclear(code).tolist():
        vague |= (address >= low) & (address < high)
    for f, where in zip(target[vague].tolist(), address[vague].tolist()):
        r.doubt(f, f"referred to from code that could not be read with certainty at {where:#x}")
    memory = ~vague & (code.use[at] == Use.MEMORY)
    for f, where in zip(target[memory].tolist(), address[memory].tolist()):
        r.forbidden[f] = f"its machine code is used as data at {where:#x}"
    rest = np.flatnonzero(~vague & ~memory)
    ways = arch.scan.edits(code, at[rest], stubs, far)
    fields = (address + code.field_at[at])[rest].tolist()
    for f, where, is_call, way, place in zip(target[rest].tolist(), address[rest].tolist(), flow[rest].tolist(), ways, fields):
        if far and is_call and not way and may_turn(place):
            way = [(arch.site_form.kind, place)]      # stays as it is until attach turns it, to something near
        r.edits += [Edit(Reroute[kind], field_at, f, is_call) for kind, field_at in way]
        if not way:
            r.doubt(f, f"entered by a short jump at {where:#x}" if is_call else
                       f"its address is computed at {where:#x} by instructions that cannot lead to a stub")
    r.taken.update(target[~flow].tolist())
    for low, high in code.loose.tolist():
        first, last = np.searchsorted(functions.entry, [low, high])
        _doubt(r, functions, functions.entry[first:last], "perhaps referred to by an address that could not be followed")
    for low, high, _ in code.caught[frames.catch(code.caught[:, 2])].tolist():
        first, last = np.searchsorted(functions.entry, [low, high])
        some = functions.entry[first:last]
        _doubt(r, functions, some[np.isin(some - low, code.completes)], "perhaps referred to where an exception is caught")


def _in_unclear_code(r: References, binary: Binary, arch: Arch, functions: Functions, code: Code) -> None:
    """Where decoding went wrong, any bytes that would lead to an entry may do so."""
    if not len(code.wrong):
        return
    known = set((code.address + code.field_at)[code.field != Field.NONE].tolist())
    for start, end in unclear(code).tolist():
        offset = binary.offset_of(start)
        for where, value in arch.scan.possible_operands(binary.data[offset:offset + end - start], start):
            hit = functions.index(value)
            for i in np.flatnonzero(hit >= 0).tolist():
                if int(where[i]) not in known:
                    r.doubt(int(hit[i]), f"perhaps referred to from code that could not be read at {int(where[i]):#x}")


def _fall_through(r: References, functions: Functions, code: Code) -> None:
    """Functions that the code before them runs into."""
    first = code.at(functions.entry)
    before = np.where(first > 0, first - 1, NONE)
    end = functions.entry.copy()
    while True:
        close = (before >= 0) & (code.address[before] + code.length[before] == end)
        nop = close & (code.kind[before] == Kind.NOP)
        if not nop.any():
            break
        end = np.where(nop, code.address[before], end)
        before = np.where(nop, before - 1, before)
    kind = code.kind[before]
    goes_on = close & ((kind == Kind.OTHER) | (kind == Kind.MARK) | (kind == Kind.BRANCH))
    for f in np.flatnonzero(goes_on & (functions.role != 1)).tolist():
        r.doubt(f, f"entered from the code before it at {int(code.address[before[f]]):#x}")


def _dynamic(r: References, binary: Binary, arch: Arch, functions: Functions) -> None:
    """Dynamic relocations and symbols."""
    rela = binary.rela
    hit = functions.index(np.where(rela["r_type"] == arch.relative, rela["r_addend"], NONE))
    for i in np.flatnonzero(hit >= 0).tolist():
        r.edits.append(Edit(Reroute.RELA_ADDEND, i, int(hit[i]), False))
        r.taken.add(int(hit[i]))
    relr = binary.relr
    if len(relr):
        words = words_at(binary, relr)
        hit = functions.index(words)
        for i in np.flatnonzero(hit >= 0).tolist():
            r.edits.append(Edit(Reroute.RELR_WORD, int(relr[i]), int(hit[i]), False))
            r.taken.add(int(hit[i]))
    if binary.dynsym is None:
        return
    symbols = binary.dynsym.entries
    kind = symbols["st_info"] & 15
    defined = (symbols["st_shndx"] != SHN_UNDEF) & (symbols["st_shndx"] < SHN_LORESERVE)
    hit = functions.index(np.where(defined, symbols["st_value"].astype(np.int64), NONE))
    ordinary = (kind == STT_FUNC) | (kind == STT_NOTYPE)
    for i in np.flatnonzero((hit >= 0) & ordinary).tolist():
        r.edits.append(Edit(Reroute.DYNSYM, i, int(hit[i]), False))
        r.taken.add(int(hit[i]))
    # A relocation against another kind of symbol (a section), or with an addend, makes a pointer that no edit reaches.
    for table in (rela, binary.jmprel):
        some = np.flatnonzero((table["r_sym"] > 0) & (table["r_sym"] < len(symbols)))
        number = table["r_sym"][some]
        value = np.where(defined[number], symbols["st_value"][number].astype(np.int64) + table["r_addend"][some], NONE)
        odd = (~ordinary[number] | (table["r_addend"][some] != 0)) & np.isin(table["r_type"][some], arch.scan.POINTERS)
        _doubt(r, functions, value[odd], "named by a dynamic relocation against a section or with an addend")


def words_at(binary: Binary, addresses: np.ndarray) -> np.ndarray:
    """The 8-byte values at file addresses; NONE where the file has no bytes for them."""
    out = np.full(len(addresses), NONE, dtype=np.int64)
    for p in binary.segments:
        if p.type == 1 and p.filesz >= 8:
            words: np.ndarray = np.ndarray((p.filesz - 7,), dtype="<i8", buffer=binary.data, offset=p.offset, strides=(1,))
            mine = np.flatnonzero((addresses >= p.address) & (addresses < p.address + p.filesz - 7))
            out[mine] = words[addresses[mine] - p.address]
    return out


def data_sections(binary: Binary) -> list[Section]:
    """Loaded sections that a program can keep pointers in."""
    return [s for s in binary.sections
            if s.flags & SHF_ALLOC and not s.flags & SHF_EXECINSTR and s.size
            and (s.type == SHT_PROGBITS or s.type in _SHT_ARRAYS) and s.name not in _NO_POINTERS]


def _absolute(r: References, binary: Binary, arch: Arch, functions: Functions, code: Code,
              kept: tuple[Relocations, ...]) -> None:
    """Absolute addresses in a position-dependent file."""
    relocated = {k.section.index: k for k in kept}
    complete = any(k.section.flags & SHF_EXECINSTR for k in kept)     # the linker kept them for every section then
    owner, where, size, value = arch.scan.absolutes(code)
    hit = functions.index(value)
    known = {offset for k in kept if k.section.flags & SHF_EXECINSTR for offset in k.entries["r_offset"].tolist()}
    owned = set(where.tolist())
    for i in np.flatnonzero(hit >= 0).tolist():
        f, at = int(hit[i]), int(where[i])
        address = int(code.address[owner[i]])
        if not complete:
            r.doubt(f, f"perhaps referred to by a constant in code at {address:#x}")
            r.taken.add(f)
        elif at in known:
            if size[i]:
                r.edits.append(Edit(Reroute.ABS32 if size[i] == 4 else Reroute.ABS64, at, f, False))
            else:
                r.doubt(f, f"its address is a constant in several instructions at {address:#x}")
            r.taken.add(f)
    dynamic = set(binary.rela["r_offset"].tolist()) | set(binary.relr.tolist())
    for low, high in functions.islands.tolist():
        offset = binary.offset_of(low)
        data = binary.data[offset:offset + high - low]
        if len(data) >= 8:
            island: np.ndarray = np.ndarray((len(data) - 7,), dtype="<i8", buffer=data, strides=(1,))
            some = [i for i in np.flatnonzero(functions.index(island) >= 0).tolist() if low + i not in owned]
            _doubt(r, functions, island[some], "perhaps referred to by a word of data between code")
    for s in data_sections(binary):
        data = binary.contents(s)
        sure = s.name in _POINTERS_ONLY or s.type in _SHT_ARRAYS
        if complete and not sure:
            if s.index in relocated:
                _kept_words(r, arch, functions, relocated[s.index], data)
            continue
        for width, step in ((8, 8 if sure else 1), (4, 4)):
            if len(data) < width or sure and width == 4:
                continue
            words: np.ndarray = np.ndarray(((len(data) - width) // step + 1,), dtype=f"<i{width}", buffer=data,
                                           strides=(step,))
            near = np.flatnonzero((words >= functions.entry[0]) & (words <= functions.entry[-1]))
            hit = functions.index(words[near].astype(np.int64))
            for i, f in zip((near[hit >= 0] * step + s.address).tolist(), hit[hit >= 0].tolist()):
                if sure and i not in dynamic:
                    r.edits.append(Edit(Reroute.ABS64, i, f, False))
                elif not sure:
                    r.doubt(f, f"perhaps referred to by a word in data at {i:#x} ({s.name})")
                r.taken.add(f)


def _kept_words(r: References, arch: Arch, functions: Functions, kept: Relocations, data: bytes) -> None:
    """Pointers in data that a kept relocation proves to be pointers."""
    e = kept.entries
    symbols = kept.symbols.entries
    ok = e["r_sym"] < len(symbols)
    value = symbols["st_value"][np.where(ok, e["r_sym"], 0)].astype(np.int64) + e["r_addend"]
    hit = functions.index(value)
    for i in np.flatnonzero(ok & (hit >= 0)).tolist():
        f, at = int(hit[i]), int(e["r_offset"][i])
        width = arch.scan.ABSOLUTE_WIDTH.get(int(e["r_type"][i]), 0)
        if not width:
            continue            # relative: _cross_check looks at those
        offset = at - kept.section.address
        r.taken.add(f)
        if int.from_bytes(data[offset:offset + width], "little") == functions.entry[f]:
            r.edits.append(Edit(Reroute.ABS64 if width == 8 else Reroute.ABS32, at, f, False))
        else:
            r.doubt(f, f"a kept relocation at {at:#x} does not agree with the file")


def _tables(binary: Binary) -> list[int]:
    """What _GLOBAL_OFFSET_TABLE_ may be."""
    return [s.address for s in binary.sections if s.name in (".got.plt", ".got")]


def _got_bases(binary: Binary, arch: Arch, functions: Functions, code: Code, at: np.ndarray) -> np.ndarray:
    """bool, one for each of the instructions `at`, which refer to entries: whether it only begins to compute the address of
    the global offset table.  Large-model position-independent code adds a 64-bit constant to an address nearby, which
    is the function's own entry when it does so first of all (psABI 3.5.6)."""
    owner, _, size, value = arch.scan.absolutes(code)
    wide, taken = np.flatnonzero(size == 8), np.flatnonzero(code.use[at] == Use.ADDRESS)
    out = np.zeros(len(at), dtype=bool)
    if not len(wide) or not len(taken):
        return out
    here, there = functions.holding(code.address[at[taken]]), functions.holding(code.address[owner[wide]])
    for got in _tables(binary):
        needed = {(f, int(v)) for f, v in zip(there.tolist(), value[wide].tolist()) if f >= 0}
        out[taken] |= [(f, got - t) in needed for f, t in zip(here.tolist(), code.target[at[taken]].tolist())]
    return out


def _got_relative(r: References, binary: Binary, arch: Arch, functions: Functions, code: Code) -> None:
    """Large-model position-independent code adds 64-bit constants to the address of the global offset table."""
    owner, _, size, value = arch.scan.absolutes(code)
    wide = np.flatnonzero(size == 8)
    for got in _tables(binary):
        hit = functions.index(value[wide] + got)
        for i in np.flatnonzero(hit >= 0).tolist():
            where = int(code.address[owner[wide[i]]])
            r.doubt(int(hit[i]), f"referred to relative to the global offset table at {where:#x}")
            r.taken.add(int(hit[i]))


def _cross_check(r: References, arch: Arch, functions: Functions, code: Code, kept: tuple[Relocations, ...]) -> None:
    """Kept relocations against entries that the code as read does not explain, and relative pointers in data."""
    if not kept:
        return
    understood = np.unique(np.concatenate([(code.address + code.field_at)[code.field != Field.NONE],
                                           arch.scan.absolutes(code)[1]]))
    for k in kept:
        e, symbols = k.entries, k.symbols.entries
        number = np.where(e["r_sym"] < len(symbols), e["r_sym"], 0)
        symbol = symbols["st_value"][number].astype(np.int64)
        value, offset = symbol + e["r_addend"], e["r_offset"].astype(np.int64)
        defined = symbols["st_shndx"][number] != SHN_UNDEF
        relative = defined & np.isin(e["r_type"], arch.scan.RELATIVE_TYPES)
        if k.section.flags & SHF_EXECINSTR:
            reach = [(relative, value + back) for back in arch.scan.RELATIVE_ADDENDS]
            reach.append((defined & np.isin(e["r_type"], list(arch.scan.ABSOLUTE_WIDTH)), value))
            surprise = ~np.isin(offset, understood)
            what = "a reference that was not understood"
        elif k.section.name not in _NO_POINTERS:
            function = (symbols["st_info"][number] & 15) == STT_FUNC
            reach = [(relative, value), (relative & function, symbol)]
            surprise = np.ones(len(e), dtype=bool)
            what = "a relative pointer in data"
        else:
            continue
        for some, target in reach:
            hit = functions.index(target)
            for i in np.flatnonzero(some & surprise & (hit >= 0)).tolist():
                r.doubt(int(hit[i]), f"{what} at {int(offset[i]):#x}")
                r.taken.add(int(hit[i]))
