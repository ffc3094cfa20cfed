"""In which function a static local is declared, by debug information: declared().

Names (`count.0`) and the functions that use a variable do not always tell: where a function with a `count` was inlined into
another one in the program, and the other has a `count` of its own in the patch, both are used by the other one.  Only the
place of the declaration does.  Where there is no debug information on both sides, statics.py goes by the users alone.

Odd: in an object file the address of a variable is a relocation, which tells the section; what it says without it is the
offset in there.  The reader is that of inlined.py, for the same reason.

Specification: DWARF 5, 4.1 (data objects), 2.6.1.1.2 (DW_OP_addr), 3.3 (subroutines).
"""

from __future__ import annotations

import zlib

from psu_bin import elf
from psu_bin.attach.inlined import _INLINED, _LOCATION, _SUBPROGRAM, Reader, _has, _Unit
from psu_bin.attach.patch import without_clone
from psu_bin.attach.results import _relocated
from psu_bin.elf import Binary

_VARIABLE = 0x34
_BLOCKS = (0x0A, 0x18)                 # block1 before DWARF 4, exprloc
_OP_ADDR = b"\x03"


def declared(binary: Binary | None, name: str) -> dict[tuple[int, int], str]:
    """(section, offset in it), or (0, address) in a linked file, of each static local `name` -> the function that declares it.

    Empty where there is no debug information, or none that this can read in reasonable time."""
    if binary is None or not binary.section(".debug_info"):
        return {}
    try:
        return _Owners(binary).declared(name)
    except (ValueError, IndexError, KeyError, RecursionError, zlib.error):
        return {}


class _Owners(Reader):
    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: _relocated(binary, name))
        self._sections: dict[int, int] | None = {} if binary.type == elf.ET_REL else None     # by place in .debug_info
        info = binary.section(".debug_info")
        for s in binary.sections:
            if self._sections is not None and s.type == elf.SHT_RELA and info and s.info == info.index:
                homes = binary.table(binary.sections[s.link], elf.SYMBOL_DTYPE)["st_shndx"].tolist()
                self._sections.update((offset, homes[symbol])
                                      for offset, _, symbol, _ in binary.table(s, elf.RELA_DTYPE).tolist())

    def declared(self, name: str) -> dict[tuple[int, int], str]:
        places = {at.to_bytes(4, "little") for at in self._ends(name)}
        texts = {name.encode("utf-8", "surrogateescape") + b"\0"}
        out: dict[tuple[int, int], str] = {}
        origins: set[int] = set()
        first = [u for u in self.units if self._may_have(u, places, texts)]
        for u in first:
            self._declarations(u, name, out, origins)
        # With LTO, another unit has the address, and refers to the entry with the name by its place.
        marks = {at.to_bytes(4, "little") for at in origins}
        for u in self.units:
            if u not in first and _has(self.info, u.entries, u.end, marks):
                self._declarations(u, name, out, origins)
        return out if self.budget >= 0 else {}

    def _declarations(self, u: _Unit, name: str, out: dict[tuple[int, int], str], origins: set[int]) -> None:
        """Add those of one unit to `out`, and the places of the variables' entries to `origins`."""
        for start, _, values, inside in self.entries(u, (_VARIABLE,), (_SUBPROGRAM, _INLINED)):
            if inside >= 0 and self._name(u, values)[0] == name:
                origins.add(start)
                place = self._address(values)
                if place is not None:
                    out[place] = without_clone(self._name_at(inside)[0])

    def _address(self, values: dict[int, tuple[int, int]]) -> tuple[int, int] | None:
        """Where a variable is, if that is one place in memory."""
        form, at = values.get(_LOCATION, (0, 0))
        if form not in _BLOCKS or self.info[at:at + 1] != _OP_ADDR:
            return None
        address = self._number(at + 1, 8)
        if self._sections is None:
            return 0, address
        return (self._sections[at + 1], address) if at + 1 in self._sections else None
