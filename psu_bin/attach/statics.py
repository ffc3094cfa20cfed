"""Which variable of the program a static variable of a patch is; static locals above all.

A compiler names a static local `count.0` (GCC; the number changes from one compilation to the next) or
`handler.count` (clang).  Several functions of a file may have one of the same name, so the functions that use a
variable decide: in the program the descriptor lists them, in the patch its relocations do.  Where both sides have debug
information, a variable of one function is never taken for that of another (owners.py).  What stays undecided is
refused, never guessed: the wrong storage corrupts the program's state silently."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from psu_bin import arch, descriptor, elf
from psu_bin.attach import owners
from psu_bin.attach.patch import PatchObject, PatchSymbol, numbered, program_name, without_clone
from psu_bin.attach.view import Identity, ModuleView
from psu_bin.descriptor import Symbol
from psu_bin.elf import Binary

if TYPE_CHECKING:
    from psu_bin.attach.binding import Binder

_DATA = (descriptor.KIND_OBJECT, descriptor.KIND_TLS)


def parts(name: str, functions: frozenset[str]) -> tuple[str, str]:
    """(function or "", variable) of a static local's name; ("", "") when `name` is none.

    functions: names of functions, without which clang's `handler.count` cannot be told from other names with a dot."""
    base = numbered(name)
    for candidate in (name, base):
        at = candidate.find(".")
        if at > 0 and candidate[:at] in functions:
            return candidate[:at], candidate[at + 1:]
    return ("", base) if base else ("", "")


def match(binder: Binder, n: int, m: int, s: PatchSymbol) -> Symbol | None:
    """The module's variable that the static `s` of patch `n` is, or None: it is new.  Raises binding.Ambiguous."""
    from psu_bin.attach.binding import Ambiguous, Repeated
    patch, view = binder.patches[n], binder.views[m]
    mine = _patch_functions(patch)
    function, base = parts(s.name, mine)
    if not base:
        found = binder.static_candidates(n, m, s.name, s.file, _DATA)
        if len(found) > 1:
            raise Ambiguous(s.name, (view.file_name(x) for x in found))
        return found[0] if found else None
    key = (n, m, base, s.file)
    assigned = binder.assigned.get(key)
    if assigned is None:
        assigned = binder.assigned[key] = _assign(binder, *key)
    found_local = assigned.get(s.number)
    if isinstance(found_local, tuple):
        if len({y.file for y in found_local}) == 1:
            users = {u for y in found_local for u in _module_users(view, y, _module_functions(view))}
            raise Repeated(base, view.file_name(found_local[0]), users)
        raise Ambiguous(f"static local {base}", (view.file_name(y) for y in found_local))
    return found_local


def _owners(known: dict[int, owners.Owners], number: int, file: Callable[[], Binary | None] | None) -> owners.Owners:
    """Those of the patch or module `number`, read once."""
    if number not in known:
        known[number] = owners.Owners(file() if file else None)
    return known[number]


def _place(y: Symbol) -> tuple[int, int]:
    """Where owners.py says that the module's variable is."""
    return owners.LINKED_THREAD if y.kind == descriptor.KIND_TLS else owners.LINKED, y.address


