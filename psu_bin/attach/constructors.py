"""Constructors and destructors of a patch: never run, and accepted only where that is right.

Every C++ file that includes <iostream> has a constructor, and so has each `ld -r` of such files.  Where the program has
the same function, it ran when the program started, and the variables that it made are the ones that the patch shares.  It
must not run again.  What it would do for a variable that is new in the patch is left undone, so that is refused; and so is
a constructor that is new.  C++ compilers' own constructors (`_GLOBAL__sub_I_x`, where x may be the file or its first global
variable) do nothing but construct variables, so these decide alone.

A destructor that the program has is called through its stub when the program ends, in its newest version."""

from __future__ import annotations

from collections.abc import Iterator

from psu_bin import elf
from psu_bin.attach.layout import Layout
from psu_bin.attach.meaning import BoundFunction, Piece, Room
from psu_bin.attach.patch import SHT_FINI_ARRAY, SHT_INIT_ARRAY, without_clone
from psu_bin.attach.references import Reader
from psu_bin.errors import PsuError

POINTER = 8
HINT = "a patch's constructors are not run: initialise at the first use"


def problems(layouts: list[Layout], reader: Reader) -> Iterator[PsuError]:
    """What the constructors and destructors of the patch objects would have to do and nobody does.  After Reader.settle."""
    for layout in layouts:
        patch = layout.patch
        for s in patch.sections:
            if not s.flags & elf.SHF_ALLOC or s.type not in (SHT_INIT_ARRAY, SHT_FINI_ARRAY) or not s.size:
                continue
            known = [f for f in _functions(layout, s.index) if f is not None and (not f.new or _synthesized(f))]
            if len(known) < s.size // POINTER or s.size % POINTER:
                yield PsuError(patch.path, f"has constructors or destructors, in section {s.name}, that the program does "
                                           "not have", f"{HINT}; leave out -fsanitize and --coverage, which make some")
            if s.type == SHT_INIT_ARRAY:
                for f in known:
                    for name in _new_variables(f, layouts, reader):
                        yield PsuError(patch.path, f"{f.function.name}: a constructor uses {name}, which is new",
                                       HINT)


def _synthesized(f: BoundFunction) -> bool:
    return f.function.name.startswith(("_GLOBAL__sub_I_", "_GLOBAL__sub_D_", "_GLOBAL__I_", "_GLOBAL__D_"))


def _functions(layout: Layout, section: int) -> Iterator[BoundFunction | None]:
    """The functions that the pointers of an array section name."""
    patch = layout.patch
    bound = layout.binder.functions[layout.n]
    for r in patch.relocs.get(section, ()):
        s = patch.symbols[r.symbol]
        yield bound.get((s.section, s.value + r.addend))


def _new_variables(constructor: BoundFunction, layouts: list[Layout], reader: Reader) -> list[str]:
    """New variables that the constructor, or what it calls of the patch, refers to."""
    found: dict[str, None] = {}
    seen = {constructor}
    queue = [constructor]
    while queue:
        f = queue.pop()
        layout = layouts[f.patch]
        patch = layout.patch
        parts = [f.function, *patch.cold_parts.get(without_clone(f.function.name), ())]
        for part in parts:
            piece = layout.whole(part.section)
            for r in piece.references:
                if not part.start <= r.at < part.end or r.target is None:
                    continue
                if isinstance(r.target, BoundFunction):
                    if r.target not in seen:
                        seen.add(r.target)
                        queue.append(r.target)
                elif isinstance(r.target, Piece) and r.target.room is Room.VARIABLE:
                    found.setdefault(_name(layouts[r.target.patch], r.target, r.offset + r.tail))
            for (n, section, at), callee in reader.calls.items():
                if n == f.patch and section == part.section and part.start <= at < part.end and callee not in seen:
                    seen.add(callee)
                    queue.append(callee)
    return list(found)


def _name(layout: Layout, piece: Piece, offset: int) -> str:
    """The new variables at `offset` of a piece; all of them where none is exactly there."""
    inside = [v for v in layout.new_variables if v.piece is piece]
    exact = [v for v in inside if v.start <= piece.start + offset < v.start + v.size]
    return ", ".join(v.identity[1] for v in exact or inside) or "a variable without a name"
