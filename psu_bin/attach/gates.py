"""Which kind of gate each function of a patch needs, and what registers it must keep.

PLAIN where neither the new version nor the original touches its caller's stack arguments, SIDE where one does or may,
FULL where callers rely on registers that the ABI gives away, or on a convention of their own (DESIGN.md, "Gate").  FULL
is slow.  What callers rely on is mostly that a small function leaves registers alone, and most new versions still do:
where that can be seen, and the other gate does not change them either, it is not needed."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from psu_bin import descriptor
from psu_bin.arch import Arch
from psu_bin.attach import cfi, checks, reliance, results
from psu_bin.attach.layout import Layout
from psu_bin.attach.meaning import BoundFunction
from psu_bin.attach.patch import PatchFunction, PatchSymbol, without_clone
from psu_bin.attach.references import Reader
from psu_bin.attach.shim import FULL, PLAIN, SIDE
from psu_bin.errors import PsuError


# In Gate.preserve of a full gate, above the registers: what the shim may do with calls that find no memory (shim/poor.c).
REGISTERS = (1 << 32) - 1
MOVABLE = 1 << 32             # neither the new version nor the original touches stack arguments
ORIGINAL_WILL_DO = 1 << 33    # callers rely on nothing but what the original leaves alone


class Gate(NamedTuple):
    kind: int
    preserve: int


def decide(layouts: list[Layout], reader: Reader, arch: Arch) -> tuple[
        dict[BoundFunction, Gate], dict[int, dict[BoundFunction, int]]]:
    """(the gate of each function with a stub; by patch, the registers that its code relies on from each such one)."""
    stack = _StackArguments(layouts, reader, arch.link)
    closed = {layout.n: reliance.Closed(layout, reader, arch) for layout in layouts}
    relied = {n: reliance.find(c, reader, arch) for n, c in closed.items()}
    out: dict[BoundFunction, Gate] = {}
    types = results.Types()
    problems = []
    for layout in layouts:
        for bound in layout.binder.functions[layout.n].values():
            if not reader.has_stub(bound) or not layout.binder.stands(bound):
                continue
            view = layout.binder.views[bound.module]
            stub = view.stub(bound.number) if not bound.new else bound.known_stub
            preserve = view.relied.get(stub, 0)
            # Callers in this transaction were compiled with this version: only the gate itself can disappoint them.
            together = 0
            for masks in relied.values():
                together |= masks.get(bound, 0)
            touches = stack.touches(bound)
            own = False
            if not bound.new:
                original = view.descriptor.functions[bound.number]
                preserve |= original.preserve
                touches = touches or bool(original.flags & descriptor.STACK_ARGS)
                own = bool(original.flags & descriptor.OWN_CONVENTION)
            kind = SIDE if touches else PLAIN

            def full() -> bool:
                return own or bool((preserve | together) & arch.link.GATE_CHANGES[kind]) or bool(
                    preserve and not _leaves_alone(bound, preserve, closed[layout.n], layout, reader))

            if (preserve | together) & arch.link.RESULTS and full():
                # What the original left alone may be its result, which a new version may change.
                dropped = types.result(bound.function.name, layout.patch, view, arch.link)
                if dropped is not None:
                    preserve &= ~dropped
                    together &= ~dropped
                elif _may_return_in(preserve | together, bound, closed[layout.n], arch.link):
                    problems.append(PsuError(
                        layout.patch.path, f"the type of {bound.function.name}'s result is not known, and registers that callers "
                                           "rely on may be where it is", "compile the patch with -g"))
            if full():
                kept = preserve | together
                if not touches:
                    kept |= MOVABLE
                elif not bound.new and not kept & ~original.preserve:
                    kept |= ORIGINAL_WILL_DO
                out[bound] = Gate(FULL, kept)
            else:
                out[bound] = Gate(kind, 0)
    checks.refuse(problems)
    return out, relied


def _may_return_in(registers: int, bound: BoundFunction, closed: reliance.Closed, link: ModuleType) -> bool:
    """Whether the new version, whose type is not known, may have its result in one of `registers`, and another than before.

    Of those that more often carry results than values that callers rely on; and of the others where it seems to be so."""
    closure = closed.closure(bound)
    found = closed.set_to_return(bound) & link.RESULTS
    if closure is None:
        found |= link.INTEGER_RESULT
    else:
        found |= closed.changed(closure) & (link.INTEGER_RESULT | link.FLOAT_RESULT)
    return bool(registers & found)


def _leaves_alone(bound: BoundFunction, registers: int, closed: reliance.Closed, layout: Layout,
                  reader: Reader) -> bool:
    """The new version, with all that it calls, changes none of the registers, and neither will other versions of what
    it calls: the program's own do not, as callers in the program rely on that, for which later gates must keep them,
    too."""
    closure = closed.closure(bound)
    if closure is None or closed.changed(closure) & registers:
        return False
    for f in closure - {bound}:
        if f.new and reader.has_stub(f):
            return False
        if not f.new and registers & ~layout.binder.views[f.module].descriptor.functions[f.number].preserve:
            return False
    return True


class _StackArguments:
    """Whether functions touch their stack arguments, over tail calls."""

    def __init__(self, layouts: list[Layout], reader: Reader, link: ModuleType) -> None:
        self._layouts = layouts
        self._reader = reader
        self._link = link
        self._frames = [{(section, frame.start): frame for section, found in cfi.frames(layout.patch).items()
                         for frame in found} for layout in layouts]
        self._known: dict[BoundFunction, bool] = {}
        self._inside: dict[tuple[int, int], dict[int, int]] = {}

    def touches(self, bound: BoundFunction) -> bool:
        if bound not in self._known:
            self._known[bound] = False            # a cycle of tail calls adds nothing
            self._known[bound] = self._examine(bound)
        return self._known[bound]

    def _examine(self, bound: BoundFunction) -> bool:
        layout = self._layouts[bound.patch]
        patch = layout.patch
        name = without_clone(bound.function.name)
        for f in [bound.function, *(f for f in patch.cold_parts.get(name, ()) if f is not bound.function)]:
            rows = self._rows(bound.patch, f)
            use = self._link.stack_use(patch.contents[f.section], f.start, f.end, rows,
                                       layout.relocated(f.section))
            if use.touched or any(self._jump_touches(layout, f, at, name) for at in use.jumps):
                return True
        return False

    def _rows(self, n: int, f: PatchFunction) -> tuple[tuple[int, int, int], ...]:
        frame = self._frames[n].get((f.section, f.start))
        return tuple(row[:3] for row in frame.rows) if frame else ()

    def _jump_touches(self, layout: Layout, f: PatchFunction, at: int, name: str) -> bool:
        """A jump out of the function, at field `at`: does the code that it leads to touch stack arguments?"""
        patch = layout.patch
        callee = self._reader.calls.get((layout.n, f.section, at))
        if callee is not None:
            original = not callee.new and layout.binder.views[callee.module].descriptor.functions[
                callee.number].flags & descriptor.STACK_ARGS
            return bool(original) or self.touches(callee)
        survey = layout.surveys[f.section]
        inside = self._resolved(layout, f.section).get(at)
        if inside is not None:
            other = patch.function_covering(f.section, inside)
            return other is None or without_clone(other.name) != name
        r = layout.relocated(f.section).get(at)
        if r is None:
            return True
        s = patch.symbols[r.symbol]
        if 0 < s.section < len(patch.sections):
            other = patch.function_covering(s.section, s.value + r.addend + survey.fields[at].tail)
            return other is None or without_clone(other.name) != name
        return self._program_touches(layout, s)

    def _resolved(self, layout: Layout, section: int) -> dict[int, int]:
        """Where the references lead that the assembler resolved, by their fields."""
        key = layout.n, section
        if key not in self._inside:
            self._inside[key] = {ref.at: ref.target for ref in layout.surveys[section].resolved}
        return self._inside[key]

    def _program_touches(self, layout: Layout, s: PatchSymbol) -> bool:
        """A tail call to a function that the patch does not define."""
        view = layout.binder.views[layout.binder.module[layout.n]]
        found = view.globals.get(s.name)
        if found is None or found.function == descriptor.NO_FUNCTION:
            return True                           # a library's: not known
        return bool(view.descriptor.functions[found.function].flags & descriptor.STACK_ARGS)
