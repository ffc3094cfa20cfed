"""Who goes on with the old code of a function that a patch replaces: warnings().

A new version is reached by calls.  It is not reached where the compiler has inlined the function, nor by calls of a copy
that it has specialised or split off (`f.isra.0`, `f.part.0`): the functions that have such calls or inlined copies must be
in the patch, too.  Calls of copies are in the descriptor; what is inlined where only the debug information says.

The other way round, what two names of the source have in common changes for both: aliases, and functions with equal code
that a compiler or linker has folded into one.  The names that the patch does not have are told.

What is not seen: facts that a compiler derives from a function's body and uses in its callers, such as a constant result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator
from typing import NamedTuple

from psu_bin import descriptor
from psu_bin.attach import inlined
from psu_bin.attach.patch import is_clone, without_clone
from psu_bin.attach.view import ModuleView, base_name
from psu_bin.descriptor import NO_FUNCTION
from psu_bin.elf import Binary

SHOWN = 8           # names in one message


class Patched(NamedTuple):
    """A function that a patch defines."""
    view: ModuleView
    name: str
    file: str       # base name of the source file of a static function, "" for a global one
    number: int     # in the view's descriptor; -1: the program has no such function, or not any more
    weak: bool      # one that every file brings along that uses it: most likely unchanged
    names: tuple[str, ...]     # all that the patch has for it


def warnings(patched: tuple[Patched, ...], file: Callable[[ModuleView], Binary | None]) -> tuple[str, ...]:
    """One text for each function that the patch does not replace for everybody, and one for all that a module never calls:
    in a patch that is a whole source file these can be hundreds, none of them of interest to an operator by itself.

    file: the module's file, for its debug information; None where it is not to be had."""
    views = dict.fromkeys(p.view for p in patched)
    return tuple(text for v in views for text in _of_module(v, [p for p in patched if p.view is v], file(v)))


def _of_module(view: ModuleView, mine: list[Patched], binary: Binary | None) -> Iterator[str]:
    numbers = {p.number for p in mine if p.number >= 0}
    names = {p.name for p in mine}
    copies: dict[str, list[inlined.Copy]] = {}
    for c in inlined.find(binary, [p.name for p in mine if not p.weak]) if binary else ():
        copies.setdefault(c.function, []).append(c)
    symbols = view.descriptor.symbols
    called = _names(view, numbers)
    uncalled = []
    for p in mine:
        also = sorted(called.get(p.number, set()) - set(p.names))
        if also:
            yield (f"{p.name}: {_list(also)} in {view.path} {'is' if len(also) == 1 else 'are'} the same code, an alias or "
                   "folded into one: the new version is theirs, too")
        clones = list(_clones(view, p))
        into = {without_clone(c.caller) for c in _of(p, copies.get(p.name, ()))}
        lost = {n for clone in clones for n in _callers(view, clone, numbers)} | (into - names)
        row = view.descriptor.functions[p.number] if p.number >= 0 else None
        unknown = [symbols[c].name for c in clones if not symbols[c].users and _called(view, c)]
        if lost:
            has, call, go, are = ("has", "calls", "goes", "it is") if len(lost) == 1 else ("have", "call", "go", "they are")
            how = ([f"{has} it inlined"] if into - names else []) + [f"{call} {symbols[c].name}" for c in clones]
            yield (f"{p.name}: {_list(sorted(lost))} in {view.path} {' or '.join(how)}, and {go} on with the old version "
                   f"unless {are} in the patch, too")
        elif unknown:
            yield (f"{p.name}: {view.path} also has {', '.join(unknown)}, whose callers do not see the new version "
                   "unless they are in the patch, too")
        elif row and not clones and not into and not p.weak and not _reached(row):
            uncalled.append(p.name)
    if uncalled:
        it, which = ("it", "inlined into all its callers") if len(uncalled) == 1 else ("them", "inlined into all their callers")
        yield f"{_list(uncalled)}: nothing in {view.path} calls {it}: {which}, which must be in the patch, too, or unused"


def _called(view: ModuleView, symbol: int) -> bool:
    number = view.descriptor.symbols[symbol].function
    return number == NO_FUNCTION or _reached(view.descriptor.functions[number])


def _reached(row: descriptor.Function) -> bool:
    return row.callers > 0 or bool(row.flags & descriptor.ADDRESS_TAKEN)      # exported ones count as taken


def _names(view: ModuleView, numbers: Container[int]) -> dict[int, set[str]]:
    """All names that the program has for each of these functions."""
    out: dict[int, set[str]] = {}
    for s in view.descriptor.symbols:
        if s.function in numbers and s.kind == descriptor.KIND_FUNCTION and not is_clone(s.name):
            out.setdefault(s.function, set()).add(view.source_name(s).split("@", 1)[0])
    return out


def _clones(view: ModuleView, p: Patched) -> Iterator[int]:
    """The numbers of the symbols that are copies of the function."""
    for i in view.clones.get(p.name, ()):
        s = view.descriptor.symbols[i]
        if not p.file or base_name(view.file_name(s)) == p.file:
            yield i


def _callers(view: ModuleView, clone: int, replaced: set[int]) -> set[str]:
    """The functions that call a copy and are not replaced; for other copies among them, those that call these."""
    symbols = view.descriptor.symbols
    out: set[str] = set()
    seen = {clone}
    queue = [clone]
    while queue:
        for user in symbols[queue.pop()].users:
            if user in seen or user >= len(symbols):
                continue
            seen.add(user)
            s = symbols[user]
            if is_clone(s.name):
                queue.append(user)
            elif s.function == NO_FUNCTION or s.function not in replaced:
                out.add(s.name)
    return out


def _of(p: Patched, mine: Collection[inlined.Copy]) -> Iterator[inlined.Copy]:
    """The inlined copies of this very function, not of another file's static one; mine: those of functions with its name."""
    files = {base_name(c.unit) for c in mine}
    for c in mine:
        if not p.file or base_name(c.unit) == p.file or len(files) == 1:
            yield c


def _list(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
