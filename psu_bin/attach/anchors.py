"""Section anchors: variables that a patch's code uses through the address of another one.

Where an architecture's compilers do that (GCC's -fsection-anchors, on by default on AArch64), relocations name some of
the variables only.  The distances between a patch's variables are not those between the program's, some of which are
new, so before anything is bound:

    traced      follows every address through its function: PatchObject.found says what is used through it
    cut         gives instructions, where Layout found that the distance differs, an address of their own

A cut instruction moves to a veneer behind the code of its section.  To the rest of attach a function's veneers are one
more cold part of it, with a symbol (`f.cold.4711`), as if the compiler had made it so."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable
from types import ModuleType

from psu_bin import elf
from psu_bin.arch.link_types import Cut, Found, Mark, Part
from psu_bin.attach.patch import PatchFunction, PatchObject, PatchSymbol, Reloc, is_clone
from psu_bin.attach.sections import Role, role
from psu_bin.errors import PsuError

_VENEERS = ".cold.4711"               # no compiler counts that far


def traced(patch: PatchObject, link: ModuleType) -> PatchObject:
    """The patch with `found` filled in.  Raises PsuError where code cannot be read."""
    found: dict[tuple[int, int], Found] = {}
    table = _tables(patch)
    landing_pads = any(role(s) is Role.PRIVATE and s.size for s in patch.sections)
    for body in _bodies(patch):
        try:
            found.update(link.trace(_parts(patch, body), _marks(patch, body), table, landing_pads))
        except ValueError as e:
            raise PsuError(patch.path, f"cannot read the code in {patch.sections[body[0].section].name}: {e}") from e
    return dataclasses.replace(patch, found=found)


def cut(patch: PatchObject, cuts: Iterable[Cut], link: ModuleType) -> PatchObject:
    """The patch, traced, with each instruction in `cuts` (of this patch) moved to a veneer with its own address."""
    contents = {s.index: bytearray(patch.contents[s.index]) for s in patch.sections}
    relocs = {section: list(rows) for section, rows in patch.relocs.items()}
    symbols = list(patch.symbols)
    bodies = _bodies(patch)
    wanted: dict[tuple[int, int], list[Cut]] = {}            # by body and section
    for c in sorted(cuts):
        n = next(n for n, body in enumerate(bodies) for f in body if f.section == c.section and f.start <= c.at < f.end)
        wanted.setdefault((n, c.section), []).append(c)
    for (n, section), mine in sorted(wanted.items()):
        code = contents[section]
        code += bytes(-len(code) % link.CODE_ALIGN)
        start = len(code)
        for c in mine:
            at = len(code)
            veneer, rows = link.veneer(_parts(patch, bodies[n]), c)
            relocs.setdefault(section, []).extend(Reloc(at + offset, *row) for offset, *row in rows)
            code += veneer
            code += link.jump(len(code), c.at + link.JUMP_SIZE)
            code[c.at:c.at + link.JUMP_SIZE] = link.jump(c.at, at)
        whose = bodies[n][0].names[0]
        symbols.append(PatchSymbol(len(symbols), f"{whose.name}{_VENEERS}{len(symbols)}", elf.STT_FUNC, elf.STB_LOCAL, section,
                                   start, len(code) - start, whose.file or patch.file, False))
    made = dataclasses.replace(
        patch, symbols=tuple(symbols), relocs={section: tuple(sorted(rows)) for section, rows in relocs.items()},
        sections=tuple(dataclasses.replace(s, size=len(contents[s.index])) if contents[s.index] else s for s in patch.sections),
        contents=tuple(bytes(contents[s.index]) for s in patch.sections))
    return traced(made, link)


def _bodies(patch: PatchObject) -> list[list[PatchFunction]]:
    """Functions, each with its cold parts, which share its registers."""
    names = {s.name for f in patch.functions for s in f.names}
    cold = _cold(patch)
    out = []
    for f in patch.functions:
        if not (".cold" in f.name and is_clone(f.name) and f.name.rpartition(".cold")[0] in names):
            out.append([f, *dict.fromkeys(c for s in f.names for c in cold.get(s.name, ()))])
    return out


def _cold(patch: PatchObject) -> dict[str, list[PatchFunction]]:
    """Cold parts by the name of the function that jumps there."""
    out: dict[str, list[PatchFunction]] = {}
    for f in patch.functions:
        whole, cold, _ = f.name.rpartition(".cold")
        if cold and is_clone(f.name):
            out.setdefault(whole, []).append(f)
    return out


def _parts(patch: PatchObject, body: list[PatchFunction]) -> list[Part]:
    return [Part(f.section, f.start, f.end, patch.contents[f.section], _VENEERS in f.name) for f in body]


def _marks(patch: PatchObject, body: list[PatchFunction]) -> dict[tuple[int, int], Mark]:
    out = {}
    for f in body:
        rows = patch.relocs.get(f.section, ())
        for r in rows[bisect.bisect_left(rows, (f.start,)):bisect.bisect_left(rows, (f.end,))]:
            s = patch.symbols[r.symbol]
            to = (s.section, s.value + r.addend) if 0 < s.section < len(patch.sections) else None
            out[f.section, r.offset] = Mark(r.type, r.symbol, r.addend, to)
    return out


def _tables(patch: PatchObject) -> Callable[[int, int], bytes]:
    """A function that returns the bytes from symbol + addend up to the next place that a relocation or symbol names."""
    edges: dict[int, set[int]] = {}
    for rows in patch.relocs.values():
        for r in rows:
            s = patch.symbols[r.symbol]
            edges.setdefault(s.section, set()).add(s.value + r.addend)
    for s in patch.symbols:
        if s.type == elf.STT_OBJECT:
            edges.setdefault(s.section, set()).update((s.value, s.value + s.size))
    ordered = {section: sorted(found) for section, found in edges.items()}

    def table(symbol: int, addend: int) -> bytes:
        s = patch.symbols[symbol]
        if not 0 < s.section < len(patch.sections) or s.value + addend < 0:
            return b""
        start = s.value + addend
        known = ordered[s.section]
        n = bisect.bisect_right(known, start)
        return patch.contents[s.section][start:known[n] if n < len(known) else None]

    return table
