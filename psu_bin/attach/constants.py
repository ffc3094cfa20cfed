"""Interning read-only data by content: which constants are there already, and where the others go.

A constant that the process already has, from the program or from an earlier patch, is used again, so that addresses
stay comparable across versions and memory is bounded by the number of distinct constants.  Content is what it is
after relocation, so constants that others point to are settled first.  Those that point to each other (or to
themselves, or hold PC-relative offsets) have a content that depends on where they are: for each stored constant of
the right size it is worked out what they would be there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from psu_bin.arch.link_types import Use
from psu_bin.attach.meaning import BoundFunction, External, Fixed, Piece, Reference, Room, Target, Twin
from psu_bin.attach.view import ModuleView, Stored
from psu_bin.errors import PsuError

Address = Callable[[Target], int | None]        # None: has no lasting address, or none yet


class EqualTwins:
    """The twins whose object in the program has the content that the patch wants."""

    def __init__(self, pieces: Iterable[Piece], demoted: set[Twin], coupled: list[tuple[Twin, ...]],
                 views: dict[int, ModuleView], address: Address,
                 extent: Callable[[Piece, int], tuple[int, int]]) -> None:
        """demoted: not to be used; coupled: all of a group or none; views: by patch number; address: of fixed targets,
        externals and stubs; extent: which bytes of a piece belong together with the one at an offset."""
        self._extent = extent
        self._views = views
        self._address = address
        self.equal = {r.target for p in pieces for r in p.references if isinstance(r.target, Twin)} - demoted
        # Assume that all are equal and drop what is not, until nothing changes: so objects that point to each other
        # are found equal as well.
        while dropped := {t for t in self.equal if not self._matches(t)} | {
                t for group in coupled for t in group if t in self.equal and not self.equal.issuperset(group)}:
            self.equal -= dropped

    def _matches(self, t: Twin) -> bool:
        view = self._views[t.piece.patch]
        if view.read is None:
            return False
        try:
            there = view.read(t.address, t.end - t.start)
        except PsuError:
            return False
        want = bytearray(t.piece.data[t.start:t.end] or bytes(t.end - t.start))
        have = bytearray(there)
        for r in t.piece.references:
            if t.start <= r.at < t.end:
                at = r.at - t.start
                word = int.from_bytes(there[at:at + 8], "little")
                if r.use is not Use.ADDRESS or at + 8 > len(have) or not self._same(view, r, word):
                    return False
                want[at:at + 8] = have[at:at + 8] = bytes(8)
        return want == have

    def _same(self, view: ModuleView, r: Reference, word: int) -> bool:
        """The pointer `word` in the program means what the reference does."""
        target = r.target
        if isinstance(target, Twin):
            return target in self.equal and word == target.address + r.offset
        if isinstance(target, Piece):
            if target.room is not Room.CONSTANT or view.read is None:
                return False
            start, end = self._extent(target, r.offset)
            if any(start <= x.at - target.start < end for x in target.references):
                return False
            try:
                return view.read(word - r.offset + start, end - start) == target.data[start:end]
            except PsuError:
                return False
        if isinstance(target, (Fixed, External, BoundFunction)):
            address = self._address(target)
            return address is not None and word == address + r.offset
        return False


def needed(pieces: Iterable[Piece], equal: set[Twin]) -> list[Piece]:
    """The constants that are referred to, directly or through others, once the equal twins stand for themselves."""
    out: dict[Piece, None] = {}
    queue = [p for p in pieces if p.room is not Room.CONSTANT]
    while queue:
        for r in queue.pop().references:
            target = r.target.piece if isinstance(r.target, Twin) and r.target not in equal else r.target
            if isinstance(target, Piece) and target.room is Room.CONSTANT and target not in out:
                out[target] = None
                queue.append(target)
    return list(out)


def in_order(constants: list[Piece], equal: set[Twin]) -> list[list[Piece]]:
    """Groups of constants that point to each other, each group after those that it points to (Tarjan's algorithm)."""
    number: dict[Piece, int] = {}
    low: dict[Piece, int] = {}
    stack: list[Piece] = []
    on_stack: set[Piece] = set()
    out: list[list[Piece]] = []
    for root in constants:
        if root in number:
            continue
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(_successors(root, equal)))]
        while work:
            piece, successors = work[-1]
            for following in successors:
                if following not in number:
                    number[following] = low[following] = len(number)
                    stack.append(following)
                    on_stack.add(following)
                    work.append((following, iter(_successors(following, equal))))
                    break
                if following in on_stack:
                    low[piece] = min(low[piece], number[following])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[piece])
                if low[piece] == number[piece]:
                    group = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        group.append(member)
                        if member is piece:
                            break
                    out.append(sorted(group, key=lambda p: (p.patch, p.section, p.start)))
    return out


def _successors(piece: Piece, equal: set[Twin]) -> list[Piece]:
    out = []
    for r in piece.references:
        target = r.target.piece if isinstance(r.target, Twin) and r.target not in equal else r.target
        if isinstance(target, Piece) and target.room is Room.CONSTANT:
            out.append(target)
    return out


class Shelf:
    """The room for new constants of one module."""

    def __init__(self, view: ModuleView, start: int, size: int, relative: Callable[[int], bool]) -> None:
        """relative: whether a relocation type is minus P."""
        self.view = view
        self.start = start
        self.used = 0
        self.size = size
        self._relative = relative
        self.stored: list[Stored] = []
        self.written: list[tuple[int, bytes]] = []
        self._placed: dict[bytes, list[int]] = {}

    def place(self, group: list[Piece], equal: set[Twin], addresses: dict[Piece, int],
              fill: Callable[[Piece, int], bytes]) -> None:
        """Give each piece of `group` its address, in `addresses`; fill(piece, address) -> its bytes there."""
        align = max(p.align for p in group)
        offsets, at = [], 0
        for p in group:
            at = -(-at // p.align) * p.align
            offsets.append(at)
            at += p.size
        size = at

        def image(base: int) -> bytes:
            """The group's bytes at `base`."""
            for p, offset in zip(group, offsets):
                addresses[p] = base + offset
            out = bytearray(size)
            for p, offset in zip(group, offsets):
                out[offset:offset + p.size] = fill(p, base + offset)
            return bytes(out)

        floating = not any(self._depends_on_place(p, set(group), equal) for p in group)
        if floating:
            content = image(0)
            base = self.view.find_constant(content, align)
            if base is None:
                base = next((b for b in self._placed.get(content, ()) if b % align == 0), None)
        else:
            base = next((c.address for c in self.view.stored_by_size.get(size, ()) if c.address % align == 0
                         and self._is(c, image)), None)
        if base is None:
            base = -(-(self.start + self.used) // align) * align
            content = image(base)
            self.used = base + size - self.start
            if self.used > self.size:
                raise AssertionError("the room asked for constants is too small")
            self.stored.append(Stored(zlib.crc32(content), base, size, align))
            self.written.append((base, content))
            if floating:
                self._placed.setdefault(content, []).append(base)
        image(base)

    def _is(self, c: Stored, image: Callable[[int], bytes]) -> bool:
        try:
            content = image(c.address)
        except PsuError:        # out of range there
            return False
        return zlib.crc32(content) == c.crc and self.view.read is not None and (
            self.view.read(c.address, c.size) == content)

    def _depends_on_place(self, piece: Piece, group: set[Piece], equal: set[Twin]) -> bool:
        return any(self._relative(r.type) for r in piece.references) or any(
            p in group for p in _successors(piece, equal))
