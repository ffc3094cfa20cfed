"""Whether a patch and the program mean the same by the types that they share: problems().

Code of a patch works on the program's data, and is called by code that was compiled before it.  So structures, unions, enumerations
and variables must lie as they do in the program, and the functions that are replaced must take and return what they took and
returned.  The compiler cannot see that, but the debug information of both sides can be compared; without it on either side
nothing is said.

Of a name there may be several types in a program, in different files.  Those of the patch's own source file have the first
word.  Else what comes from a header, or is global, may be that of any other file; and anything may, where the source file is not
among the program's (a patch may be a file of its own).

What is compared is what code depends on: sizes, places of members, kinds and sizes of what is in them; not the names of
types, whether integers are signed, or what pointers point to.  A member may get another name, as long as no member is
where another one was.  A type that only new code uses has no counterpart, and none of the program's code that it could disagree with.

Odd: only the outermost level of a unit is read, bodies of functions are stepped over: that is most of the debug information, and types
that are declared in functions are not shared.

Specification: DWARF 5, 5.1 to 5.7 (types), 3.3 (subroutines).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from psu_bin.attach.dwarf import (
    AT_BIT_OFFSET, AT_BIT_SIZE, AT_BYTE_SIZE, AT_CONST_VALUE, AT_COUNT, AT_DATA_BIT_OFFSET, AT_DECL_FILE, AT_DECLARATION,
    AT_ENCODING, AT_EXTERNAL, AT_MEMBER_LOCATION, AT_NAME, AT_ORIGIN, AT_SIBLING, AT_SPECIFICATION, AT_TYPE, AT_UPPER_BOUND, DAMAGED, REF_ADDR, REFS,
    TAG_SUBPROGRAM, TAG_VARIABLE, Reader, Unit, relocated, uleb)
from psu_bin.attach.meaning import BoundFunction
from psu_bin.attach.patch import PatchObject, without_clone
from psu_bin.attach.view import ModuleView, base_name
from psu_bin.elf import Binary
from psu_bin.errors import PsuError

MOST = 24 << 20             # bytes of units that are looked at on each side
ENTRIES = 1 << 20           # that are read more closely: of the largest programs some 100,000 are
_ARRAY, _CLASS, _ENUMERATION, _PARAMETER, _MEMBER, _STRUCTURE, _ROUTINE, _TYPEDEF, _UNION = (
    0x01, 0x02, 0x04, 0x05, 0x0D, 0x13, 0x15, 0x16, 0x17)
_UNSPECIFIED_PARAMETERS, _INHERITANCE, _SUBRANGE, _BASE, _ENUMERATOR, _UNSPECIFIED = 0x18, 0x1C, 0x21, 0x24, 0x28, 0x3B
_POINTERS = (0x0F, 0x10, 0x42)                          # pointer, references
_SAME = (_TYPEDEF, 0x26, 0x35, 0x37, 0x47)              # const, volatile, restrict, _Atomic
_AGGREGATES = {_STRUCTURE: "struct", _CLASS: "class", _UNION: "union"}
_WORDS = {**_AGGREGATES, _ENUMERATION: "enum", _TYPEDEF: "type", TAG_SUBPROGRAM: "function", TAG_VARIABLE: "variable"}
_INTEGERS = (0x05, 0x06, 0x07, 0x08, 0x10)              # (un)signed, (un)signed char, UTF
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
    size: int
    members: tuple[Member, ...]


def problems(patches: Iterable[tuple[PatchObject, ModuleView, Iterable[BoundFunction]]]) -> Iterator[PsuError]:
    """What patches see differently than the modules that they are for; with each patch the functions that it defines."""
    programs: dict[int, _File | None] = {}
    for patch, view, functions in patches:
        mine = _file(lambda patch=patch: patch.source)
        if mine is None:
            continue
        if id(view) not in programs:
            programs[id(view)] = _file(view.file)
        theirs = programs[id(view)]
        if theirs is None:
            continue
        replaced = {without_clone(f.function.name) for f in functions if not f.new}
        try:
            texts = list(dict.fromkeys(_differences(mine, theirs, replaced)))
        except DAMAGED:
            continue
        for text in texts:
            yield PsuError(patch.path, f"{text}, unlike in {view.path}",
                           "compile the patch as the program was; --allow-changed-types if this is meant")


def _file(binary: Callable[[], Binary | None] | None) -> _File | None:
    try:
        b = binary() if binary else None
        return _File(b) if b and b.section(".debug_info") else None
    except DAMAGED:
        return None


def _differences(mine: _File, theirs: _File, replaced: set[str]) -> Iterator[str]:
    equal: set[tuple[int, str]] = set()         # of what is the same in all units: compared once
    for u in mine.units:
        file = base_name(mine.file(u))
        for (tag, name), place in mine.outermost(u).items():
            if tag == TAG_SUBPROGRAM and name not in replaced or (tag, name) in equal:
                continue
            difference, private = "", mine.is_private(u, place)
            for v, other in theirs.named(tag, name, file, private):
                difference = _difference(tag, mine, u, place, theirs, v, other)
                if not difference:
                    if not private:
                        equal.add((tag, name))
                    break
            if difference:
                yield f"{_WORDS[tag]} {name} {difference}"


def _difference(tag: int, mine: _File, u: Unit, place: int, theirs: _File, v: Unit, other: int) -> str:
    """What is different in the patch, "" for nothing."""
    if tag == TAG_SUBPROGRAM:
        return _called(mine.prototype(u, place), theirs.prototype(v, other))
    if tag == TAG_VARIABLE:
        new, old = mine.shape_of(u, place), theirs.shape_of(v, other)
        a, b = describe(new), describe(old)
        return "" if alike(new, old) else f"is {a}, not {b}" if a != b else "has members at other places"
    if tag == _TYPEDEF:
        u, place = mine.target(u, place)
        v, other = theirs.target(v, other)
    return _laid_out(mine.definition(u, place), theirs.definition(v, other), "value" if tag == _ENUMERATION else "member")


def _called(new: tuple[Shape, list[Shape]] | None, old: tuple[Shape, list[Shape]] | None) -> str:
    if new is None or old is None:
        return ""
    for n, (a, b) in enumerate(zip(new[1], old[1]), 1):
        if not alike(a, b):
            return f"takes {describe(a)} as argument {n}, not {describe(b)}"
    if len(new[1]) != len(old[1]):
        return f"takes {len(new[1])} arguments, not {len(old[1])}"
    # Nobody reads the result of a function that had none, unless it is in the caller's memory.
    if not alike(new[0], old[0]) and (old[0] != VOID or new[0][0] in _AGGREGATES.values()):
        return f"returns {describe(new[0])}, not {describe(old[0])}"
    return ""


def _laid_out(new: Definition, old: Definition, what: str) -> str:
    there = {m.name: m for m in old.members if m.name}
    for m in new.members:
        o = there.get(m.name)
        if o and what == "value" and m.at != o.at:
            return f"has value {m.name} = {m.at}, not {o.at}"
        if o and m.at != o.at:
            return f"has {what} {m.name} at {_place(m)}, not {_place(o)}"
        if o and (m.bits != o.bits or not alike(m.shape, o.shape)):
            return f"has {what} {m.name} as {_kind(m)}, not {_kind(o)}"
    if what == "value":         # further ones are at nobody's place
        return "" if new.size == old.size else f"has {new.size} bytes, not {old.size}"
    places = {(o.at, o.bits) for o in old.members}
    for m in new.members:
        if (m.at, m.bits) not in places:
            return f"has another member, {m.name or 'without a name'}, at {_place(m)}"
    if new.size != old.size:
        return f"has {new.size} bytes, not {old.size}"
    if len(new.members) != len(old.members):
        return f"has {len(new.members)} members, not {len(old.members)}"
    for m, o in zip(new.members, old.members):
        if m.at != o.at or not alike(m.shape, o.shape):
            return f"has at {_place(m)} {_kind(m)}, not {_kind(o)}"
    return ""


def _place(m: Member) -> str:
    return f"byte {m.at // 8}" + (f", bit {m.at % 8}" if m.bits else "")


def _kind(m: Member) -> str:
    return f"{m.bits} bits" if m.bits else describe(m.shape)


def alike(a: Shape, b: Shape) -> bool:
    """Whether code that expects one shape is right about the other."""
    if UNKNOWN in (a, b):
        return True
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return a == b or None in (a, b)             # None: an array whose length is not known here
    return len(a) == len(b) and all(map(alike, a, b))


def describe(shape: Shape) -> str:
    """A shape in words."""
    kind = shape[0]
    if kind == "array":
        return f"an array of {'?' if shape[2] is None else shape[2]} of {describe(shape[1])}"
    if kind in ("integer", "bool", "float", "number"):
        return f"{'an' if kind == 'integer' else 'a'} {kind} of {shape[1]} bytes"
    if kind in _AGGREGATES.values():
        return f"{kind} {shape[1]} of {shape[2]} bytes" if shape[1] else f"a {kind} of {shape[2]} bytes"
    return {"pointer": "a pointer", "?": "something", "more": "any others"}.get(kind, str(kind))


class _File(Reader):
    """The types, variables and functions of one file."""

    def __init__(self, binary: Binary) -> None:
        super().__init__(lambda name: relocated(binary, name))
        self.budget = MOST
        self._outermost: dict[int, dict[tuple[int, str], int]] = {}     # by unit: (tag, name) -> place
        self._by_file: dict[str, list[Unit]] | None = None
        self._with_name: dict[str, list[Unit]] = {}
        self._patience = ENTRIES

    def outermost(self, u: Unit) -> dict[tuple[int, str], int]:
        """(tag, name) -> place of what a unit has at its outermost level; a name's first definition.

        Of a typedef only what has no name by itself.  Nothing when the units so far were too much to be read."""
        found = self._outermost.get(u.start)
        if found is None:
            found = self._outermost[u.start] = {}
            self.budget -= u.end - u.entries
            if self.budget >= 0:
                for at, tag, values in self.children(u, u.entries, _WORDS):
                    if AT_NAME in values and (AT_DECLARATION not in values or tag == TAG_VARIABLE) and (
                            tag != _TYPEDEF or self._is_nameless(u, values)):
                        found.setdefault((tag, self.text(u, *values[AT_NAME])), at)
        return found

    def is_private(self, u: Unit, at: int) -> bool:
        """Only the unit's source file can have this: it is not from a header, and has no global name."""
        tag, values = self._entry(u, at)
        if tag in (TAG_VARIABLE, TAG_SUBPROGRAM):
            return AT_EXTERNAL not in values
        # The source file is number 1 of those that the line table lists, in version 5 also 0.
        return 0 <= values.get(AT_DECL_FILE, (0, -1))[1] <= 1

    def named(self, tag: int, name: str, file: str, private: bool) -> Iterator[tuple[Unit, int]]:
        """Where there is something of this name: in units of the source file; if there are none, or it is not private, in others."""
        if self._by_file is None:
            self._by_file = {}
            for u in self.units:
                self._by_file.setdefault(base_name(self.file(u)), []).append(u)
        mine = [(u, at) for u in self._by_file.get(file, ()) if (at := self.outermost(u).get((tag, name))) is not None]
        yield from mine
        if mine or private and file in self._by_file:
            return
        if name not in self._with_name:
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

    def _entry(self, u: Unit, at: int) -> tuple[int, Values]:
        self._patience -= 1
        if self._patience < 0:
            raise ValueError("types that contain themselves")
        code, behind = uleb(self.info, at)
        a = self.abbreviations(u)[code]
        return a.tag, self.values(u, a, behind)[1]

    def _follow(self, u: Unit, link: tuple[int, int]) -> tuple[Unit, int] | None:
        form, value = link
        if form in REFS:
            return u, u.start + value
        if form != REF_ADDR:
            return None
        v = next((v for v in self.units if v.entries <= value < v.end), None)
        return (v, value) if v else None

    def target(self, u: Unit, at: int) -> tuple[Unit, int]:
        """The entry of a typedef's type."""
        return self._follow(u, self._entry(u, at)[1][AT_TYPE]) or (u, at)

    def _is_nameless(self, u: Unit, values: Values) -> bool:
        """A typedef is of a structure that has no other name."""
        where = self._follow(u, values[AT_TYPE]) if AT_TYPE in values else None
        if where is None:
            return False
        tag, of = self._entry(*where)
        return tag in _AGGREGATES and AT_NAME not in of

    # ---- what they say --------------------------------------------------------------------------------------------

    def shape_of(self, u: Unit, at: int) -> Shape:
        """The shape of the type that an entry has."""
        return self._type(u, self._entry(u, at)[1])

    def _type(self, u: Unit, values: Values) -> Shape:
        for _ in range(_LONGEST_CHAIN):
            link = next((values[k] for k in (AT_TYPE, AT_ORIGIN, AT_SPECIFICATION) if k in values), None)
            if link is None:
                return VOID
            where = self._follow(u, link)
            if where is None:
                return UNKNOWN
            u, at = where
            tag, values = self._entry(u, at)
            if tag not in (*_SAME, TAG_SUBPROGRAM, TAG_VARIABLE, _PARAMETER):
                return self._shape(u, at, tag, values)
        return UNKNOWN

    def _shape(self, u: Unit, at: int, tag: int, values: Values) -> Shape:
        size = values.get(AT_BYTE_SIZE, (0, 0))[1]
        if tag in _POINTERS:
            return ("pointer",)
        if tag == _ENUMERATION:
            return ("integer", size)
        if tag == _BASE:
            encoding = values.get(AT_ENCODING, (0, 0))[1]
            if encoding in _INTEGERS:
                return ("integer", size)
            return ("bool", size) if encoding == 2 else ("float", size) if encoding == 4 else ("number", size, encoding)
        if tag in _AGGREGATES:
            if AT_DECLARATION in values:
                return UNKNOWN
            if AT_NAME in values:
                return (_AGGREGATES[tag], self.text(u, *values[AT_NAME]), size)
            return (_AGGREGATES[tag], "", size, *((m.at, m.bits, m.shape) for m in self.definition(u, at).members))
        if tag == _ARRAY:
            shape = self._type(u, values)
            for _, _, of in reversed(list(self.children(u, at, (_SUBRANGE,)))):
                shape = ("array", shape, _length(of))
            return shape
        if tag == _ROUTINE:
            return ("function",)
        return VOID if tag == _UNSPECIFIED else UNKNOWN

    def definition(self, u: Unit, at: int) -> Definition:
        """Of a structure, union or enumeration."""
        _, values = self._entry(u, at)
        members = []
        for _, tag, m in self.children(u, at, (_MEMBER, _INHERITANCE, _ENUMERATOR)):
            name = self.text(u, *m[AT_NAME]) if AT_NAME in m else ""
            if tag == _ENUMERATOR:
                members.append(Member(name, _constant(m, AT_CONST_VALUE), 0, ()))
            elif AT_DECLARATION not in m:           # a static member of a class
                members.append(self._member(u, name, m))
        return Definition(values.get(AT_BYTE_SIZE, (0, 0))[1], tuple(members))

    def _member(self, u: Unit, name: str, m: Values) -> Member:
        bits, shape = _constant(m, AT_BIT_SIZE), self._type(u, m)
        at = 8 * self._location(m)
        if AT_DATA_BIT_OFFSET in m:
            at = _constant(m, AT_DATA_BIT_OFFSET)
        elif AT_BIT_OFFSET in m:                    # before DWARF 4: from the other end of a unit of storage
            storage = _constant(m, AT_BYTE_SIZE) or (shape[1] if shape[0] in ("integer", "bool") else 0)
            at += 8 * storage - _constant(m, AT_BIT_OFFSET) - bits
        return Member(name, at, bits, shape)

    def _location(self, m: Values) -> int:
        form, value = m.get(AT_MEMBER_LOCATION, (0, 0))
        if form in _BLOCKS and self.info[value:value + 1] == _OP_PLUS_UCONST:       # before DWARF 4
            return uleb(self.info, value + 1)[0]
        return _constant(m, AT_MEMBER_LOCATION)

    def prototype(self, u: Unit, at: int) -> tuple[Shape, list[Shape]] | None:
        """(result, arguments) of a function; None where they are not all known."""
        arguments = []
        for _, tag, values in self.children(u, at, (_PARAMETER, _UNSPECIFIED_PARAMETERS)):
            arguments.append(("more",) if tag == _UNSPECIFIED_PARAMETERS else self._type(u, values))
        return self._type(u, self._entry(u, at)[1]), arguments


def _constant(values: Values, attribute: int) -> int:
    """A number, 0 where it is none or no constant one."""
    form, value = values.get(attribute, (0, 0))
    return value if form in _NUMBERS else 0


def _length(values: Values) -> int | None:
    """Of an array; None where it is not said, or nothing: `int x[]` and `int x[0]` are the same."""
    if values.get(AT_COUNT, (0, 0))[0] in _NUMBERS:
        return _constant(values, AT_COUNT) or None
    if values.get(AT_UPPER_BOUND, (0, 0))[0] not in _NUMBERS:
        return None
    length = _constant(values, AT_UPPER_BOUND) + 1
    return length if length not in (0, 1 << 32, 1 << 64) else None
