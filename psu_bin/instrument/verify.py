"""Reading the written file back: a defect of the writer must not reach a user.

With nothing but the input, the plan and the bytes in hand.  True of a file that passes: it is a complete ELF file whose
segments do not overlap; every stub jumps through its slot, every slot holds its original, every reference of the plan
leads to its stub; the loader finds all that it found before, and the shim first; unwinders find all that they found
before, and the stubs; the descriptor says what was planned; and every other byte that is loaded is as in the input.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from psu_bin import descriptor, elf, fde
from psu_bin.arch import Arch
from psu_bin.elf import Binary
from psu_bin.instrument import dynamic, edits, ehframe, exports, marks, operands, relocations
from psu_bin.instrument.dynamic import DT_RELAENT, ORIGIN
from psu_bin.instrument.layout import ADDRESS_TAGS, EHDR_SIZE, MOVABLE_SEGMENTS, PHDR_SIZE, TAG_OF_TYPE, holding
from psu_bin.instrument.plan_types import Plan, Reroute
from psu_bin.instrument.relocations import Form

STRING_TAGS = frozenset({elf.DT_NEEDED, elf.DT_SONAME, elf.DT_RPATH, elf.DT_RUNPATH})
_RUN_PATHS = (elf.DT_RUNPATH, elf.DT_RPATH)
# What may have another value than before; each is checked by itself.
_CHANGING = ADDRESS_TAGS | STRING_TAGS | {elf.DT_STRSZ, elf.DT_RELASZ, elf.DT_RELACOUNT, elf.DT_RELRSZ}


PADDING = 64                      # bytes that alignment leaves between sections, at most
_CHECKED = (elf.SHT_DYNSYM, elf.SHT_STRTAB, elf.SHT_RELA)     # in _tables
_MAY_MOVE = (*MOVABLE_SEGMENTS, elf.PT_PHDR, elf.PT_DYNAMIC, elf.PT_GNU_EH_FRAME)


@dataclass(frozen=True)
class Pair:
    """The input and what was made of it."""
    before: Binary
    after: Binary
    arch: Arch
    plan: Plan
    found: descriptor.Descriptor

    def must(self, good: bool, what: str) -> None:
        """Raise PsuError when `good` is not so."""
        if not good:
            raise edits.defect(self.after.path, what)

    def bytes_at(self, address: int, size: int) -> bytes:
        return self.after.bytes_at(address, size)

    @cached_property
    def form(self) -> Form:
        return relocations.form(self.before, self.arch)

    @cached_property
    def row(self) -> int:
        """The number of the relocation that calls the function that relocates the slots; -1: there is none."""
        row = relocations.resolver_row(self.before, self.arch) if self.form is Form.RESOLVER else None
        return -1 if row is None else row

    @cached_property
    def rela(self) -> np.ndarray:
        """The relocations of the input as they are now, the one at `row` as it should be if it were still relative."""
        out = self.after.rela[len(self.after.rela) - len(self.before.rela):].copy()
        if self.row >= 0:
            out["r_type"][self.row] = self.arch.relative
            was, now = self.before.segment(elf.PT_DYNAMIC), self.after.segment(elf.PT_DYNAMIC)
            result = int(self.before.rela["r_addend"][self.row])
            if was and now and result == was.address:
                result = now.address
            for at, function, _ in self.plan.edits_by_kind.get(Reroute.RELA_ADDEND, []):
                if at == self.row:
                    result = self.found.stub(function)
            out["r_addend"][self.row] = result
        return out

    @property
    def entries(self) -> np.ndarray:
        return np.array([f.address for f in self.plan.functions], dtype=np.int64)


def verify(before: Binary, arch: Arch, plan: Plan, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...],
           data: bytes, where: str) -> None:
    """Raise PsuError when `data` is not the instrumented form of `before` that `plan` asks for."""
    try:
        after = Binary(data, where)
        at = after.dyn(descriptor.DT_PSU)
        if at is None:
            raise edits.defect(where, "no descriptor")
        p = Pair(before, after, arch, plan, descriptor.decode(descriptor.gather(after.bytes_at, at, where), where))
        _segments(p)
        _descriptor(p, symbols, files)
        _stubs(p)
        touched = np.zeros(len(before.data), dtype=bool)
        _references(p, touched)
        _detours(p, touched)
        _sites(p)
        _dynamic_moved(p, touched)
        _dynamic(p)
        _tables(p)
        _unwinding(p)
        _sections(p)
        _rest(p, touched)
    except (ValueError, IndexError, struct.error) as e:
        raise edits.defect(where, f"the written file cannot be read back: {e}") from e


def _segments(p: Pair) -> None:
    after, before = p.after, p.before
    loads = [s for s in after.segments if s.type == elf.PT_LOAD]
    old = [s for s in before.segments if s.type == elf.PT_LOAD]
    p.must(loads[:len(old)] == [elf.Segment(a.index, *(getattr(o, n) for n in (
        "type", "flags", "offset", "address", "filesz", "memsz", "align"))) for a, o in zip(loads, old)],
        "a segment of the input changed")
    for a, b in zip(loads, loads[1:]):
        p.must(a.address + a.memsz <= b.address, f"segments {a.index} and {b.index} overlap")
    page = p.arch.page_size
    end = max(s.address + s.memsz for s in old)
    for s in loads[len(old):]:
        p.must(s.address // page * page >= end, f"segment {s.index} shares a page with the one before it")
        p.must((s.address - s.offset) % page == 0, f"segment {s.index} is not congruent with the file")
        p.must(s.flags & (elf.PF_W | elf.PF_X) != elf.PF_W | elf.PF_X, f"segment {s.index} is writable code")
        end = s.address + s.memsz
    p.must(after.phoff == EHDR_SIZE and loads[0].offset == 0
           and loads[0].filesz >= EHDR_SIZE + PHDR_SIZE * after.phnum, "the program headers are not loaded")
    rest = [[s for s in b.segments if s.type != elf.PT_LOAD] for b in (before, after)]
    p.must(len(rest[0]) == len(rest[1]), "a program header is missing")
    for was, now in zip(*rest):
        places = was.offset, was.address, was.filesz, was.memsz
        p.must((was.type, was.flags, was.align) == (now.type, now.flags, now.align)
               and (places == (now.offset, now.address, now.filesz, now.memsz) or was.type in _MAY_MOVE),
               f"program header {now.index}")
        if was.type in _MAY_MOVE and now.filesz:
            p.must(now.filesz == now.memsz and after.offset_of(now.address) == now.offset
                   if places != (now.offset, now.address, now.filesz, now.memsz) else True,
                   f"segment {now.index} is not where it says")
        if was.type in MOVABLE_SEGMENTS:
            p.must(before.data[was.offset:was.offset + was.filesz] == after.data[now.offset:now.offset + now.filesz],
                   f"segment {now.index} holds something else")


def _descriptor(p: Pair, symbols: tuple[descriptor.Symbol, ...], files: tuple[str, ...]) -> None:
    d = p.found
    moved = {x.function for x in p.plan.detours if x.length}
    planned = [(f.name, f.address, f.size, f.flags | (descriptor.DETOURED if i in moved else 0), f.preserve, f.callers)
               for i, f in enumerate(p.plan.functions)]
    p.must([(f.name, f.address, f.size, f.flags, f.preserve, f.callers) for f in d.functions] == planned
           and d.symbols == symbols and d.files == files, "the descriptor says something else than the plan")
    flags = descriptor.MODULE_PIC if p.before.type == elf.ET_DYN else 0
    flags |= descriptor.MODULE_IBT if marks.wanted(p.before, p.arch) else 0
    flags |= descriptor.MODULE_MOVES_STACK if p.plan.moves_stack else 0
    flags |= descriptor.MODULE_FAR if p.plan.far else 0
    p.must(d.machine == p.before.machine and d.build_id == p.before.build_id and d.flags == flags
           and d.stub_size == p.arch.stub_size(flags) and d.slots % 8 == 0, "the descriptor's header")
    there = descriptor.gather(p.bytes_at, p.after.dyn(descriptor.DT_PSU) or 0, p.after.path)
    p.must(there == descriptor.encode(d), "the descriptor's bytes")


def _stubs(p: Pair) -> None:
    """Stub -> slot -> original, the latter through the slot's relocation."""
    d = p.found
    count = len(d.functions)
    words = np.frombuffer(p.bytes_at(d.slots, 8 * count), dtype="<i8")
    stubs = p.bytes_at(d.stubs, d.stub_size * count)
    moved = {x.function for x in p.plan.detours}
    for i, f in enumerate(d.functions):
        p.must(stubs[i * d.stub_size:(i + 1) * d.stub_size] == p.arch.stub(d.stub(i), d.slot(i), d.flags),
               f"the stub of {f.name}")
        p.must(i in moved or f.original == f.address, f"the original of {f.name}")
    original = np.array([f.original for f in d.functions], dtype=np.int64)
    slots = d.slots + 8 * np.arange(count)
    if p.form is Form.PACKED:
        p.must(bool((p.after.relr[-count:] == slots).all()), "the relocations of the slots")
    elif p.form is Form.ROWS:
        rela = p.after.rela[:count]
        p.must(len(rela) == count and bool((rela["r_type"] == p.arch.relative).all()
                                           and (rela["r_sym"] == 0).all()
                                           and (rela["r_offset"] == slots).all()), "the relocations of the slots")
        words = rela["r_addend"]
    elif p.form is Form.RESOLVER:
        entry = p.after.rela[p.row]
        at = int(entry["r_addend"])
        code = p.arch.resolver(at, d.slots, count, int(p.rela["r_addend"][p.row]))
        moved = min([f.original for f in d.functions if f.original > d.stubs], default=at + len(code))
        p.must(entry["r_type"] == p.arch.scan.IRELATIVE and entry["r_sym"] == 0
               and d.stubs + d.stub_size * count <= at <= moved - len(code) and p.bytes_at(at, len(code)) == code,
               "the relocation of the slots")
    p.must(bool((words == original).all()), "a slot does not hold its original")
    here = [s for s in p.after.segments if s.type == elf.PT_LOAD]
    flags = {name: next((s.flags for s in here if s.address <= at < s.address + s.memsz), 0)
             for name, at in (("stubs", d.stubs), ("slots", d.slots))}
    p.must(flags == {"stubs": elf.PF_R | elf.PF_X, "slots": elf.PF_R | elf.PF_W}, "a new segment's access rights")


