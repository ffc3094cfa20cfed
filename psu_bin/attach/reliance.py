"""Registers that a patch's code expects a callee to leave alone although the ABI lets it change them.

GCC's -fipa-ra (on at -O1 and above) keeps values in volatile registers over a call when it sees that the callee,
compiled in the same file, does not touch them.  When a later patch replaces only the callee, its gate must keep these
registers for as long as the caller's version may run.  So the linker reports them (LinkedObject.relied),
transaction.py notes them, and ModuleView.relied brings them back.

A caller can only rely on what the callee, with everything that it calls, leaves alone: that is known to the compiler
only when all of these are in the same object.  Such callees are rare, and found with the small decoder; the register
effects of instructions, which cost an import of numpy and capstone, are looked up only for them.

Errs to the safe side: a register counts as relied on when it may be read after the call before it is set again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.attach.layout import Layout
from psu_bin.attach.meaning import BoundFunction
from psu_bin.attach.patch import PatchFunction, without_clone
from psu_bin.attach.references import Reader

if TYPE_CHECKING:
    from psu_bin.arch.code import Code, Effects, RegisterFacts


class _Site(NamedTuple):
    """A direct call inside one object."""
    caller: BoundFunction
    at: int                # offset of its field
    callee: BoundFunction


def find(closed: Closed, reader: Reader, arch: Arch) -> dict[BoundFunction, int]:
    """By function with a stub: the registers (as descriptor.Function.preserve) that this object's code relies on."""
    callees, sites, effects = closed.callees, closed.sites, closed.effects
    wanted = [s for s in sites if s.callee in callees and any(reader.has_stub(f) for f in _closure(s.callee, callees))]
    if not wanted:
        return {}
    inside: dict[int, dict[int, BoundFunction]] = {}       # by section: field -> callee
    for s in sites:
        inside.setdefault(s.caller.function.section, {})[s.at] = s.callee
    out: dict[BoundFunction, int] = {}
    for site in wanted:
        closure = _closure(site.callee, callees)
        mask = effects.live_after(site, arch.scan.REGISTERS.representable & ~effects.changed_by(closure),
                                  inside[site.caller.function.section], callees)
        for f in closure:
            if mask and reader.has_stub(f):
                out[f] = out.get(f, 0) | arch.scan.REGISTERS.preserve(mask)
    return out


def _closed_callees(layout: Layout, reader: Reader, arch: Arch, functions: list[BoundFunction],
                    ) -> tuple[dict[BoundFunction, list[BoundFunction]], list[_Site]]:
    """(what each function calls, for functions that with all they call stay in the object; all calls in the object)."""
    calls: dict[BoundFunction, list[BoundFunction]] = {}
    sites = []
    for f in functions:
        found = []
        unknown = False
        parts = _parts(layout, f.function)
        for part in parts:
            code = layout.patch.contents[part.section]
            fields, lost = arch.link.leaves(code, part.start, part.end, layout.relocated(part.section))
            unknown = unknown or lost
            for at in fields:
                callee = reader.calls.get((layout.n, part.section, at))
                if callee is not None and callee.patch == layout.n:
                    found.append(callee)
                    if part is f.function:        # those of the cold part are found when it has its turn
                        sites.append(_Site(f, at, callee))
                elif callee is not None or _destination(layout, part.section, at) not in parts:
                    unknown = True
        if not unknown:
            calls[f] = found
    shrunk = True
    while shrunk:
        shrunk = False
        for f in [f for f, found in calls.items() if any(c not in calls for c in found)]:
            del calls[f]
            shrunk = True
    return calls, sites


def _closure(f: BoundFunction, callees: dict[BoundFunction, list[BoundFunction]]) -> set[BoundFunction]:
    out = {f}
    queue = [f]
    while queue:
        for callee in callees[queue.pop()]:
            if callee not in out:
                out.add(callee)
                queue.append(callee)
    return out


