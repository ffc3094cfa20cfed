"""Whether a patch and the program mean the same by the types that they share: problems().

Code of a patch works on the program's data, and is called by code that was compiled before it.  So structures, unions, enumerations
and variables must lie as they do in the program, and the functions that are replaced must take and return what they took and
returned.  The compiler cannot see that, but the debug information of both sides can be compared; without it on either side
nothing is said.

Of a name there may be several types in a program, in different files.  Those of the patch's own source file are meant.  Else a
global variable or function may be that of any other file; and anything may, where the source file is not among the program's (a
patch may be a file of its own): then one that is the same is enough.

What is compared is what code depends on: sizes, places of members, kinds and sizes of what is in them; not the names of
types, whether integers are signed, or what pointers point to.  A member may get another name, as long as no member is
where another one was.  A type that only new code uses has no counterpart, and none of the program's code that it could disagree with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from psu_bin.attach import checks
from psu_bin.attach.dwarf import DAMAGED, TAG_SUBPROGRAM, TAG_VARIABLE, Unit
from psu_bin.attach.dwarf_types import (
    AGGREGATES, TAG_ENUMERATION, TAG_TYPEDEF, TAG_UNION, UNKNOWN, VOID, WORDS, Definition, Member, Shape, TypeReader)
from psu_bin.attach.linked import Demand
from psu_bin.attach.meaning import BoundFunction
from psu_bin.attach.patch import PatchObject, without_clone
from psu_bin.attach.view import ModuleView, base_name
from psu_bin.elf import Binary
from psu_bin.errors import PsuError


def check(demand: Demand) -> None:
    """Raises PsuError where a patch's debug information says something else of what it shares with its module than the module's."""
    from psu_bin.attach.linker import Work
    assert isinstance(demand.work, Work)
    b = demand.work.binder
    checks.refuse(list(problems((p, b.views[b.module[n]], b.functions[n].values()) for n, p in enumerate(b.patches))))


def problems(patches: Iterable[tuple[PatchObject, ModuleView, Iterable[BoundFunction]]]) -> Iterator[PsuError]:
    """What patches see differently than the modules that they are for; with each patch the functions that it defines."""
    programs: dict[int, TypeReader | None] = {}
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


def _file(binary: Callable[[], Binary | None] | None) -> TypeReader | None:
    try:
        b = binary() if binary else None
        return TypeReader(b) if b and b.section(".debug_info") else None
    except DAMAGED:
        return None


def _differences(mine: TypeReader, theirs: TypeReader, replaced: set[str]) -> Iterator[str]:
    # In objects that were joined, headers come once with each: what was found alike is not compared again.
    equal: set[tuple[int, str]] = set()
    for u in mine.units:
        file = base_name(mine.file(u))
        for (tag, name), place in mine.outermost(u).items():
            if tag == TAG_SUBPROGRAM and name not in replaced or (tag, name) in equal:
                continue
            if tag == TAG_VARIABLE and mine.is_constant(u, place):      # the patch has its own, if they differ
                continue
            difference = ""
            for v, other in theirs.named(tag, name, file, mine.is_global(u, place)):
                difference = _difference(tag, mine, u, place, theirs, v, other)
                if not difference:
                    equal.add((tag, name))
                    break
            if difference and theirs.budget >= 0:
                yield f"{WORDS[tag]} {name} {difference}"


def _difference(tag: int, mine: TypeReader, u: Unit, place: int, theirs: TypeReader, v: Unit, other: int) -> str:
    """What is different in the patch, "" for nothing."""
    if tag == TAG_SUBPROGRAM:
        return _called(mine.prototype(u, place), theirs.prototype(v, other))
    if tag == TAG_VARIABLE:
        new, old = mine.shape_of(u, place), theirs.shape_of(v, other)
        a, b = describe(new), describe(old)
        if VOID in (new, old) or alike(new, old):       # -g1 has no types
            return ""
        return f"is {a}, not {b}" if a != b else "has members at other places"
    if tag == TAG_TYPEDEF:
        u, place = mine.target(u, place)
        v, other = theirs.target(v, other)
    return _laid_out(mine.definition(u, place), theirs.definition(v, other))


def _called(new: tuple[Shape, list[Shape]] | None, old: tuple[Shape, list[Shape]] | None) -> str:
    if new is None or old is None:
        return ""
    if [("more",)] not in (new[1], old[1]):         # `int f()` says nothing of its arguments
        for n, (a, b) in enumerate(zip(new[1], old[1]), 1):
            if not alike(a, b):
                return f"takes {describe(a)} as argument {n}, not {describe(b)}"
        # clang leaves `...` out of functions that were inlined.
        if len([a for a in new[1] if a != ("more",)]) != len([a for a in old[1] if a != ("more",)]):
            return f"takes {len(new[1])} arguments, not {len(old[1])}"
    # Nobody reads the result of a function that had none, unless it is in the caller's memory.
    if not alike(new[0], old[0]) and (old[0] != VOID or new[0][0] in AGGREGATES.values()):
        return f"returns {describe(new[0])}, not {describe(old[0])}"
    return ""


def _laid_out(new: Definition, old: Definition) -> str:
    if not new.members or not old.members:      # told elsewhere (clang leaves out what another file has)
        return ""
    what = "value" if new.tag == TAG_ENUMERATION else "member"
    there = {m.name: m for m in old.members if m.name}
    for m in new.members:
        o = there.get(m.name)
        if o and what == "value" and m is new.members[-1] and o is old.members[-1] and (
                0 <= m.at - o.at <= len(new.members) - len(old.members)):
            continue                                # `NUMBER_OF_KINDS` moves on when there is one more
        if o and what == "value" and m.at != o.at:
            return f"has value {m.name} = {m.at}, not {o.at}"
        if o and m.at != o.at:
            return f"has {what} {m.name} at {_place(m)}, not {_place(o)}"
        if o and (m.bits != o.bits or not m.bits and not alike(m.shape, o.shape)):
            return f"has {what} {m.name} as {_kind(m)}, not {_kind(o)}"
    if new.tag in (TAG_ENUMERATION, TAG_UNION):       # further ones take nobody's place
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
        if m.at != o.at or not m.bits and not alike(m.shape, o.shape):
            return f"has at {_place(m)} {_kind(m)}, not {_kind(o)}"
    return ""


def _place(m: Member) -> str:
    return f"byte {m.at // 8}" + (f", bit {m.at % 8}" if m.bits else "")


def _kind(m: Member) -> str:
    return f"{m.bits} bits" if m.bits else describe(m.shape)


def alike(a: Shape, b: Shape) -> bool:
    """Whether code that expects one shape is right about the other."""
    if UNKNOWN in (a, b) or {a, b} == {("pointer",), ("integer", 8)}:
        return True
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return a == b or None in (a, b)             # None: an array whose length is not known here
    if a and b and a[0] == b[0] and a[0] in AGGREGATES.values() and (a[1] or b[1]):
        return a[2] == b[2]                         # those with names are compared by themselves
    return len(a) == len(b) and all(map(alike, a, b))


def describe(shape: Shape) -> str:
    """A shape in words."""
    kind = shape[0]
    if kind == "array":
        return f"an array of {'?' if shape[2] is None else shape[2]} of {describe(shape[1])}"
    if kind in ("integer", "bool", "float", "number"):
        return f"{'an' if kind == 'integer' else 'a'} {kind} of {shape[1]} bytes"
    if kind in AGGREGATES.values():
        return f"{kind} {shape[1]} of {shape[2]} bytes" if shape[1] else f"a {kind} of {shape[2]} bytes"
    return {"pointer": "a pointer", "?": "something", "more": "any others"}.get(kind, str(kind))