def _assign(binder: Binder, n: int, m: int, base: str, file: str) -> dict[int, Symbol | tuple[Symbol, ...] | None]:
    """For all static locals called `base` of the patch's `file`: the module's, None for a new one, or, where it is
    undecided, the candidates."""
    patch, view = binder.patches[n], binder.views[m]
    mine = _patch_functions(patch)
    theirs_functions = _module_functions(view)
    known = binder.has_own_statics(n, m, file)
    ours = [(x, _patch_users(patch, x, mine)) for x in _patch_locals(patch).get((file, base), ())]
    files = binder.files(n, m, file)
    theirs: dict[tuple[int, int], tuple[Symbol, frozenset[str]]] = {}
    for y in _module_locals(view).get(base, ()):
        if not known or y.file in files:
            theirs[_place(y)] = (y, _module_users(view, y, theirs_functions))
    out: dict[int, Symbol | tuple[Symbol, ...] | None] = {}
    left, free = list(ours), list(theirs.values())
    declared = _owners(binder.patch_owners, n, lambda: patch.source).declared(
        base, {file}, {(x.section, x.value) for x, _ in left}) if free else {}
    declared_there = _owners(binder.module_owners, m, view.file).declared(
        base, {view.file_name(y) for y, _ in free}, {_place(y) for y, _ in free}) if declared else {}

    def both(x: PatchSymbol, y: Symbol) -> tuple[str, str] | None:
        """The functions that declare the two, where both are known."""
        a, b = declared.get((x.section, x.value)), declared_there.get(_place(y))
        return (a, b) if a and b else None

    def same(x: PatchSymbol, y: Symbol) -> bool:
        known = both(x, y)
        return known is not None and known[0] == known[1]

    def other(x: PatchSymbol, y: Symbol) -> bool:
        known = both(x, y)
        return known is not None and known[0] != known[1]

    def settle(rule) -> None:  # noqa: ANN001
        """Take pairs for which `rule` holds and holds for no other pair of either."""
        changed = True
        while changed:
            changed = False
            for x, users in list(left):
                fits = [y for y in free if not other(x, y[0]) and rule(x, users, *y)]
                if len(fits) == 1 and sum(not other(x2, fits[0][0]) and rule(x2, u2, *fits[0]) for x2, u2 in left) == 1:
                    out[x.number] = fits[0][0]
                    left.remove((x, users))
                    free.remove(fits[0])
                    changed = True

    settle(lambda x, users, y, theirs_: same(x, y) and users == theirs_ and x.size == y.size)
    settle(lambda x, users, y, theirs_: same(x, y) and x.size == y.size)
    settle(lambda x, users, y, theirs_: same(x, y))
    settle(lambda x, users, y, theirs_: bool(users) and users == theirs_ and x.size == y.size)
    settle(lambda x, users, y, theirs_: bool(users & theirs_) and x.size == y.size)
    settle(lambda x, users, y, theirs_: bool(users & theirs_))
    _by_order(binder, base, declared, declared_there, left, free, out)
    for x, users in left:
        # No common user: another function's variable, unless its users are inlined away in the program, or unknown.
        possible = [y for y, theirs_ in free if not other(x, y) and (
            same(x, y) or users & theirs_ or not theirs_ or not users or not users <= theirs_functions)]
        if not possible:
            out[x.number] = None
        elif len(possible) == 1 and len(left) == 1:
            out[x.number] = possible[0]
        else:
            out[x.number] = tuple(possible)
    return out


def _by_order(binder: Binder, base: str, declared: Mapping[tuple[int, int], str], declared_there: Mapping[tuple[int, int], str],
              left: list[tuple[PatchSymbol, frozenset[str]]], free: list[tuple[Symbol, frozenset[str]]],
              out: dict[int, Symbol | tuple[Symbol, ...] | None]) -> None:
    """Take pairs of static locals of one name in one function, which a macro makes as a rule (`static int warned;`): in the order of
    their declarations, where there are as many of the same sizes on both sides.  The user is told, who may know better."""
    for function in dict.fromkeys(declared.values()):
        mine = [at for at, f in declared.items() if f == function]
        there = [at for at, f in declared_there.items() if f == function]
        xs = [(mine.index((x.section, x.value)), x, u) for x, u in left if (x.section, x.value) in mine]
        ys = [(there.index(_place(y)), y, u) for y, u in free if _place(y) in there]
        if not 1 < len(xs) == len(ys) == len(mine) == len(there):
            continue
        pairs = list(zip(sorted(xs, key=lambda p: p[0]), sorted(ys, key=lambda p: p[0])))
        if any(x.size != y.size for (_, x, _), (_, y, _) in pairs):
            continue
        for (_, x, u), (_, y, v) in pairs:
            out[x.number] = y
            left.remove((x, u))
            free.remove((y, v))
        binder.warnings.append(f"{function} has {len(pairs)} static variables called {base}: taken in the order of their declarations")


@lru_cache(maxsize=16)
def _patch_functions(patch: PatchObject) -> frozenset[str]:
    return frozenset(without_clone(s.name) for f in patch.functions for s in f.names)


@lru_cache(maxsize=16)
def _patch_locals(patch: PatchObject) -> dict[tuple[str, str], list[PatchSymbol]]:
    """The patch's static locals by source file and their name in the source."""
    out: dict[tuple[str, str], list[PatchSymbol]] = {}
    for s in patch.symbols:
        if s.local and s.type in (elf.STT_OBJECT, elf.STT_TLS) and "." in s.name:
            base = parts(s.name, _patch_functions(patch))[1]
            if base:
                out.setdefault((s.file, base), []).append(s)
    return out


@lru_cache(maxsize=16)
def _module_functions(view: ModuleView) -> frozenset[str]:
    return frozenset(without_clone(program_name(s.name)) for s in view.descriptor.symbols
                     if s.kind == descriptor.KIND_FUNCTION)


@lru_cache(maxsize=16)
def _module_locals(view: ModuleView) -> dict[str, list[Symbol]]:
    """The module's static locals by their name in the source."""
    functions = _module_functions(view)
    out: dict[str, list[Symbol]] = {}
    for s in view.descriptor.symbols:
        if s.bind == descriptor.BIND_LOCAL and s.kind in _DATA and "." in s.name:
            base = parts(program_name(s.name), functions)[1]
            if base:
                out.setdefault(base, []).append(s)
    return out


