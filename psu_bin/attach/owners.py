"""In which function a static local is declared, by debug information: Owners.

Names (`count.0`) and the functions that use a variable do not always tell: where a function with a `count` was inlined into
another one in the program, and the other has a `count` of its own in the patch, both are used by the other one.  Only the
place of the declaration does.  Where there is no debug information on both sides, statics.py goes by the users alone.

Odd: in an object file the address of a variable is a relocation, which tells the section; what it says without it is the
offset in there.  
Specification: DWARF 5, 4.1 (data objects), 2.6.1.1.2 (DW_OP_addr), 3.3 (subroutines).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from psu_bin import elf
from psu_bin.attach.dwarf import AT_LOCATION, DAMAGED, TAG_INLINED, TAG_SUBPROGRAM, TAG_VARIABLE, Reader, Unit, has, relocated
from psu_bin.attach.patch import without_clone
from psu_bin.elf import Binary

_BLOCKS = (0x0A, 0x18)                 # block1 before DWARF 4, exprloc
_OP_ADDR = b"\x03"


class Owners:
    """The static locals of one file (None: of none), whose debug information is read when the first one is asked for."""

    def __init__(self, binary: Binary | None) -> None:
        self._binary = binary
        self._reader: _Reader | None = None

    def declared(self, name: str) -> dict[tuple[int, int], str]:
        """(section, offset in it), or (0, address) in a linked file, of each static local `name` -> the function that declares it.

        Empty where there is no debug information, or none that this can read in reasonable time."""
        try:
            if self._reader is None and self._binary and self._binary.section(".debug_info"):
                self._reader = _Reader(self._binary)
            return self._reader.declared(name) if self._reader else {}
        except DAMAGED:
            self._binary = self._reader = None
            return {}


class _Local(NamedTuple):
    """A variable's entry in a function: either the one with its name or one with its address, or both."""
    entry: int                             # place in .debug_info
    name: str
    place: tuple[int, int] | None          # (section, offset), or (0, address)
    function: str                          # "" where `place` is None


class _Reader(Reader):
    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: relocated(binary, name))
        self._sections: dict[int, int] | None = {} if binary.type == elf.ET_REL else None     # by place in .debug_info
        self._locals: dict[int, list[_Local]] = {}          # by the start of their unit: each is walked once
        info = binary.section(".debug_info")
        for s in binary.sections:
            if self._sections is not None and s.type == elf.SHT_RELA and info and s.info == info.index:
                homes = binary.table(binary.sections[s.link], elf.SYMBOL_DTYPE)["st_shndx"].tolist()
                self._sections.update((offset, homes[symbol])
                                      for offset, _, symbol, _ in binary.table(s, elf.RELA_DTYPE).tolist())

    def declared(self, name: str) -> dict[tuple[int, int], str]:
        places = {at.to_bytes(4, "little") for at in self.ends(name)}
        texts = {name.encode("utf-8", "surrogateescape") + b"\0"}
        out: dict[tuple[int, int], str] = {}
        origins: set[int] = set()
        first = [u for u in self.units if u.start in self._locals or self.may_have(u, places, texts)]
        for u in first:
            self._add(u, name, out, origins)
        # With LTO, another unit has the address, and refers to the entry with the name by its place.
        marks = {at.to_bytes(4, "little") for at in origins}
        for u in self.units:
            if u not in first and has(self.info, u.entries, u.end, marks):
                self._add(u, name, out, origins)
        return out if self.budget >= 0 else {}

    def _add(self, u: Unit, name: str, out: dict[tuple[int, int], str], origins: set[int]) -> None:
        """Add the places of one unit's variables to `out`, and their entries to `origins`."""
        if u.start not in self._locals:
            self._locals[u.start] = list(self._walked(u))
        for x in self._locals[u.start]:
            if x.name == name:
                origins.add(x.entry)
                if x.place is not None:
                    out[x.place] = x.function

    def _walked(self, u: Unit) -> Iterator[_Local]:
        for start, _, values, inside in self.entries(u, (TAG_VARIABLE,), (TAG_SUBPROGRAM, TAG_INLINED)):
            place = self._address(values)
            if inside >= 0 and (place is not None or AT_LOCATION not in values):     # others have no one place in memory
                yield _Local(start, self.name(u, values)[0], place,
                             without_clone(self.name_at(inside)[0]) if place is not None else "")

    def _address(self, values: dict[int, tuple[int, int]]) -> tuple[int, int] | None:
        """Where a variable is, if that is one place in memory."""
        form, at = values.get(AT_LOCATION, (0, 0))
        if form not in _BLOCKS or self.info[at:at + 1] != _OP_ADDR:
            return None
        address = self.number(at + 1, 8)
        if self._sections is None:
            return 0, address
        return (self._sections[at + 1], address) if at + 1 in self._sections else None
