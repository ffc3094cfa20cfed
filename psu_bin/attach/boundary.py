"""Which of two neighbouring objects an address means, when it is the end of one and the start of the other.

C allows the address one past an array's end, and the assembler has thrown the symbol away.  The reasoning, in order:

1. Both readings give the same address: it does not matter.
2. A load or store right there, or through a register that the address was put into only to index it, is of the object
   that starts there: nothing may be read past an end.
3. The base of a jump table is the table.
4. An address that the code counts down from is an end.  One that is only compared with is most likely an end; it is
   believed when the function also takes the start of that array, and not that of the object behind it.
5. An address that is passed on is a start, unless the function does something with the address of the object before
   it as well: begin and end may be a pair.  Of constants only a pair in one straight line of code, or one that is
   compared, counts.
6. Otherwise it is Undecided.  Constants are then all taken from the patch's own image of the section, where both
   readings are one address; for variables the patch is refused: `-fdata-sections` gives each object its section, and
   certainty.

The same doubt is about an indexed access (`a-4(,%rax,4)`) shortly before an object's start.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from psu_bin.arch.link_types import Access, Use
from psu_bin.attach.patch import PatchFunction

if TYPE_CHECKING:
    from psu_bin.attach.layout import Layout, Object
    from psu_bin.attach.meaning import Piece

BEFORE = 16            # how far before an object's start an indexed access may begin (a[i-1], a[i-2] of large elements)

INDEX = 8              # and how far when nothing else tells


class Mention(NamedTuple):
    """A reference from code into the section at hand."""
    to: int                # offset in that section
    how: Access
    line: int              # number of the straight line of code that it is in


class Undecided(NamedTuple):
    """Neither reading is likely enough."""
    what: str
    objects: tuple[Object, ...]


class Ordered:
    """The objects of a section, ascending by start; they may overlap."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects
        self._starts = [o.start for o in objects]
        self._reach = list(accumulate((o.end for o in objects), max))      # how far those up to each one go

    def covering(self, at: int) -> Object | None:
        """The first object that has the byte at `at`."""
        found, n = None, bisect.bisect_right(self._starts, at) - 1
        while n >= 0 and self._reach[n] > at:
            found = self.objects[n] if self.objects[n].end > at else found
            n -= 1
        return found

    def ending(self, at: int) -> Object | None:
        """The first object, not an empty one, that ends at `at`."""
        found, n = None, bisect.bisect_left(self._starts, at) - 1
        while n >= 0 and self._reach[n] >= at:
            found = self.objects[n] if self.objects[n].end == at else found
            n -= 1
        return found

    def starting(self, first: int, last: int) -> Object | None:
        """The first object that starts at `first` or behind it, up to `last`."""
        n = bisect.bisect_left(self._starts, first)
        return self.objects[n] if n < len(self._starts) and self._starts[n] <= last else None


def choose(ordered: Ordered, at: int, access: Access, line: int, mentions: Callable[[], list[Mention]],
           image: Piece | None) -> Object | Undecided | None:
    """The object meant by offset `at` of its section; None: no object (the image of the section, if it has one).

    line: of the reference, as in Mention; mentions: what the function at hand refers to in this section."""
    objects = ordered.objects
    if len(objects) == 1 and (image is None or objects[0].start == 0 and objects[0].end == image.end):
        return objects[0]
    covering, ending = ordered.covering(at), ordered.ending(at)
    if covering is None:
        return _outside(ordered, at, access, line, ending, mentions, image)
    if covering.start == at and ending is not None and ending.shift != covering.shift:
        return _at_boundary(covering, ending, access, line, mentions(), image is None)
    following = ordered.starting(covering.end, at + BEFORE)
    if following is not None and following.shift != covering.shift and at != covering.start:
        if access is Access.INDEXED and following.start - at <= INDEX and not any(
                following.start <= m.to < following.end for m in mentions()):
            return Undecided(f"cannot tell {_name(covering)} from an index below {_name(following)}",
                             (covering, following))
        if access in (Access.ADDRESS, Access.COMPARED) and covering.end - covering.start <= 8:
            return Undecided(f"cannot tell {_name(covering)} from an address below {_name(following)}",
                             (covering, following))
    return covering