def _module_users(view: ModuleView, s: Symbol, functions: frozenset[str]) -> frozenset[str]:
    named = parts(program_name(s.name), functions)[0]
    users = {without_clone(program_name(view.descriptor.symbols[u].name)) for u in s.users
             if u < len(view.descriptor.symbols)}
    return frozenset(users | {named} - {""})


def _patch_users(patch: PatchObject, s: PatchSymbol, functions: frozenset[str]) -> frozenset[str]:
    """The functions that refer to static local `s`: by its clang name, and by relocations that fall into it."""
    named = parts(s.name, functions)[0]
    return frozenset(_references(patch).get(s.number, frozenset()) | {named} - {""})


@lru_cache(maxsize=16)
def _references(patch: PatchObject) -> dict[int, set[str]]:
    """By index of a static variable: the functions whose code refers to it.

    The patch must be traced (anchors.py): an address is often that of the variable next to the one that is used."""
    past_field = arch.for_machine(patch.machine, patch.path).link.PAST_FIELD
    objects: dict[int, _Spans] = {}
    for section, symbols in patch.symbols_in.items():
        variables = [s for s in symbols if s.local and s.type in (elf.STT_OBJECT, elf.STT_TLS)]
        if variables and 0 < section < len(patch.sections):
            objects[section] = _Spans(variables)
    out: dict[int, set[str]] = {}
    for section in patch.relocs:
        if not patch.sections[section].flags & elf.SHF_EXECINSTR:
            continue
        for r in patch.relocs[section]:
            symbol = patch.symbols[r.symbol]
            if symbol.section not in objects:
                continue
            f = patch.function_covering(section, r.offset)
            if f is None:
                continue
            at = symbol.value + r.addend
            meant = {symbol.number}
            used = patch.found.get((section, r.offset))
            if used and used.reaches:
                meant = {number for x in used.reaches for number in objects[symbol.section].at(at + x.distance)}
            elif symbol.type == elf.STT_SECTION:
                meant = {number for d in past_field for number in objects[symbol.section].at(at + d)}
            for number in meant & objects[symbol.section].numbers:
                out.setdefault(number, set()).add(without_clone(f.name))
    return out


class _Spans:
    """The variables of a section, found by a byte of theirs."""

    def __init__(self, variables: list[PatchSymbol]) -> None:
        self.numbers = {s.number for s in variables}
        self._edges = sorted({n for s in variables for n in (s.value, s.value + s.size)})
        self._inside: list[list[int]] = [[] for _ in self._edges]          # from each edge to the next one
        for s in variables:
            first, last = bisect.bisect_left(self._edges, s.value), bisect.bisect_left(self._edges, s.value + s.size)
            for n in range(first, last):
                self._inside[n].append(s.number)

    def at(self, offset: int) -> list[int]:
        """The numbers of the symbols that have the byte at `offset`."""
        n = bisect.bisect_right(self._edges, offset) - 1
        return self._inside[n] if n >= 0 else []


def identity(patch: PatchObject, s: PatchSymbol) -> Identity:
    """The name under which later patches find a new variable; static locals by the functions that use them."""
    if not s.local:
        return "", s.name
    functions = _patch_functions(patch)
    function, base = parts(s.name, functions)
    if not base:
        return s.file, s.name
    users = ",".join(sorted(_patch_users(patch, s, functions)))
    return s.file, f"{users}.{base}"


def namesakes(patch: PatchObject, s: PatchSymbol) -> list[PatchSymbol]:
    """The patch's other static locals of the same file and the same name in the source."""
    base = parts(s.name, _patch_functions(patch))[1] if s.local else ""
    return [x for x in _patch_locals(patch).get((s.file, base), ()) if base and x.number != s.number]


def known_local(patch: PatchObject, s: PatchSymbol,
                known: Mapping[Identity, tuple[int, int]]) -> tuple[int, int] | None:
    """An earlier patch's static local of the same name that shares a user with `s`, when there is only one.

    Not one that has just the users of another of this patch: that one is it."""
    file, name = identity(patch, s)
    users, _, base = name.rpartition(".")
    if not users:
        return None
    candidates = {i: v for i, v in known.items() if i[0] == file and i[1].rpartition(".")[2] == base}
    if not candidates:
        return None
    taken = {identity(patch, x) for x in namesakes(patch, s)}
    found = [v for i, v in candidates.items()
             if i not in taken and set(i[1].rpartition(".")[0].split(",")) & set(users.split(","))]
    return found[0] if len(found) == 1 else None
