"""The memory of one injected object: code, PLT entries, GOT, what only the code reads, the file for debuggers, unwind
rules, writable tables.

Calls inside the object go through near stubs (near.py has what they are; they are closed at first), or,
where there is no room for one, through stubs of its own (locals), each with a writable pair of words: where it leads now,
and the stub that everybody else calls (psu_local in shim/runtime.h)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from psu_bin.arch.link_types import Use
from psu_bin.attach.meaning import BoundFunction, Piece, Reference, Target

if TYPE_CHECKING:
    from psu_bin.arch import Arch, NearForm
    from psu_bin.attach.patch import PatchFunction

PAIR = 16      # bytes of a psu_local


class ObjectRoom:
    """Offsets from the object's address.  Filled in order: add_code, add_locals, add_tables, add_thunks, add (private
    data), add_symfile, add_unwind, close, add (writable), add_pairs, end."""

    def __init__(self, plt_size: int, slot_size: int) -> None:
        self.plt_size = plt_size
        self._slot_size = slot_size
        self.size = 0
        self.closed = 0        # where the executable part ends, a multiple of the page size
        self.got = 0
        self.symfile = 0       # offset of the file for debuggers
        self.unwind = 0        # offset of .eh_frame, 0: none
        self.rows = 0          # offset of the unwind rows of stubs and PLT entries
        self.unwind_end = 0
        self.stubs = self.stubs_end = 0    # offsets of the stubs and PLT entries
        self._slots: dict[tuple[Target, int], int] = {}
        self._plts: dict[Target, int] = {}
        self._thunks: dict[tuple[Piece, int], int] = {}
        self._locals: dict[BoundFunction, int] = {}
        self._nears: dict[BoundFunction, int] = {}
        self._pairs = 0

    def add(self, piece: Piece, align: int = 0) -> None:
        """Give `piece` its offset."""
        align = align or max(piece.align, 1)
        skew = piece.start % align
        self.size = -(-(self.size - skew) // align) * align + skew
        piece.offset = self.size
        self.size += piece.size

    def add_code(self, piece: Piece, functions: Sequence[PatchFunction], called: Sequence[BoundFunction],
                 trampolines: Collection[int], form: NearForm, machine: Arch) -> None:
        """Give a section of code its offset, and those of `called`, functions in it that the object calls itself, near
        stubs: in the padding between functions, or in front of the section.

        functions: all that are in the section.  form: of near stubs.
        trampolines: where the padding has a jump already that short branches need (Rerouted.trampoline)."""
        size, unit = len(form.nop), machine.store_unit
        if any(f.function.start == 0 for f in called):
            self.size += -(-size // unit) * unit
        self.add(piece)
        functions = sorted(functions, key=lambda f: f.start)
        starts = [f.start for f in functions]
        ends = [0, *accumulate((f.end for f in functions), max)]     # hand-written functions may be nested
        for f in called:
            start = f.function.start
            at = piece.offset + start - size
            if at // unit != (at + size - 1) // unit:
                continue
            if start:
                before = ends[bisect.bisect_left(starts, start)]
                if start - before < size or not machine.is_padding(piece.data[before:start]):
                    continue
                if any(start - size - machine.jump_size < t < start for t in trampolines):
                    continue
            self._nears[f] = at

    def near(self, f: BoundFunction) -> int | None:
        """Offset of the near stub of `f`."""
        return self._nears.get(f)

    def nears(self) -> list[tuple[BoundFunction, int]]:
        """(function, offset of its near stub)."""
        return list(self._nears.items())

    def entry(self, f: BoundFunction) -> int | None:
        """Offset of what calls of `f` inside the object lead to; None where they are like any others."""
        return self._nears.get(f, self._locals.get(f))

    def add_tables(self, needs: list[tuple[Use, Target, int]], far: Callable[[Target], bool]) -> None:
        """PLT entries for branches that may lead out of reach, GOT slots for them and for what asks for one."""
        branches = list(dict.fromkeys(t for use, t, _ in needs if use is Use.BRANCH and far(t)))
        wanted = [(t, 0) for t in branches] + [
            (t, offset) for use, t, offset in needs if use in (Use.GOT, Use.GOT_SLOT_OFFSET, Use.TLS_GOT)]
        self.size = -(-self.size // 16) * 16
        for t in branches:
            self._plts[t] = self.size
            self.size += self.plt_size
        self.stubs_end = self.size
        self.size = -(-self.size // self._slot_size) * self._slot_size
        self.got = self.size
        for key in dict.fromkeys(wanted):
            self._slots[key] = self.size
            self.size += self._slot_size

    def add_locals(self, functions: list[BoundFunction], size: int) -> None:
        """Stubs of `size` bytes for calls inside the object."""
        self.stubs = self.size = -(-self.size // size) * size
        for f in dict.fromkeys(functions):
            self._locals[f] = self.size
            self.size += size

    def add_pairs(self) -> None:
        """The words that belong to those stubs."""
        self._pairs = self.size = -(-self.size // PAIR) * PAIR
        self.size += PAIR * len(self._locals)

    def locals(self) -> list[tuple[BoundFunction, int, int]]:
        """(function, offset of its stub, offset of its pair)."""
        return [(f, at, self._pairs + PAIR * n) for n, (f, at) in enumerate(self._locals.items())]

    def add_thunks(self, fields: list[tuple[Piece, Reference]], size: int) -> None:
        """Room and GOT slots for instructions that may have to be rewritten because what they name is too far away."""
        for _, r in fields:
            assert r.target is not None
            key = (r.target, r.offset + r.tail)
            if key not in self._slots:
                self._slots[key] = self.size
                self.size += self._slot_size
        for piece, r in fields:
            self._thunks[piece, r.at] = self.size
            self.size += size

    def thunk(self, piece: Piece, at: int) -> int | None:
        """Offset of the room for the thunk of the field at `at`."""
        return self._thunks.get((piece, at))

    def add_symfile(self, size: int) -> None:
        """The file for debuggers, which ends with the .eh_frame that is added next."""
        self.symfile = -(-self.size // 8) * 8
        self.size = self.symfile + size

    def add_unwind(self, pieces: list[Piece], rows: int) -> None:
        """.eh_frame sections back to back, `rows` bytes for the stubs, and the zero that ends them."""
        for n, p in enumerate(pieces):
            self.add(p, 8 if n == 0 else 4)
        if pieces:
            self.unwind, self.rows = pieces[0].offset, -(-self.size // 4) * 4
            self.size = self.unwind_end = self.rows + rows + 4

    def close(self, page: int) -> None:
        """End of the executable part."""
        self.size = self.closed = -(-self.size // page) * page

    def end(self, page: int) -> None:
        self.size = -(-self.size // page) * page

    def slot(self, target: Target | None, offset: int) -> int:
        """Offset of the GOT slot for `target` + `offset`."""
        assert target is not None
        return self._slots[target, offset]

    def plt(self, target: Target | None) -> int | None:
        return self._plts.get(target) if target is not None else None

    def slots(self) -> list[tuple[Target, int, int]]:
        """(target, offset, where the slot is)."""
        return [(t, offset, at) for (t, offset), at in self._slots.items()]

    def plts(self) -> list[tuple[Target, int]]:
        return list(self._plts.items())