def _outside(ordered: Ordered, at: int, access: Access, line: int, ending: Object | None,
             mentions: Callable[[], list[Mention]], image: Piece | None) -> Object | Undecided | None:
    """No object has the byte: the end of the one before, an unnamed constant, or an index below the next."""
    if ending is not None and access is Access.BELOW:
        return ending
    if image is not None:
        if ending is not None and ending.target is not image and (
                access is Access.COMPARED and any(ending.start <= m.to < ending.end for m in mentions())
                or access is Access.ADDRESS and _passed_with(ending, line, mentions())):
            return Undecided(f"cannot tell the end of {_name(ending)} from an unnamed constant", (ending,))
        return None
    if ending is not None:
        return ending
    following = ordered.starting(at + 1, at + BEFORE)
    return following if access not in (Access.EXACT, Access.WRITTEN) else None


def _at_boundary(starting: Object, ending: Object, access: Access, line: int, mentions: list[Mention],
                 strict: bool) -> Object | Undecided:
    """strict: both are variables, where a wrong guess would corrupt something."""
    if access in (Access.EXACT, Access.WRITTEN, Access.INDEXED, Access.TABLE, Access.DATA):
        return starting
    if access is Access.BELOW:
        return ending
    if access is Access.COMPARED:
        held = (Access.ADDRESS, Access.INDEXED)          # the address is in a register
        if any(m.to == ending.start and m.how in held for m in mentions) and not any(
                starting.start <= m.to < starting.end and m.how is Access.ADDRESS for m in mentions):
            return ending
        if not any(ending.start <= m.to < ending.end for m in mentions):
            return starting
    elif not _passed_with(ending, line, mentions) and not any(
            m.to == ending.start and (m.how is Access.COMPARED or strict and m.how in (Access.ADDRESS, Access.INDEXED))
            for m in mentions):
        return starting
    return Undecided(f"cannot tell the end of {_name(ending)} from the start of {_name(starting)}", (starting, ending))


def _passed_with(o: Object, line: int, mentions: list[Mention]) -> bool:
    """The address of `o` is taken in the same straight line of code."""
    return any(m.to == o.start and m.how is Access.ADDRESS and m.line == line for m in mentions)


def _name(o: Object) -> str:
    return o.symbol.name if o.symbol else "a jump table"


def line_of(layout: Layout, section: int, at: int) -> int:
    """The straight line of code that offset `at` of a code section is in."""
    survey = layout.surveys.get(section)
    return bisect.bisect_left(survey.breaks, at) if survey else -1


def mentions(layout: Layout, function: PatchFunction | None, section: int) -> list[Mention]:
    """References into `section` from `function`'s code; from all code when it is None."""
    if section not in layout.mentions:
        layout.mentions[section] = _all_mentions(layout, section)
    found = layout.mentions[section]
    if function is None:
        return [m for _, _, m in found]
    first = bisect.bisect_left(found, (function.section, function.start))
    last = bisect.bisect_left(found, (function.section, function.end))
    return [m for _, _, m in found[first:last]]


def _all_mentions(layout: Layout, section: int) -> list[tuple[int, int, Mention]]:
    """(code section, offset of the field, Mention), ascending."""
    out = []
    patch = layout.patch
    inside = {s.number for s in patch.symbols if s.section == section}
    for code, survey in sorted(layout.surveys.items()):
        for r in patch.relocs.get(code, ()):
            field = survey.fields.get(r.offset) if r.symbol in inside else None
            if field is not None and field.use in (Use.ADDRESS, Use.BRANCH):
                to = patch.symbols[r.symbol].value + r.addend + field.tail
                out.append((code, r.offset, Mention(to, field.access, line_of(layout, code, field.insn))))
    return out