class Closed:
    """Functions of one object that, with all they call, stay in it; and what they change."""

    def __init__(self, layout: Layout, reader: Reader, arch: Arch) -> None:
        functions = list(layout.binder.functions[layout.n].values())
        self.callees, self.sites = _closed_callees(layout, reader, arch, functions)
        self.effects = _SectionEffects(layout, arch)
        self._arch = arch

    def closure(self, f: BoundFunction) -> set[BoundFunction] | None:
        """The function and all that it calls; None where that is not known."""
        return _closure(f, self.callees) if f in self.callees else None

    def set_to_return(self, f: BoundFunction) -> int:
        """The registers (as descriptor.Function.preserve) that the function sets right before it returns, for nothing else."""
        facts: RegisterFacts = self._arch.scan.REGISTERS
        return facts.preserve(self.effects.set_to_return(f) & facts.results & facts.representable)

    def changed(self, closure: set[BoundFunction]) -> int:
        """The registers (as descriptor.Function.preserve) that these functions may change."""
        facts: RegisterFacts = self._arch.scan.REGISTERS
        return facts.preserve(self.effects.changed_by(closure) & facts.representable)


def _parts(layout: Layout, f: PatchFunction) -> list[PatchFunction]:
    """The function and its cold part."""
    return [f, *(c for c in layout.patch.cold_parts.get(without_clone(f.name), ()) if c is not f)]


def _destination(layout: Layout, section: int, field: int) -> PatchFunction | None:
    """The function that a relocated jump or call leads into; None where that is not known."""
    r = layout.relocated(section).get(field)
    if r is None:
        return None
    s = layout.patch.symbols[r.symbol]
    if not 0 < s.section < len(layout.patch.sections):
        return None
    return layout.patch.function_covering(s.section, s.value + r.addend + layout.surveys[section].fields[field].tail)