def _references(p: Pair, touched: np.ndarray) -> None:
    """Every edit of the plan leads to its stub; its bytes are marked in `touched`."""
    d = p.found
    data = np.frombuffer(p.after.data, dtype=np.uint8)
    copied = [(p.plan.functions[x.function].address + x.skip, x.length) for x in p.plan.detours]
    for fields in edits.by_kind(p.plan):
        stubs = d.stubs + d.stub_size * fields.function
        kind = None
        if fields.kind is Reroute.RELA_ADDEND:
            found = p.rela["r_addend"][fields.at]
        elif fields.kind is Reroute.DYNSYM:
            table = _symbols(p.after)
            found = table["st_value"][fields.at].astype(np.int64)
            p.must(bool((table["st_size"][fields.at] == d.stub_size).all()), "the size of a dynamic symbol")
        else:
            kind = p.arch.fields[fields.kind.name]
            offsets = holding(p.before.segments, fields.at)
            raw = edits.read(data, offsets, kind.size)
            found = kind.target(fields.at, raw)
            touched[offsets[:, None] + np.arange(kind.size)] = True
            for start, length in copied:       # inside a detoured entry: _detours looks at its copy
                found = np.where((fields.at >= start) & (fields.at < start + length), stubs, found)
        wrong = np.flatnonzero(found != stubs if kind is None else kind.differs(raw, found, stubs))
        p.must(not len(wrong), f"{fields.kind.name} reference {int(fields.at[wrong[0]]) if len(wrong) else 0:#x} "
                               "does not lead to its stub")


