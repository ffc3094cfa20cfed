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

from typing import TYPE_CHECKING, NamedTuple

from psu_bin.arch import Arch
from psu_bin.attach.layout import Layout
from psu_bin.attach.meaning import BoundFunction
from psu_bin.attach.references import Reader

if TYPE_CHECKING:
    from psu_bin.arch.code import Code, Effects


class _Site(NamedTuple):
    """A direct call inside one object."""
    caller: BoundFunction
    at: int                # offset of its field
    callee: BoundFunction


def find(layout: Layout, reader: Reader, arch: Arch) -> dict[BoundFunction, int]:
    """By function with a stub: the registers (as descriptor.Function.preserve) that this object's code relies on."""
    functions = list(layout.binder.functions[layout.n].values())
    callees, sites = _closed_callees(layout, reader, arch, functions)
    wanted = [s for s in sites if s.callee in callees and any(reader.has_stub(f) for f in _closure(s.callee, callees))]
    if not wanted:
        return {}
    effects = _SectionEffects(layout, arch)
    inside: dict[int, dict[int, BoundFunction]] = {}       # by section: field -> callee
    for s in sites:
        inside.setdefault(s.caller.function.section, {})[s.at] = s.callee
    out: dict[BoundFunction, int] = {}
    for site in wanted:
        closure = _closure(site.callee, callees)
        changed = 0
        for f in closure:
            changed |= effects.changed(f)
        mask = effects.live_after(site, arch.scan.REGISTERS.representable & ~changed,
                                  inside[site.caller.function.section], callees)
        for f in closure:
            if mask and reader.has_stub(f):
                out[f] = out.get(f, 0) | mask
    return out


def _closed_callees(layout: Layout, reader: Reader, arch: Arch, functions: list[BoundFunction],
                    ) -> tuple[dict[BoundFunction, list[BoundFunction]], list[_Site]]:
    """(what each function calls, for functions that with all they call stay in the object; all calls in the object)."""
    calls: dict[BoundFunction, list[BoundFunction]] = {}
    sites = []
    for f in functions:
        section = f.function.section
        code = layout.patch.contents[section]
        fields, unknown = arch.link.leaves(code, f.function.start, f.function.end)
        found = []
        for at in fields:
            callee = reader.calls.get((layout.n, section, at))
            if callee is None or callee.patch != layout.n:
                unknown = True
            else:
                found.append(callee)
                sites.append(_Site(f, at, callee))
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


class Leaves:
    """What functions that call nothing change: the same small functions on whose registers callers rely."""

    def __init__(self, layouts: list[Layout], arch: Arch) -> None:
        self._layouts = layouts
        self._arch = arch
        self._effects = {layout.n: _SectionEffects(layout, arch) for layout in layouts}

    def changed(self, f: BoundFunction) -> int:
        """The registers (as descriptor.Function.preserve) that the new version may change; all where that is not known."""
        patch = self._layouts[f.patch].patch
        fields, unknown = self._arch.link.leaves(patch.contents[f.function.section], f.function.start, f.function.end)
        if fields or unknown:
            return -1
        return self._effects[f.patch].changed(f)


class _SectionEffects:
    """Register effects of an object's code."""

    def __init__(self, layout: Layout, arch: Arch) -> None:
        self._layout = layout
        self._arch = arch
        self._sections: dict[int, tuple[Code, Effects, dict[int, int]]] = {}
        self._changed: dict[BoundFunction, int] = {}
        self._fields: dict[int, set[int]] = {}

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

    def _relocated(self, section: int) -> set[int]:
        """Offsets of the section's relocated fields."""
        if section not in self._fields:
            self._fields[section] = {r.offset for r in self._layout.patch.relocs.get(section, ())}
        return self._fields[section]

    def changed(self, f: BoundFunction) -> int:
        """Registers that the function itself writes; all when it has an instruction that the disassembler does not know."""
        if f not in self._changed:
            code, effects, index = self._section(f.function.section)
            out = 0
            i = index[f.function.start]
            while i < len(code.address) and code.address[i] < f.function.end:
                row = effects.shape[i]
                out |= -1 if effects.refused[row] else int(effects.writes[row])
                i += 1
            self._changed[f] = out
        return self._changed[f]

    def live_after(self, site: _Site, candidates: int, calls: dict[int, BoundFunction],
                   closed: dict[BoundFunction, list[BoundFunction]]) -> int:
        """Which of `candidates` may be read after the call before they are set again.

        calls: callees by field, of this section; closed: what callees call, where all of it is in the object."""
        import numpy as np

        from psu_bin.arch.code import Kind
        facts = self._arch.scan.REGISTERS
        f = site.caller.function
        code, effects, index = self._section(f.section)
        relocated = self._relocated(f.section)
        call = int(np.searchsorted(code.address, site.at)) - 1
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
                    found |= left                 # a switch, a tail call, the cold part: anything may be read there
                    if kind is not Kind.BRANCH:
                        break
                elif kind is Kind.JUMP:
                    i = index[int(code.target[i])]
                    continue
                elif kind is Kind.BRANCH:
                    queue.append((index[int(code.target[i])], left))
                i += 1
        return found & facts.representable
