"""In which registers functions return, by the types in debug information: Types.

A function that returns its argument unchanged looks to instrument as if its callers relied on the result's register,
like those of a void function that leaves it alone.  Only the type tells.  It is read from the patch, or where that is
compiled without -g, from the program; only where there is such a register and the gate would restore it.

Several functions of one name that differ count as not known.  Of structures, integers of 16 bytes and vectors none is said to be
the result's: which registers they are in is a long story, and a function that returns just that part of its argument
unchanged would be a rare thing, while callers that rely on the second register of results are common.

Specification: DWARF 5, 5.1 to 5.3 (types), 7.8 (encodings).
"""

from __future__ import annotations

from types import ModuleType

from psu_bin import elf
from psu_bin.arch import for_machine
from psu_bin.attach.dwarf import (
    AT_BYTE_SIZE, AT_ENCODING, AT_ORIGIN, AT_SPECIFICATION, AT_TYPE, DAMAGED, REF_ADDR, REFS, TAG_SUBPROGRAM, Reader, Unit, relocated,
    uleb)
from psu_bin.attach.patch import PatchObject, is_clone, without_clone
from psu_bin.attach.view import ModuleView
from psu_bin.elf import Binary

_VOID, _INTEGER, _FLOAT, _OTHER = "void", "integer", "float", "other"
_POINTERS = (0x0F, 0x10, 0x42)                     # pointer, references
_SAME = (0x16, 0x26, 0x35, 0x37, 0x47)             # typedef, const, volatile, restrict, _Atomic
_ENUMERATION, _BASE = 0x04, 0x24
_INTEGERS = (0x02, 0x05, 0x06, 0x07, 0x08, 0x10)   # bool, (un)signed, (un)signed char, UTF
_FLOATING = 0x04
_LONGEST_CHAIN = 64


class Types:
    """The result types of functions, of the patches and modules of one transaction."""

    def __init__(self) -> None:
        self._readers: dict[int, _Results | None] = {}

    def result(self, name: str, patch: PatchObject | None, view: ModuleView, link: ModuleType) -> int | None:
        """Registers (bits as descriptor.Function.preserve, of link.RESULTS) that are sure to carry function `name`'s result; None:
        not known.  `patch` has the first word, `view` the next."""
        source = without_clone(name)
        found: set[str] = set()
        for key, binary in ((id(patch), (lambda: patch.source) if patch else None), (id(view), view.file)):
            if key not in self._readers:
                self._readers[key] = _reader(binary() if binary else None)
            reader = self._readers[key]
            found = reader.types(source) if reader else set()
            if found:
                break
        if is_clone(name):
            found = found | {_VOID} if found else found       # compilers leave out results that nobody reads
        masks = {{_VOID: 0, _INTEGER: link.INTEGER_RESULT, _FLOAT: link.FLOAT_RESULT}.get(kind, 0) for kind in found}
        return masks.pop() if len(masks) == 1 else None


def _reader(binary: Binary | None) -> _Results | None:
    try:
        return _Results(binary) if binary and binary.section(".debug_info") else None
    except DAMAGED:
        return None


class _Results(Reader):
    """What the functions of one file return."""

    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: relocated(binary, name))
        self._found: dict[int, dict[str, set[str]]] = {}     # by unit

    def types(self, name: str) -> set[str]:
        out: set[str] = set()
        places = {at.to_bytes(4, "little") for at in self.ends(name)}
        text = {name.encode("utf-8", "surrogateescape") + b"\0"}
        try:
            for u in self.units:
                if self.may_have(u, places, text):
                    out |= self._functions(u).get(name, set())
        except DAMAGED:
            return set()
        return out

    def _functions(self, u: Unit) -> dict[str, set[str]]:
        if u.start not in self._found:
            out: dict[str, set[str]] = {}
            table, at = self.abbreviations(u), u.entries
            while at < u.end:
                code, at = uleb(self.info, at)
                if not code:
                    continue
                a = table[code]
                if a.tag == TAG_SUBPROGRAM:
                    at, values = self.values(u, a, at)
                    out.setdefault(self.name(u, values)[0], set()).add(self._result(u, values))
                elif a.size >= 0:
                    at += a.size
                else:
                    at, _ = self.values(u, a, at)
            self._found[u.start] = out
        return self._found[u.start]

    def _result(self, u: Unit, values: dict[int, tuple[int, int]]) -> str:
        """The kind of type that a function, or a type that stands for another, has."""
        for _ in range(_LONGEST_CHAIN):
            link = next((values[k] for k in (AT_TYPE, AT_ORIGIN, AT_SPECIFICATION) if k in values), None)
            if link is None:
                return _VOID
            form, place = link
            if form != REF_ADDR and form not in REFS:
                return _OTHER
            at = place if form == REF_ADDR else u.start + place
            u = next(v for v in self.units if v.entries <= at < v.end) if not u.entries <= at < u.end else u
            code, behind = uleb(self.info, at)
            a = self.abbreviations(u)[code]
            values = self.values(u, a, behind)[1]
            size = values.get(AT_BYTE_SIZE, (0, 0))[1]
            if a.tag in _POINTERS or a.tag == _ENUMERATION and 0 < size <= 8:
                return _INTEGER
            if a.tag == _BASE:
                encoding = values.get(AT_ENCODING, (0, 0))[1]
                return (_INTEGER if encoding in _INTEGERS and 0 < size <= 8 else
                        _FLOAT if encoding == _FLOATING and size in (4, 8) else _OTHER)
            if a.tag not in (*_SAME, TAG_SUBPROGRAM):
                return _OTHER
        return _OTHER
