"""In which registers functions return, by the types in debug information: Types.

A function that returns its argument, or a part of it, unchanged looks to instrument as if its callers relied on the result's
register, like those of a void function that leaves it alone.  Only the type tells.  It is read from the patch, or where that is
compiled without -g, from the program; only where there is such a register and the gate would restore it.

Here a type is taken apart into what lies at which of its bytes; in which registers that is returned is the architecture's
business (result_registers in psu_bin/arch/*_link.py).  Several functions of one name that differ count as not known, and so does
what no such rule is known for.

Specification: DWARF 5, 5.1 to 5.7 (types), 7.8 (encodings).
"""

from __future__ import annotations

from types import ModuleType

from psu_bin.arch.link_types import ResultPart
from psu_bin.attach.dwarf import (
    AT_BYTE_SIZE, AT_CALLING_CONVENTION, AT_DECLARATION, AT_ENCODING, AT_GNU_VECTOR, AT_NAME, DAMAGED, TAG_SUBPROGRAM, Unit, uleb)
from psu_bin.attach.dwarf_types import (
    AGGREGATES, INTEGERS, POINTERS, TAG_ARRAY, TAG_BASE, TAG_ENUMERATION, TAG_INHERITANCE, TAG_MEMBER, TAG_SUBRANGE, TypeReader, Values,
    array_length)
from psu_bin.attach.patch import PatchObject, is_clone, without_clone
from psu_bin.attach.view import ModuleView
from psu_bin.elf import Binary

_BOOL, _COMPLEX, _FLOAT = 0x02, 0x03, 0x04      # encodings
_BY_REFERENCE, _BY_VALUE = 4, 5                 # calling conventions of types
_IN_MEMORY = 65                                 # bytes that no architecture returns in registers

# (size, what is where): of void, size 0.
Result = tuple[int, tuple[ResultPart, ...]]
_VOID: Result = (0, ())


class _Unknown(Exception):
    """No rule says in which registers such a type is returned; never leaves this module."""


class Types:
    """The result types of functions, of the patches and modules of one transaction."""

    def __init__(self) -> None:
        self._readers: dict[int, _Results | None] = {}

    def result(self, name: str, patch: PatchObject | None, view: ModuleView, link: ModuleType) -> int | None:
        """Registers (bits as descriptor.Function.preserve, of link.RESULTS) that carry function `name`'s result; None:
        not known.  `patch` has the first word, `view` the next."""
        source = without_clone(name)
        found: set[Result | None] = set()
        for key, binary in ((id(patch), (lambda: patch.source) if patch else None), (id(view), view.file)):
            if key not in self._readers:
                self._readers[key] = _reader(binary() if binary else None)
            reader = self._readers[key]
            found = reader.types(source) if reader else set()
            if found and None not in found:
                break
        if is_clone(name):
            found = found | {_VOID} if found else found       # compilers leave out results that nobody reads
        masks = {link.result_registers(*r) & link.RESULTS if r is not None else None for r in found}
        return masks.pop() if len(masks) == 1 else None


def _reader(binary: Binary | None) -> _Results | None:
    try:
        return _Results(binary) if binary and binary.section(".debug_info") else None
    except DAMAGED:
        return None