def _detours(p: Pair, touched: np.ndarray) -> None:
    """Each detoured entry jumps to its stub; its copy is the moved code, leads where that led, and jumps back."""
    d = p.found
    names = {kind.name for kind in Reroute} & set(p.arch.fields)
    references = {e.at: e for e in p.plan.edits if e.kind.name in names}
    for x in p.plan.detours:
        name, start = d.functions[x.function].name, p.plan.functions[x.function].address + x.skip
        at = d.functions[x.function].original
        p.must(p.bytes_at(at, len(x.pad)) == x.pad, f"the landing pad of {name}")
        if x.length:
            jump = x.head + p.arch.jump(start + len(x.head), d.stub(x.function))
            p.must(p.bytes_at(start, len(jump)) == jump, f"the detour of {name}")
            touched[p.before.offset_of(start):][:x.length] = True
        at += len(x.pad)
        copy, expected = bytearray(p.bytes_at(at, len(x.copy))), bytearray(x.copy)
        back = p.arch.back(p.plan.far).encode(at + len(copy), start + x.length)
        p.must(p.bytes_at(at + len(copy), len(back)) == back, f"the way back from the moved entry of {name}")
        wanted = {position: (p.arch.moved_field, target) for position, target in x.fixups}
        wanted |= {e.at - start: (e.kind.name, d.stub(e.function)) for e in references.values()
                   if start <= e.at < start + x.length}
        for position, (kind, target) in wanted.items():
            field = p.arch.fields[kind]
            raw = np.frombuffer(bytes(copy[position:position + field.size]), dtype=np.uint8).reshape(1, -1)
            found = field.target(np.array([at + position]), raw)
            p.must(not field.differs(raw, found, np.array([target]))[0],
                   f"a reference in the moved entry of {name}")
            copy[position:position + field.size] = expected[position:position + field.size] = bytes(field.size)
        p.must(copy == expected, f"the moved entry of {name}")


