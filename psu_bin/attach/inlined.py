"""Into which functions the compiler has inlined others, read from a program's .debug_info: find().

A function that is replaced goes on in its inlined copies, so the functions with such copies must be in the patch, too.
They are named in warnings (callers.py), nothing else depends on this.  Only units that name a wanted function are looked at.

Odd: a name is a tail of another in the string table (linkers merge them), so each place where it ends counts.  With LTO
the inlined copy is in another unit than the function, which it names by its place in the section.

Specification: DWARF 5, 3.3.8 (inlined subroutines).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from psu_bin.attach.dwarf import DAMAGED, TAG_INLINED, TAG_SUBPROGRAM, Reader, Unit, contents, has
from psu_bin.elf import Binary


class Copy(NamedTuple):
    """One function with an inlined copy of another."""
    function: str          # as its symbol is called
    unit: str              # the source file that the function is from, as the compiler was given it
    caller: str


def find(binary: Binary, names: Iterable[str]) -> set[Copy]:
    """The inlined copies of the functions called `names`.

    Empty where there is no debug information, or none that this can read: damaged, split into other files, compressed
    otherwise than with zlib."""
    try:
        return _Copies(lambda name: contents(binary, name)).copies(set(names))
    except DAMAGED:
        return set()       # then the warnings name fewer callers, which is all that it is for


class _Copies(Reader):
    def copies(self, wanted: set[str]) -> set[Copy]:
        places = {at.to_bytes(4, "little") for name in wanted for at in self.ends(name)}
        # Names that are no longer than their place in the table would be are in the entries themselves.
        texts = {text for name in wanted if len(text := name.encode("utf-8", "surrogateescape") + b"\0") <= 8}
        first = [u for u in self.units if self.may_have(u, places, texts)]
        out: set[Copy] = set()
        origins: set[int] = set()
        for u in first:
            self._walk(u, wanted, out, origins)
        # Units of other files refer to these entries by their place.
        marks = {at.to_bytes(4, "little") for at in origins}
        for u in self.units:
            if u not in first and has(self.info, u.entries, u.end, marks) and self._inlines(u):
                self._walk(u, wanted, out, origins)
        return out

    def _inlines(self, u: Unit) -> bool:
        return any(a.tag == TAG_INLINED for a in self.abbreviations(u).values())

    def _walk(self, u: Unit, wanted: set[str], out: set[Copy], origins: set[int]) -> None:
        """Add the unit's copies to `out`, and the places of the wanted functions' entries to `origins`."""
        for start, tag, values, inside in self.entries(u, (TAG_INLINED, TAG_SUBPROGRAM), (TAG_SUBPROGRAM,)):
            name, where = self.name(u, values)
            if name in wanted and tag == TAG_SUBPROGRAM:
                origins.add(start)
            if name in wanted and tag == TAG_INLINED and inside >= 0:
                caller, _ = self.name_at(inside)
                out.add(Copy(name, where, caller))
