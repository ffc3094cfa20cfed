"""Types in debug information: TypeReader, and what is at the outermost level of a unit.

For typecheck.py, which compares them, and results.py, which asks in what registers they are returned.

Odd: only the outermost level of a unit is read, bodies of functions are stepped over: that is most of the debug information, and types
that are declared in functions are not shared.

Specification: DWARF 5, 5.1 to 5.7 (types), 3.3 (subroutines).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from psu_bin.attach.dwarf import (
    AT_BIT_OFFSET, AT_BIT_SIZE, AT_BYTE_SIZE, AT_CONST_VALUE, AT_COUNT, AT_DATA_BIT_OFFSET, AT_DECLARATION,
    AT_ENCODING, AT_EXTERNAL, AT_MEMBER_LOCATION, AT_NAME, AT_ORIGIN, AT_PROTOTYPED, AT_SIBLING, AT_SPECIFICATION, AT_TYPE,
    AT_UPPER_BOUND, REF_ADDR, REFS, TAG_SUBPROGRAM, TAG_VARIABLE, Reader, Unit, relocated, uleb)
from psu_bin.attach.view import base_name
from psu_bin.elf import Binary

MOST = 24 << 20             # bytes of units that are looked at on each side
MOST_SEARCHED = 1 << 30     # bytes that are searched for names which the unit of the same source file has not: a second's work
ENTRIES = 1 << 20           # that are read more closely: of the largest programs some 100,000 are
TAG_ARRAY, TAG_CLASS, TAG_ENUMERATION, TAG_PARAMETER, TAG_MEMBER, TAG_STRUCTURE, TAG_ROUTINE, TAG_TYPEDEF, TAG_UNION = (
    0x01, 0x02, 0x04, 0x05, 0x0D, 0x13, 0x15, 0x16, 0x17)
TAG_UNSPECIFIED_PARAMETERS, TAG_INHERITANCE, TAG_SUBRANGE, TAG_BASE, TAG_ENUMERATOR, TAG_UNSPECIFIED = 0x18, 0x1C, 0x21, 0x24, 0x28, 0x3B
POINTERS = (0x0F, 0x10, 0x42)                          # pointer, references
_CONST = 0x26
SAME = (TAG_TYPEDEF, _CONST, 0x35, 0x37, 0x47)              # const, volatile, restrict, _Atomic
AGGREGATES = {TAG_STRUCTURE: "struct", TAG_CLASS: "class", TAG_UNION: "union"}
WORDS = {**AGGREGATES, TAG_ENUMERATION: "enum", TAG_TYPEDEF: "type", TAG_SUBPROGRAM: "function", TAG_VARIABLE: "variable"}
INTEGERS = (0x05, 0x06, 0x07, 0x08, 0x10)              # (un)signed, (un)signed char, UTF
_NUMBERS = (0x05, 0x06, 0x07, 0x08, 0x0B, 0x0D, 0x0F, 0x21)   # forms of constants
_BLOCKS, _OP_PLUS_UCONST = (0x03, 0x04, 0x09, 0x0A, 0x18), b"\x23"
_LONGEST_CHAIN = 64

# What code depends on in a type: nested tuples.  UNKNOWN is like every other.
Shape = tuple
UNKNOWN: Shape = ("?",)
VOID: Shape = ("nothing",)
Values = dict[int, tuple[int, int]]


class Member(NamedTuple):
    name: str
    at: int                # bits from the start
    bits: int              # of a bit field, else 0
    shape: Shape


class Definition(NamedTuple):
    """A structure, union or enumeration (whose members are at their values)."""
    tag: int
    size: int
    members: tuple[Member, ...]


class TypeReader(Reader):
    """The types, variables and functions of one file."""

    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: relocated(binary, name))
        self.budget = MOST
        self._outermost: dict[int, dict[tuple[int, str], int]] = {}     # by unit: (tag, name) -> place
        self._by_file: dict[str, list[Unit]] | None = None
        self._with_name: dict[str, list[Unit]] = {}
        self._patience = ENTRIES
        self._searched = 0

    def outermost(self, u: Unit) -> dict[tuple[int, str], int]:
        """(tag, name) -> place of what a unit has at its outermost level; a name's first definition.

        Of a typedef only what has no name by itself.  Nothing when the units so far were too much to be read."""
        found = self._outermost.get(u.start)
        if found is None:
            found = self._outermost[u.start] = {}
            self.budget -= u.end - u.entries
            if self.budget >= 0:
                for at, tag, values in self.children(u, u.entries, WORDS):
                    if AT_NAME in values and (AT_DECLARATION not in values or tag == TAG_VARIABLE) and (
                            tag != TAG_TYPEDEF or self._is_nameless(u, values)):
                        found.setdefault((tag, self.text(u, *values[AT_NAME])), at)
        return found

    def is_global(self, u: Unit, at: int) -> bool:
        """A variable or function that other files may name."""
        return AT_EXTERNAL in self.entry(u, at)[1]

    def named(self, tag: int, name: str, file: str, global_: bool) -> Iterator[tuple[Unit, int]]:
        """Where there is something of this name: in units of the source file; if there are no such units, or it is global, in others."""
        if self._by_file is None:
            self._by_file = {}
            for u in self.units:
                self._by_file.setdefault(base_name(self.file(u)), []).append(u)
        mine = [(u, at) for u in self._by_file.get(file, ()) if (at := self.outermost(u).get((tag, name))) is not None]
        yield from mine
        if mine or not global_ and file in self._by_file:
            return
        if name not in self._with_name:
            self._searched += len(self.info) + len(self.strings)
            if self._searched > MOST_SEARCHED:
                return
            places = {at.to_bytes(4, "little") for at in self.ends(name)}
            text = name.encode("utf-8", "surrogateescape") + b"\0"
            self._with_name[name] = [u for u in self.units if self.may_have(u, places, {text})]
        for u in self._with_name[name]:
            at = self.outermost(u).get((tag, name))
            if at is not None:
                yield u, at

    def children(self, u: Unit, parent: int, wanted: Iterable[int]) -> Iterator[tuple[int, int, Values]]:
        """(place, tag, attributes) of the entries right below `parent` that have a wanted tag."""
        data, table = self.info, self.abbreviations(u)
        code, at = uleb(data, parent)
        a = table[code]
        if not a.children:
            return
        at, _ = self.values(u, a, at)
        depth = 0
        while at < u.end:
            start = at
            code, at = uleb(data, at)
            if not code:
                if not depth:
                    return
                depth -= 1
                continue
            a = table[code]
            if depth or not a.children and a.tag not in wanted:
                at = at + a.size if a.size >= 0 else self.values(u, a, at)[0]
                depth += a.children
                continue
            at, values = self.values(u, a, at)
            if a.tag in wanted:
                yield start, a.tag, values
            if a.children and u.start + values.get(AT_SIBLING, (0, 0))[1] > at:
                at = u.start + values[AT_SIBLING][1]
            else:
                depth += a.children

    def entry(self, u: Unit, at: int) -> tuple[int, Values]:
        self._patience -= 1
        if self._patience < 0:
            raise ValueError("types that contain themselves")
        code, behind = uleb(self.info, at)
        a = self.abbreviations(u)[code]
        return a.tag, self.values(u, a, behind)[1]

    def follow(self, u: Unit, link: tuple[int, int]) -> tuple[Unit, int] | None:
        form, value = link
        if form in REFS:
            return u, u.start + value
        if form != REF_ADDR:
            return None
        v = next((v for v in self.units if v.entries <= value < v.end), None)
        return (v, value) if v else None

    def target(self, u: Unit, at: int) -> tuple[Unit, int]:
        """The entry of a typedef's type."""
        return self.follow(u, self.entry(u, at)[1][AT_TYPE]) or (u, at)

    def _is_nameless(self, u: Unit, values: Values) -> bool:
        """A typedef is of a structure or the like that has no other name."""
        where = self.follow(u, values[AT_TYPE]) if AT_TYPE in values else None
        if where is None:
            return False
        tag, of = self.entry(*where)
        return (tag in AGGREGATES or tag == TAG_ENUMERATION) and AT_NAME not in of

    # ---- what they say --------------------------------------------------------------------------------------------

    def shape_of(self, u: Unit, at: int) -> Shape:
        """The shape of the type that an entry has."""
        return self.type(u, self.entry(u, at)[1])

    def is_typed(self, u: Unit) -> bool:
        """Whether a unit has types: with -g1 functions have neither arguments nor results, nor variables a type."""
        return any(a.tag in (TAG_BASE, TAG_PARAMETER, *POINTERS) or any(name == AT_PROTOTYPED for name, *_ in a.attributes)
                   for a in self.abbreviations(u).values())

    def is_constant(self, u: Unit, at: int) -> bool:
        """A variable is const, or an array of what is."""
        for _ in range(_LONGEST_CHAIN):
            tag, values = self.entry(u, at)
            if tag == _CONST:
                return True
            if tag == TAG_VARIABLE and AT_DECLARATION in values:
                return False        # the program's
            where = self.follow(u, values[AT_TYPE]) if AT_TYPE in values else None
            if where is None or tag not in (TAG_VARIABLE, TAG_ARRAY, *SAME):
                return False
            u, at = where
        return False

    def resolve(self, u: Unit, values: Values) -> tuple[Unit, int, int, Values] | None:
        """The type that an entry with these attributes has, behind typedefs and qualifiers: (unit, place, tag, attributes).

        None: it has none (void).  KeyError: one that is not to be found here."""
        for _ in range(_LONGEST_CHAIN):
            link = next((values[k] for k in (AT_TYPE, AT_ORIGIN, AT_SPECIFICATION) if k in values), None)
            if link is None:
                return None
            where = self.follow(u, link)
            if where is None:
                raise KeyError(link)
            u, at = where
            tag, values = self.entry(u, at)
            if tag not in (*SAME, TAG_SUBPROGRAM, TAG_VARIABLE, TAG_PARAMETER):
                return u, at, tag, values
        raise KeyError(at)

    def type(self, u: Unit, values: Values) -> Shape:
        """The shape of the type that an entry with these attributes has."""
        try:
            found = self.resolve(u, values)
        except KeyError:
            return UNKNOWN
        return self._shape(*found) if found else VOID

    def _shape(self, u: Unit, at: int, tag: int, values: Values) -> Shape:
        size = values.get(AT_BYTE_SIZE, (0, 0))[1]
        if tag in POINTERS:
            return ("pointer",)
        if tag == TAG_ENUMERATION:
            return ("integer", size)
        if tag == TAG_BASE:
            encoding = values.get(AT_ENCODING, (0, 0))[1]
            if encoding in INTEGERS:
                return ("integer", size)
            return ("bool", size) if encoding == 2 else ("float", size) if encoding == 4 else ("number", size, encoding)
        if tag in AGGREGATES:
            if AT_DECLARATION in values or AT_BYTE_SIZE not in values:     # or in a section of types of its own
                return UNKNOWN
            if AT_NAME in values:
                return (AGGREGATES[tag], self.text(u, *values[AT_NAME]), size)
            return (AGGREGATES[tag], "", size, *((m.at, m.bits, m.shape) for m in self.definition(u, at).members))
        if tag == TAG_ARRAY:
            shape = self.type(u, values)
            for _, _, of in reversed(list(self.children(u, at, (TAG_SUBRANGE,)))):
                shape = ("array", shape, array_length(of))
            return shape
        if tag == TAG_ROUTINE:
            return ("function",)
        return VOID if tag == TAG_UNSPECIFIED else UNKNOWN

    def definition(self, u: Unit, at: int) -> Definition:
        """Of a structure, union or enumeration."""
        tag, values = self.entry(u, at)
        members = []
        for _, kind, m in self.children(u, at, (TAG_MEMBER, TAG_INHERITANCE, TAG_ENUMERATOR)):
            name = self.text(u, *m[AT_NAME]) if AT_NAME in m else ""
            if kind == TAG_ENUMERATOR:
                members.append(Member(name, constant(m, AT_CONST_VALUE), 0, ()))
            elif AT_DECLARATION not in m:           # a static member of a class
                members.append(self.member(u, name, m))
        return Definition(tag, values.get(AT_BYTE_SIZE, (0, 0))[1], tuple(members))

    def member(self, u: Unit, name: str, m: Values) -> Member:
        bits, shape = constant(m, AT_BIT_SIZE), self.type(u, m)
        at = 8 * self._location(m)
        if AT_DATA_BIT_OFFSET in m:
            at = constant(m, AT_DATA_BIT_OFFSET)
        elif AT_BIT_OFFSET in m:                    # before DWARF 4: from the other end of a unit of storage
            storage = constant(m, AT_BYTE_SIZE) or (shape[1] if shape[0] in ("integer", "bool") else 0)
            at += 8 * storage - constant(m, AT_BIT_OFFSET) - bits
        return Member(name, at, bits, shape)

    def _location(self, m: Values) -> int:
        form, value = m.get(AT_MEMBER_LOCATION, (0, 0))
        if form in _BLOCKS and self.info[value:value + 1] == _OP_PLUS_UCONST:       # before DWARF 4
            return uleb(self.info, value + 1)[0]
        return constant(m, AT_MEMBER_LOCATION)

    def prototype(self, u: Unit, at: int) -> tuple[Shape, list[Shape]] | None:
        """(result, arguments) of a function; None where they are not all known."""
        arguments = []
        for _, tag, values in self.children(u, at, (TAG_PARAMETER, TAG_UNSPECIFIED_PARAMETERS)):
            arguments.append(("more",) if tag == TAG_UNSPECIFIED_PARAMETERS else self.type(u, values))
        if not arguments and not self.is_typed(u):
            return None
        return self.type(u, self.entry(u, at)[1]), arguments


def constant(values: Values, attribute: int) -> int:
    """A number, 0 where it is none or no constant one."""
    form, value = values.get(attribute, (0, 0))
    value -= 1 << 64 if value >= 1 << 63 else 0        # clang: places of bit fields in 64 bits
    return value if form in _NUMBERS else 0


def array_length(values: Values) -> int | None:
    """Of an array; None where it is not said, or nothing: `int x[]` and `int x[0]` are the same."""
    if values.get(AT_COUNT, (0, 0))[0] in _NUMBERS:
        return constant(values, AT_COUNT) or None
    if values.get(AT_UPPER_BOUND, (0, 0))[0] not in _NUMBERS:
        return None
    length = constant(values, AT_UPPER_BOUND) + 1
    return length if length not in (0, 1 << 32, 1 << 64) else None