def _sites(p: Pair) -> None:
    """Each call that attach will turn leads to its function, is turned as a whole, and is known to attach."""
    rows = np.array(p.plan.sites, dtype=np.int64).reshape(-1, 2)
    at, entries = rows[:, 0], p.entries[rows[:, 1]]
    p.must(p.found.sites == tuple(at.tolist()), "the descriptor's call sites")
    kind = p.arch.fields[p.arch.site_form.kind]
    raw = edits.read(np.frombuffer(p.after.data, dtype=np.uint8), holding(p.before.segments, at), kind.size)
    wrong = np.flatnonzero(kind.differs(raw, kind.target(at, raw), entries))
    p.must(not len(wrong), f"the call at {int(at[wrong[0]]) if len(wrong) else 0:#x} does not lead to its function")


def _dynamic_moved(p: Pair, touched: np.ndarray) -> None:
    """Where .dynamic moved, what referred to it refers to the new one."""
    was, now = p.before.segment(elf.PT_DYNAMIC), p.after.segment(elf.PT_DYNAMIC)
    assert was and now
    if was.address == now.address:
        touched[was.offset:was.offset + was.filesz] = True
        return
    for offset in dynamic.pointers(p.before).tolist():
        p.must(p.after.data[offset:offset + 8] == now.address.to_bytes(8, "little"), "a pointer to the dynamic section")
        touched[offset:offset + 8] = True
    for x in operands.referring(p.before, p.arch, was.address, was.address + 1):
        old, new = (int.from_bytes(b.bytes_at(x.at, x.size), "little", signed=True)
                    for b in (p.before, p.after))
        p.must(new - old == now.address - was.address, f"the reference to the dynamic section at {x.at:#x}")
        touched[p.before.offset_of(x.at):][:x.size] = True


