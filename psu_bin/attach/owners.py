"""In which function a static local is declared, by debug information: Owners.

Names (`count.0`) and the functions that use a variable do not always tell: where a function with a `count` was inlined into
another one in the program, and the other has a `count` of its own in the patch, both are used by the other one.  Only the
place of the declaration does.  Where there is no debug information on both sides, statics.py goes by the users alone.

Odd: in an object file the address of a variable is a relocation, which tells the section; what it says without it is the
offset in there.  Units are read in Python, so only those of the files in question are, where they can be told.
Specification: DWARF 5, 4.1 (data objects), 2.5.1.1 and 2.5.1.3 (DW_OP_addr, DW_OP_form_tls_address), 3.3 (subroutines).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Sequence, Set
from typing import NamedTuple

from psu_bin import elf
from psu_bin.attach.dwarf import AT_LOCATION, DAMAGED, MOST, TAG_INLINED, TAG_SUBPROGRAM, TAG_VARIABLE, Reader, Unit, has, relocated
from psu_bin.attach.patch import without_clone
from psu_bin.elf import Binary

_BLOCKS = (0x0A, 0x18)                 # block1 before DWARF 4, exprloc
_OP_ADDR, _OP_CONST4U, _OP_CONST8U = 0x03, 0x0C, 0x0E
_OP_TLS = (0x9B, 0xE0)                 # DW_OP_form_tls_address; DW_OP_GNU_push_tls_address, before DWARF 3 had that
LINKED, LINKED_THREAD = 0, -1          # for a section, of a linked file: addresses, and offsets in its thread-local segment


class Owners:
    """The static locals of one file (None: of none), whose debug information is read when the first one is asked for."""

    def __init__(self, binary: Binary | None) -> None:
        self._binary = binary
        self._reader: _Reader | None = None

    def declared(self, name: str, files: Collection[str], wanted: Set[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """(section, offset in it), or (LINKED, address) or (LINKED_THREAD, offset), of static locals `name` -> the function
        that declares it.

        wanted: those that are asked for; others may be missing.  files: names, without folders, of source files to look in
        first.  Empty where there is no debug information, or none that this can read in reasonable time."""
        try:
            if self._reader is None and self._binary and self._binary.section(".debug_info"):
                self._reader = _Reader(self._binary)
            return self._reader.declared(name, files, wanted) if self._reader else {}
        except DAMAGED:
            self._binary = self._reader = None
            return {}


class _Local(NamedTuple):
    """A variable's entry in a function: either the one with its name or one with its address, or both."""
    entry: int                             # place in .debug_info
    name: str
    place: tuple[int, int] | None          # as declared() says
    function: str                          # "" where `place` is None


class _Reader(Reader):
    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: relocated(binary, name))
        self.budget = 8 * MOST         # without it, who uses a variable decides, and much is refused
        self._sections: dict[int, int] | None = {} if binary.type == elf.ET_REL else None     # by place in .debug_info
        self._locals: dict[int, list[_Local]] = {}          # by the start of their unit: each is walked once
        info = binary.section(".debug_info")
        for s in binary.sections:
            if self._sections is not None and s.type == elf.SHT_RELA and info and s.info == info.index:
                homes = binary.table(binary.sections[s.link], elf.SYMBOL_DTYPE)["st_shndx"].tolist()
                self._sections.update((offset, homes[symbol])
                                      for offset, _, symbol, _ in binary.table(s, elf.RELA_DTYPE).tolist())

    def declared(self, name: str, files: Collection[str], wanted: Set[tuple[int, int]]) -> dict[tuple[int, int], str]:
        out: dict[tuple[int, int], str] = {}
        # With LTO units with addresses do not have the names of source files.
        for units in ([u for u in self.units if posixpath.basename(self.file(u)) in files], self.units):
            self._search(units, name, out)
            if wanted <= out.keys():
                break
        return out if self.budget >= 0 else {}

    def _search(self, units: Sequence[Unit], name: str, out: dict[tuple[int, int], str]) -> None:
        """Add the places of these units' variables to `out`, also where another unit has them."""
        places = {at.to_bytes(4, "little") for at in self.ends(name)}
        texts = {name.encode("utf-8", "surrogateescape") + b"\0"}
        origins: set[int] = set()
        first = [u for u in units if self.may_have(u, places, texts)]
        for u in first:
            self._add(u, name, out, origins)
        # With LTO, another unit has the address, and refers to the entry with the name by its place.
        marks = {at.to_bytes(4, "little") for at in origins}
        for u in self.units:
            if u not in first and has(self.info, u.entries, u.end, marks):
                self._add(u, name, out, origins)

    def _add(self, u: Unit, name: str, out: dict[tuple[int, int], str], origins: set[int]) -> None:
        """Add the places of one unit's variables to `out`, and the entries of those that have none to `origins`."""
        if u.start not in self._locals:
            self._locals[u.start] = list(self._walked(u))
        for x in self._locals[u.start]:
            if x.name == name and x.place is not None:
                out[x.place] = x.function
            elif x.name == name:
                origins.add(x.entry)

    def _walked(self, u: Unit) -> Iterator[_Local]:
        for start, _, values, inside in self.entries(u, (TAG_VARIABLE,), (TAG_SUBPROGRAM, TAG_INLINED)):
            place = self._address(values)
            if inside >= 0 and (place is not None or AT_LOCATION not in values):     # others have no one place in memory
                yield _Local(start, self.name(u, values)[0], place,
                             without_clone(self.name_at(inside)[0]) if place is not None else "")

    def _address(self, values: dict[int, tuple[int, int]]) -> tuple[int, int] | None:
        """Where a variable is, if that is one place in memory."""
        form, at = values.get(AT_LOCATION, (0, 0))
        if form not in _BLOCKS:
            return None
        operation = self.info[at]
        width = 4 if operation == _OP_CONST4U else 8
        thread = operation in (_OP_CONST4U, _OP_CONST8U) and self.info[at + 1 + width] in _OP_TLS
        if operation != _OP_ADDR and not thread:
            return None
        address = self.number(at + 1, width)
        if self._sections is None:
            return LINKED_THREAD if thread else LINKED, address
        return (self._sections[at + 1], address) if at + 1 in self._sections else None
