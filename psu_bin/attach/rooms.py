"""The memory of one injected object: code, PLT entries, GOT, what only the code reads, the file for debuggers, unwind
rules, the table of calls inside it, writable tables.

Calls inside the object lead to the callee's body (inner.py), or, where they cannot be turned, to the stub that everybody
else calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from psu_bin.arch.link_types import Use
from psu_bin.attach import inner
from psu_bin.attach.meaning import BoundFunction, Piece, Reference, Target

if TYPE_CHECKING:
    from psu_bin.attach.inner import Call


class ObjectRoom:
    """Offsets from the object's address.  Filled in order: add (code), add_calls, add_tables, add_thunks, add (private
    data), add_symfile, add_unwind, add_table, close, add (writable), end."""

    def __init__(self, plt_size: int, slot_size: int) -> None:
        self.plt_size = plt_size
        self.looks: set[BoundFunction] = set()     # inner.looks
        self._slot_size = slot_size
        self.size = 0
        self.closed = 0        # where the executable part ends, a multiple of the page size
        self.got = 0
        self.symfile = 0       # offset of the file for debuggers
        self.unwind = 0        # offset of .eh_frame, 0: none
        self.rows = 0          # offset of the unwind rows of PLT entries
        self.unwind_end = 0
        self.stubs = self.stubs_end = 0    # offsets of the PLT entries
        self._slots: dict[tuple[Target, int], int] = {}
        self._plts: dict[Target, int] = {}
        self._thunks: dict[tuple[Piece, int], int] = {}
        self.bodies: dict[int, int] = {}   # by the offset of its field, where a call inside the object leads
        self._reached = 0
        self.table_bytes = b""
        self.table = 0

    def add(self, piece: Piece, align: int = 0) -> None:
        """Give `piece` its offset."""
        align = align or max(piece.align, 1)
        skew = piece.start % align
        self.size = -(-(self.size - skew) // align) * align + skew
        piece.offset = self.size
        self.size += piece.size

    def add_calls(self, calls: Iterable[Call], apart: int) -> None:
        """Say which calls inside the object lead to the callee's body: those that can be turned while somebody executes them.

        apart: how far from the next one an entry must be for that: what its own stub takes (inner.stub_size)."""
        all_ = list(calls)
        entries = sorted({c.callee for c in all_})
        near = {a for a, b in zip(entries, entries[1:]) if b - a < apart}
        self.bodies = {c.at: c.callee for c in all_ if c.turnable and c.callee not in near}
        self._reached = max((at + apart for at in self.bodies.values()), default=0)
        self.table_bytes = inner.encode(list(self.bodies.items())) if self.bodies else b""

    def forget_calls(self) -> None:
        """There is no room for stubs at a distance: calls inside the object are like any others."""
        self.bodies, self.table_bytes = {}, b""

    def mirrored(self, page: int) -> int:
        """Bytes from the object's start, whole pages, in which there are bodies that calls inside it lead to; 0: none."""
        return -(-self._reached // page) * page

    def add_table(self) -> None:
        """The table of the calls inside the object."""
        self.table = self.size
        self.size += len(self.table_bytes)

    def add_tables(self, needs: list[tuple[Use, Target, int]], far: Callable[[Target], bool]) -> None:
        """PLT entries for branches that may lead out of reach, GOT slots for them and for what asks for one."""
        branches = list(dict.fromkeys(t for use, t, _ in needs if use is Use.BRANCH and far(t)))
        wanted = [(t, 0) for t in branches] + [
            (t, offset) for use, t, offset in needs if use in (Use.GOT, Use.GOT_SLOT_OFFSET, Use.TLS_GOT)]
        self.size = self.stubs = -(-self.size // 16) * 16
        for t in branches:
            self._plts[t] = self.size
            self.size += self.plt_size
        self.stubs_end = self.size
        self.size = -(-self.size // self._slot_size) * self._slot_size
        self.got = self.size
        for key in dict.fromkeys(wanted):
            self._slots[key] = self.size
            self.size += self._slot_size

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

    def add_unwind(self, pieces: list[Piece], distant: int, rows: int) -> None:
        """`distant` bytes, a multiple of 8, for the rows of the stubs at a distance, .eh_frame sections back to back, `rows` bytes
        for the PLT entries, and the zero that ends them."""
        if not pieces:
            return
        self.unwind = -(-self.size // 8) * 8
        self.size = self.unwind + distant
        for n, p in enumerate(pieces):
            self.add(p, 8 if n == 0 else 4)
        self.rows = -(-self.size // 4) * 4
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