def _dynamic(p: Pair) -> None:
    """The loader's view: what it found before, with the shim first, or next to AddressSanitizer's runtime."""
    before, after = p.before, p.after
    old, new = list(before.dynamic), list(after.dynamic)
    p.must(_closed(after), "the dynamic section does not end")
    p.must([t for t, _ in old if t not in dict(new)] == [], "a dynamic entry is missing")
    needed = [[_text(b, v) for t, v in b.dynamic if t == elf.DT_NEEDED] for b in (before, after)]
    asan = needed[0][:1] if "asan" in "".join(needed[0][:1]) else []
    p.must(needed[1] == [*asan, descriptor.SHIM_SONAME, *needed[0][len(asan):]], "the needed libraries")
    rest = [(t, v) for t, v in new if t != descriptor.DT_PSU]
    rest.remove([e for e in rest if e[0] == elf.DT_NEEDED][len(asan)])
    p.must([t for t, _ in rest][:len(old)] == [t for t, _ in old], "the order of dynamic entries")
    p.must({t for t, _ in rest[len(old):]} <= {elf.DT_RUNPATH, elf.DT_RELA, elf.DT_RELASZ, DT_RELAENT},
           "a dynamic entry that nobody asked for")
    for (tag, was), (_, now) in zip(old, rest):
        if tag in STRING_TAGS and tag not in _RUN_PATHS:
            p.must(_text(before, was) == _text(after, now), f"dynamic entry {tag:#x}")
        p.must(was == now or tag in _CHANGING, f"dynamic entry {tag:#x}")
        if tag in ADDRESS_TAGS:        # each table is where the section of that name is
            names = {s.name for s in before.sections if s.flags & elf.SHF_ALLOC and s.size and s.address == was}
            there = {s.name for s in after.sections if s.flags & elf.SHF_ALLOC and s.size and s.address == now}
            p.must(was == now or bool(names & there), f"dynamic entry {tag:#x}")
    path, path_now = (next(((t, _text(b, v)) for k in _RUN_PATHS for t, v in b.dynamic if t == k), None)
                      for b in (before, after))
    if path and {ORIGIN, "${ORIGIN}"} & set(path[1].split(":")):
        p.must(path_now == path, "the run path")
    else:
        p.must(path_now == ((path[0], f"{path[1]}:{ORIGIN}".lstrip(":")) if path else (elf.DT_RUNPATH, ORIGIN)),
               "the run path")
    text = descriptor.SHIM_SONAME + "\0" + (path_now[1] + "\0" if path_now and path_now != path else "")
    size, count = (before.dyn(elf.DT_STRSZ) or 0) + len(text.encode("utf-8", "surrogateescape")), len(p.plan.functions)
    p.must(after.dyn(elf.DT_STRSZ) == size, "the size of the dynamic strings")
    for tag, entry in ((elf.DT_RELASZ, 24), (elf.DT_RELRSZ, 8)):
        was, now = before.dyn(tag) or 0, after.dyn(tag) or 0
        p.must(now in (was, was + entry * count) or tag == elf.DT_RELRSZ and now % entry == 0,
               f"dynamic entry {tag:#x}")


def _closed(b: Binary) -> bool:
    s = b.segment(elf.PT_DYNAMIC)
    return s is not None and 16 * (len(b.dynamic) + 1) <= s.filesz


def _text(b: Binary, offset: int) -> str:
    at, size = b.dyn(elf.DT_STRTAB) or 0, b.dyn(elf.DT_STRSZ) or 0
    return b.string(b.bytes_at(at, size), offset)


