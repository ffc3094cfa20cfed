"""Objects that are given together, as one patch: where each belongs, and whether it is of any use.

Most replace functions of a module, and belong to that module.  Others bring what these use, new functions and variables: they
belong where those are that use them.  Such an object may be a file that the program does not have.  Then its static variables and
functions are its own, whatever the program calls by the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto

from psu_bin import descriptor, elf
from psu_bin.attach.patch import PatchObject, PatchSymbol
from psu_bin.attach.view import ModuleView
from psu_bin.errors import PsuError

Exports = Mapping[tuple[int, str], tuple[int, PatchSymbol]]      # by group and name: the patch whose definition stands, and that


def providers(patches: Sequence[PatchObject], groups: Sequence[int], exports: Exports,
              home: Sequence[ModuleView] = ()) -> list[set[int]]:
    """By object: the others of its group whose globals it names; home: by object, the module whose globals come first."""
    out: list[set[int]] = []
    for n, p in enumerate(patches):
        names = {s.name for s in p.symbols if s.section == elf.SHN_UNDEF and not (home and s.name in home[n].globals)}
        out.append({exports[groups[n], name][0] for name in names if (groups[n], name) in exports} - {n})
    return out


def _from(start: Sequence[int], edges: Sequence[set[int]]) -> set[int]:
    """All that is reached from `start`, and that itself."""
    seen, queue = set(start), list(start)
    while queue:
        more = edges[queue.pop()] - seen
        seen |= more
        queue += more
    return seen


def homes(scores: Sequence[Sequence[int]], groups: Sequence[int], uses: Sequence[set[int]]) -> list[int]:
    """By object, the module that it belongs to; scores: by object and module, how much of the object the module has.

    An object of which no module has anything goes with those that use it, or else with all that were given with it."""
    users: list[set[int]] = [set() for _ in uses]
    for n, mine in enumerate(uses):
        for other in mine:
            users[other].add(n)
    out = []
    for n, score in enumerate(scores):
        rows = [score]
        if not any(score):
            rows = [scores[u] for u in _from([n], users) if any(scores[u])]
            rows = rows or [s for s, group in zip(scores, groups) if group == groups[n]]
        totals = [sum(column) for column in zip(*rows)]
        out.append(max(range(len(totals)), key=lambda m: (totals[m], -m)))
    return out


class Origin(Enum):
    """Where the source file of an object comes from."""
    PROGRAM = auto()       # a module was made of it, or nothing tells
    EARLIER = auto()       # an earlier patch brought it
    NEW = auto()           # this one does


def origin(patch: PatchObject, views: Sequence[ModuleView], file_known: bool, used: bool) -> Origin:
    """Of an object: by its globals.  Weak ones say nothing: every file of C++ has those that it uses.

    file_known: a module has a source file of a name that the object has; used: another object of the patch names its globals."""
    names = own_globals(patch)
    if file_known or any(n in v.globals or _hidden(v, n) for v in views for n in names):
        return Origin.PROGRAM
    if any(n in v.brought for v in views for n in names):
        return Origin.EARLIER
    # New variables alone do not tell: a copy of one of the program's files, under another name, has some that its last version brought.
    known = any(("", n) in v.known_functions or ("", n) in v.known_variables for v in views for n in names)
    return Origin.NEW if used and not known else Origin.PROGRAM


def own_globals(patch: PatchObject) -> set[str]:
    """The names of the globals that an object, and no other, defines."""
    return {s.name for s in patch.symbols if s.bind == elf.STB_GLOBAL and s.section != elf.SHN_UNDEF and s.name}


def _hidden(view: ModuleView, name: str) -> bool:
    """Linkers make globals local that a library does not export."""
    return any(s.file in (descriptor.NO_FILE, view.last_file) for s in view.locals.get(name, ()))


def useless(patches: Sequence[PatchObject], home: Sequence[ModuleView], views: Sequence[ModuleView], group: Sequence[int],
            new: set[int], uses: Sequence[set[int]]) -> Iterator[PsuError]:
    """What is wrong with objects of one group that would change nothing.

    home: by object, its module; new: those of the group of which nothing replaces anything; uses: of each object, the others whose
    definitions it gets."""
    if len(new) == len(group):
        yield _nothing_to_replace([patches[n] for n in group], [home[n] for n in group], views)
        return
    reached = _from([n for n in group if n not in new], uses)
    for n in sorted(new - reached):
        if patches[n].functions:
            yield _nothing_to_replace([patches[n]], [home[n]], views)


def unused_variables(patch: PatchObject, view: ModuleView) -> list[str]:
    """The global variables of an object that nobody uses which the module does not have."""
    return sorted(s.name for s in patch.symbols if not s.local and s.section != elf.SHN_UNDEF and s.name not in view.globals
                  and ("", s.name) not in view.known_variables and s.type in (elf.STT_OBJECT, elf.STT_TLS))


def _nothing_to_replace(patches: list[PatchObject], home: list[ModuleView], views: Sequence[ModuleView]) -> PsuError:
    names: list[str] = []
    for p, view in zip(patches, home):
        mine = [f.name for f in p.functions if not f.clone]
        names += mine
        if (e := _almost(p, view, mine)) is not None:
            return e
    path, where = patches[0].path, " or ".join(v.path for v in views)
    if not any(p.has_code for p in patches):
        return PsuError(path, "has no code")
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return PsuError(path, f"defines no function that {where} has: {shown or 'its code has no function symbols of its own'}",
                    "the functions may be inlined into all their callers: put those into the patch")


def _almost(patch: PatchObject, view: ModuleView, mine: list[str]) -> PsuError | None:
    """What the module has instead of one of the object's functions `mine`."""
    for name in mine:
        clones = [view.descriptor.symbols[i].name for i in view.clones.get(name, ())]
        files = sorted({view.file_name(s) for s in view.locals.get(name, ()) if s.kind == descriptor.KIND_FUNCTION})
        if clones:
            return PsuError(patch.path, f"{name} exists in {view.path} only as {', '.join(clones)}: the compiler "
                                        "inlined or specialised it", "put its callers into the patch")
        if files:
            return PsuError(patch.path, f"defines {name}, which {view.path} has as a static of {', '.join(files)}",
                            "compile the patch from a file of that name, with the function static")
        if name in view.globals:
            return PsuError(patch.path, f"defines {name} as static, {view.path} has it as a global", "remove `static`")
    return None