class _Results(TypeReader):
    """What the functions of one file return."""

    def __init__(self, binary: Binary) -> None:
        super().__init__(binary)
        self._found: dict[int, dict[str, set[Result | None]]] = {}     # by unit

    def types(self, name: str) -> set[Result | None]:
        """What the functions of this name return; None among it: something that is not known."""
        out: set[Result | None] = set()
        places = {at.to_bytes(4, "little") for at in self.ends(name)}
        text = {name.encode("utf-8", "surrogateescape") + b"\0"}
        try:
            for u in self.units:
                if self.may_have(u, places, text):
                    out |= self._functions(u).get(name, set())
        except DAMAGED:
            return set()
        return out

    def _functions(self, u: Unit) -> dict[str, set[Result | None]]:
        if u.start not in self._found:
            out: dict[str, set[Result | None]] = {}
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

    def _result(self, u: Unit, values: Values) -> Result | None:
        try:
            found = self.resolve(u, values)
            if found is None:
                return _VOID if self.is_typed(u) else None
            parts = tuple(dict.fromkeys(self._parts(*found, 0)))
            return self._size(*found), parts
        except (KeyError, _Unknown):
            return None

    def _size(self, u: Unit, at: int, tag: int, values: Values) -> int:
        if AT_BYTE_SIZE in values:
            return values[AT_BYTE_SIZE][1]
        if tag in POINTERS:
            return 8
        if tag != TAG_ARRAY:
            raise _Unknown
        element = self.resolve(u, values)
        size = self._size(*element) if element else 0
        for _, _, of in self.children(u, at, (TAG_SUBRANGE,)):
            size *= array_length(of) or 0
        return size

    def _parts(self, u: Unit, at: int, tag: int, values: Values, base: int) -> list[ResultPart]:
        """What a type that lies `base` bytes from the start of the result has where."""
        size = self._size(u, at, tag, values)
        if base + size >= _IN_MEMORY:
            return [ResultPart(0, _IN_MEMORY, "integer")]
        if tag in POINTERS or tag == TAG_ENUMERATION:
            return [ResultPart(base, size, "integer")]
        if tag == TAG_BASE:
            return self._base_parts(u, values, base, size)
        if tag == TAG_ARRAY:
            return self._array_parts(u, values, base, size)
        if tag not in AGGREGATES or AT_DECLARATION in values:
            raise _Unknown
        return self._members(u, at, values, base)

    def _base_parts(self, u: Unit, values: Values, base: int, size: int) -> list[ResultPart]:
        encoding = values.get(AT_ENCODING, (0, 0))[1]
        if encoding in (*INTEGERS, _BOOL):
            return [ResultPart(base, size, "integer")]
        name = self.text(u, *values[AT_NAME]) if AT_NAME in values else ""
        kind = "long double" if "long double" in name else "float"
        if encoding == _FLOAT:
            return [ResultPart(base, size, kind)]
        if encoding == _COMPLEX:
            return [ResultPart(base + at, size // 2, kind) for at in (0, size // 2)]
        raise _Unknown

    def _array_parts(self, u: Unit, values: Values, base: int, size: int) -> list[ResultPart]:
        if not size or AT_GNU_VECTOR in values and size < 8:       # there compilers do not agree
            raise _Unknown
        if AT_GNU_VECTOR in values:
            return [ResultPart(base, size, "vector")]
        element = self.resolve(u, values)
        step = self._size(*element) if element else 0
        return [p for n in range(size // step) for p in self._parts(*element, base + n * step)] if element and step else []

    def _members(self, u: Unit, at: int, values: Values, base: int) -> list[ResultPart]:
        """Of a structure or union.  A class of C++ may be returned in memory, whatever its size: the compiler says so."""
        convention = values.get(AT_CALLING_CONVENTION, (0, 0))[1]
        if convention == _BY_REFERENCE:
            return [ResultPart(0, _IN_MEMORY, "integer")]
        out: list[ResultPart] = []
        for _, tag, m in self.children(u, at, (TAG_MEMBER, TAG_INHERITANCE, TAG_SUBPROGRAM)):
            if tag != TAG_MEMBER and convention != _BY_VALUE:
                raise _Unknown
            if tag == TAG_SUBPROGRAM or AT_DECLARATION in m:
                continue
            member = self.member(u, "", m)
            if member.bits:
                first, last = member.at // 8, (member.at + member.bits - 1) // 8
                out += [ResultPart(base + n, 1, "integer") for n in range(first, last + 1)]
            elif (found := self.resolve(u, m)) is not None:
                out += self._parts(*found, base + member.at // 8)
        return out