def _symbols(b: Binary) -> np.ndarray:
    """The dynamic symbols, found as the loader finds them; counted by the section header."""
    at = b.offset_of(edits.symbol_table(b))
    count = next((s.size // edits.SYMBOL_SIZE for s in b.sections if s.type == elf.SHT_DYNSYM), 0)
    return np.frombuffer(b.data, dtype=elf.SYMBOL_DTYPE, count=count, offset=at)


def _tables(p: Pair) -> None:
    """Symbols, hash tables, versions and relocations, but for what the plan changes."""
    before, after = p.before, p.after
    shift = len(after.rela) - len(before.rela)
    old, new = before.rela.copy(), p.rela
    for fields in edits.by_kind(p.plan):
        if fields.kind is Reroute.RELA_ADDEND:
            old["r_addend"][fields.at] = new["r_addend"][fields.at]
    was, now = before.segment(elf.PT_DYNAMIC), after.segment(elf.PT_DYNAMIC)
    old["r_addend"][(old["r_addend"] == (was.address if was else 0)) & (old["r_sym"] == 0)] = now.address if now else 0
    p.must(bool((old == new).all()) and bool((before.jmprel == after.jmprel).all())
           and len(before.jmprel) == len(after.jmprel), "a relocation changed")
    packed = len(after.relr) - len(before.relr)
    p.must(bool((after.relr[:len(before.relr)] == before.relr).all())
           and packed + shift == (len(p.plan.functions) if p.form in (Form.ROWS, Form.PACKED) else 0), "the relocations")
    count = (before.dyn(elf.DT_RELACOUNT), after.dyn(elf.DT_RELACOUNT))
    p.must(count[0] == count[1] if count[0] is None else count[1] == count[0] + shift - (p.row >= 0), "DT_RELACOUNT")
    wrong = exports.difference(before, after, p.plan)
    p.must(not wrong, wrong)
    symbols = _symbols(before).copy()
    p.must(len(symbols) <= len(_symbols(after)), "the number of dynamic symbols")
    present = _symbols(after)[:len(symbols)].copy()
    for fields in edits.by_kind(p.plan):
        if fields.kind is Reroute.DYNSYM:
            for column in ("st_value", "st_size"):
                symbols[column][fields.at] = present[column][fields.at]
    p.must(bool(((symbols["st_shndx"] == 0) == (present["st_shndx"] == 0)).all()), "a dynamic symbol is defined or not")
    symbols["st_shndx"] = present["st_shndx"]
    p.must(bool((symbols == present).all()), "a dynamic symbol changed")
    size = before.dyn(elf.DT_STRSZ) or 0
    strings = [b.data[b.offset_of(b.dyn(elf.DT_STRTAB) or 0):][:size] for b in (before, after)]
    p.must(strings[0] == strings[1], "the dynamic strings")


def _unwinding(p: Pair) -> None:
    """The search table: ascending, all old entries, and the new code."""
    old, new = ehframe.search_table(p.before), ehframe.search_table(p.after)
    if old is None:
        return
    p.must(new is not None, "the unwind search table is gone")
    assert new is not None
    p.must(bool((np.diff(new.entries[:, 0]) >= 0).all()) or not bool((np.diff(old.entries[:, 0]) >= 0).all()),
           "the unwind search table is not sorted")
    rows = set(map(tuple, old.entries.tolist()))
    p.must(rows <= set(map(tuple, new.entries.tolist())), "an unwind row is missing")
    end = p.before.section(".eh_frame")
    now = p.after.section(".eh_frame")
    if end and now and p.before.contents(end)[-4:] == bytes(4):
        p.must(p.after.contents(now)[-4:] == bytes(4), "the end of the unwind rows")
    added = sorted(set(map(tuple, new.entries.tolist())) - rows)
    p.must(bool(added) and added[0][0] == p.found.stubs, "the stubs have no unwind row")
    programs = {p.found.functions[x.function].original: x.rows for x in p.plan.detours}
    size = [struct.unpack("<i", p.bytes_at(row + 12, 4))[0] for _, row in added]
    ranges = [fde.Code(start, n, programs.get(start, b"")) for (start, _), n in zip(added, size)]
    first = added[0][1] - len(fde.rows(p.arch, 0, [])[0])
    body, where = fde.rows(p.arch, first, ranges)
    p.must(where == [row for _, row in added] and p.bytes_at(first, len(body)) == body, "the new unwind rows")
    ends = [p.found.stub(len(p.plan.functions) - 1) + p.found.stub_size]
    ends += [p.found.functions[x.function].original + x.size + p.arch.back(p.plan.far).size for x in p.plan.detours]
    p.must(all(any(r.start < e <= r.start + r.size for r in ranges) for e in ends), "new code has no unwind row")
    p.must(all(x.rows in (r.program for r in ranges if r.start <= p.found.functions[x.function].original
                                  < r.start + r.size) for x in p.plan.detours), "a moved entry's unwind row")


def _sections(p: Pair) -> None:
    """Section headers tell the truth: inside their segment, one after the other."""
    loaded = [s for s in p.after.sections if s.flags & elf.SHF_ALLOC and s.size and not
              (s.flags & elf.SHF_TLS and s.type == elf.SHT_NOBITS)]
    for s in loaded:
        if s.type != elf.SHT_NOBITS:
            p.must(p.after.offset_of(s.address) == s.offset, f"section {s.name} is not where it says")
    sorted_before = [s.address for s in p.before.sections if s.flags & elf.SHF_ALLOC and s.size]
    if sorted_before == sorted(sorted_before):
        for a, b in zip(loaded, loaded[1:]):
            p.must(a.end <= b.address, f"sections {a.name} and {b.name} overlap")


def _rest(p: Pair, touched: np.ndarray) -> None:
    """What is loaded is as it was, but for `touched`, for what moved, and for tables that _tables looked at."""
    before, after = p.before, p.after
    touched[:EHDR_SIZE + PHDR_SIZE * (before.phnum + 3)] = True
    at = {(s.name, s.address, s.size) for s in after.sections}
    moved_away = []
    for s in before.sections:
        if not s.flags & elf.SHF_ALLOC or s.type == elf.SHT_NOBITS or not s.size:
            continue
        if s.type == elf.SHT_DYNSYM or (s.name, s.address, s.size) not in at and s.name != ".eh_frame":
            touched[s.offset:s.offset + s.size] = True
            moved_away.append(s)
    # Padding next to what moved is part of its hole.
    starts = sorted(s.offset for s in before.sections if s.flags & elf.SHF_ALLOC and s.size)
    for s in moved_away:
        end = s.offset + s.size
        following = next((x for x in starts if x >= end), end)
        touched[end:min(following, end + PADDING)] = True
    grown = exports.tables(before) if len(exports.rerouted(p.plan)) else None
    for s in before.sections:
        if s.type in TAG_OF_TYPE and s.type not in _CHECKED and not (grown and s in grown.all):    # never change
            there = [before.contents(s) == after.contents(x) for x in after.sections if x.type == s.type]
            p.must(there == [True], f"section {s.name}")
    rela = before.dyn(elf.DT_RELA)
    if rela and not len(after.rela) - len(before.rela):
        start = before.offset_of(rela)
        touched[start:start + before.rela.nbytes] = True
    frames = before.section(".eh_frame")
    if frames and frames.flags & elf.SHF_ALLOC and before.contents(frames)[-4:] == bytes(4):
        touched[frames.offset + frames.size - 4:frames.offset + frames.size] = True
    for x in before.segments:
        if x.type == elf.PT_LOAD:
            old = np.frombuffer(before.data, dtype=np.uint8, count=x.filesz, offset=x.offset)
            new = np.frombuffer(after.data, dtype=np.uint8, count=x.filesz, offset=x.offset)
            wrong = np.flatnonzero((old != new) & ~touched[x.offset:x.offset + x.filesz])
            p.must(not len(wrong), f"the byte at {x.address + int(wrong[0]) if len(wrong) else 0:#x} changed")