class _SectionEffects:
    """Register effects of an object's code."""

    def __init__(self, layout: Layout, arch: Arch) -> None:
        self._layout = layout
        self._arch = arch
        self._sections: dict[int, tuple[Code, Effects, dict[int, int]]] = {}
        self._changed: dict[BoundFunction, int] = {}
        self._read: dict[PatchFunction, int] = {}

    def _section(self, number: int) -> tuple[Code, Effects, dict[int, int]]:
        """(instructions, their effects, offset of an instruction -> its index)."""
        if number not in self._sections:
            import numpy as np

            from psu_bin.arch.code import Region
            functions = self._layout.patch.functions_in(number)
            first = functions[0].start
            starts = np.array([f.start for f in functions], dtype=np.int64)
            ends = np.array([f.end for f in functions], dtype=np.int64)
            scan = self._arch.scan
            code = scan.decode((Region(first, self._layout.patch.contents[number][first:], starts, ends),))
            self._sections[number] = (code, scan.effects(code), {a: i for i, a in enumerate(code.address.tolist())})
        return self._sections[number]

    def changed(self, f: BoundFunction) -> int:
        """Registers that the function itself writes; all when it has an instruction that the disassembler does not
        know."""
        if f not in self._changed:
            self._changed[f] = self._all(_parts(self._layout, f.function), "writes")
        return self._changed[f]

    def changed_by(self, closure: set[BoundFunction]) -> int:
        """Registers that any of these functions writes."""
        out = 0
        for f in closure:
            out |= self.changed(f)
        return out

    def set_to_return(self, f: BoundFunction) -> int:
        """Registers that are set in a straight line before a return, and not read there any more: compilers set none in vain."""
        from psu_bin.arch.code import ENDS, Kind
        found = 0
        for part in _parts(self._layout, f.function):
            code, effects, index = self._section(part.section)
            i = index[part.start]
            line: list[int] = []                   # of the instructions since the last call, jump or return
            while i < len(code.address) and code.address[i] < part.end:
                kind = Kind(int(code.kind[i]))
                if kind is Kind.RETURN:
                    read = 0
                    for row in reversed(line):
                        found |= int(effects.writes[row]) & ~read
                        read |= int(effects.reads[row]) | int(effects.writes[row])
                if kind in (*ENDS, Kind.CALL, Kind.CALL_INDIRECT):
                    line = []
                else:
                    line.append(int(effects.shape[i]))
                i += 1
        return found

    def _all(self, parts: Iterable[PatchFunction], what: str) -> int:
        """What any instruction of these functions "reads" or "writes"; all registers where one is not known."""
        import numpy as np

        from psu_bin.arch.code import distinct
        out = 0
        for part in parts:
            code, effects, index = self._section(part.section)
            first = index[part.start]
            last = int(np.searchsorted(code.address, part.end))
            rows = distinct(effects.shape[first:last])
            if effects.refused[rows].any():
                return -1
            out |= int(np.bitwise_or.reduce(getattr(effects, what)[rows])) if len(rows) else 0
        return out

    def _read_behind(self, f: PatchFunction, field: int | None, target: int) -> int:
        """Registers that may be read where a jump of `f` leads that is not followed: to a place in `f` or its cold
        part, or to another function, which reads what it is passed; all where it leads to neither.

        field: of a direct jump; target: where it leads when nothing relocates it."""
        facts = self._arch.scan.REGISTERS
        patch = self._layout.patch
        section = f.section
        if field is not None:
            r = self._layout.relocated(section).get(field)
            if r is not None:
                s = patch.symbols[r.symbol]
                if s.section == elf.SHN_UNDEF:
                    return facts.arguments | facts.variadic
                section = s.section
                target = s.value + r.addend + self._layout.surveys[f.section].fields[field].tail
            other = patch.function_covering(section, target) if 0 < section < len(patch.sections) else None
            if other is None or other.start != target and without_clone(other.name) != without_clone(f.name):
                return -1
            if without_clone(other.name) != without_clone(f.name):
                return facts.arguments | facts.variadic
        return self._reads(f) | facts.arguments | facts.variadic | facts.results

    def _reads(self, f: PatchFunction) -> int:
        """Registers that the function, with its cold part, reads anywhere."""
        if f not in self._read:
            name = without_clone(f.name)
            self._read[f] = self._all({*_parts(self._layout, f), *(
                g for g in self._layout.patch.functions if g.name == name)}, "reads")
        return self._read[f]

    def live_after(self, site: _Site, candidates: int, calls: dict[int, BoundFunction],
                   closed: dict[BoundFunction, list[BoundFunction]]) -> int:
        """Which of `candidates` may be read after the call before they are set again.

        calls: callees by field, of this section; closed: what callees call, where all of it is in the object."""
        import numpy as np

        from psu_bin.arch.code import Kind
        facts = self._arch.scan.REGISTERS
        f = site.caller.function
        code, effects, index = self._section(f.section)
        relocated = self._layout.relocated(f.section)
        call = int(np.searchsorted(code.address, site.at, side="right")) - 1
        if Kind(int(code.kind[call])) is not Kind.CALL:
            return 0                              # a tail call: nothing comes after it
        passed = facts.arguments | facts.variadic
        found = 0
        seen: dict[int, int] = {}
        queue = [(call + 1, candidates)]
        while queue:
            i, left = queue.pop()
            while left & ~found & ~seen.get(i, 0) and i < len(code.address) and f.start <= code.address[i] < f.end:
                seen[i] = seen.get(i, 0) | left
                kind, row, at = Kind(int(code.kind[i])), effects.shape[i], int(code.address[i])
                found |= int(effects.reads[row]) & left
                left &= ~int(effects.kills[row])
                field = at + int(code.field_at[i])
                if kind is Kind.CALL:
                    found |= left & passed
                    callee = calls.get(field)
                    if callee is None or callee not in closed:
                        break
                    for g in _closure(callee, closed):
                        left &= ~self.changed(g)
                elif kind is Kind.CALL_INDIRECT:
                    found |= left & passed
                    break
                elif kind is Kind.RETURN:
                    found |= left & facts.results
                    break
                elif kind is Kind.TRAP:
                    break
                elif kind is Kind.JUMP_INDIRECT or kind in (Kind.JUMP, Kind.BRANCH) and (
                        field in relocated or int(code.target[i]) not in index
                        or not f.start <= int(code.target[i]) < f.end):
                    # A switch, a tail call, the cold part: not followed.
                    relative = None if kind is Kind.JUMP_INDIRECT else field
                    found |= left & self._read_behind(f, relative, int(code.target[i]))
                    if kind is not Kind.BRANCH:
                        break
                elif kind is Kind.JUMP:
                    i = index[int(code.target[i])]
                    continue
                elif kind is Kind.BRANCH:
                    queue.append((index[int(code.target[i])], left))
                i += 1
        return found & facts.representable
