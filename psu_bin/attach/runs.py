"""Tables that only code can use: jump tables and labels as values.

They are told from other data by their relocations, which point inside functions: PC-relative ones (`.long .L5 - .L4`)
to a code section, or absolute ones to a place that is no function's entry.  An absolute entry that happens to be a
function's entry (a jump back to the top) belongs to the table when it has no object symbol of its own and a neighbour
that does."""

from __future__ import annotations

import bisect

from psu_bin import elf
from psu_bin.arch.link_types import Howto, Use
from psu_bin.attach.patch import PatchObject, PatchSymbol, Reloc
from psu_bin.attach.sections import Role
from psu_bin.errors import PsuError

Runs = dict[int, list[tuple[int, int]]]


def find(patch: PatchObject, roles: tuple[Role, ...], howto: dict[int, Howto]) -> Runs:
    """The runs of each constant or writable section: [(start, end)], ascending."""
    out: Runs = {}
    for section, relocs in patch.relocs.items():
        if roles[section] not in (Role.CONSTANT, Role.WRITABLE):
            continue
        entries = _label_entries(patch, roles, howto, relocs, section)
        if entries:
            out[section] = _joined(entries)
    return out


def _label_entries(patch: PatchObject, roles: tuple[Role, ...], howto: dict[int, Howto],
                   relocs: tuple[Reloc, ...], section: int) -> dict[int, int]:
    """Start -> end of each entry that holds a label, or of the object that it is in."""
    entries: dict[int, int] = {}
    maybe: dict[int, int] = {}
    covered = _covered(_objects(patch, section), [r.offset for r in relocs])
    for r in relocs:
        how = howto.get(r.type)
        if how is None:
            raise PsuError(patch.path, f"relocation type {r.type} in {patch.sections[section].name} is not known")
        s = patch.symbols[r.symbol]
        if how.use is not Use.ADDRESS or not 0 < s.section < len(roles) or roles[s.section] is not Role.CODE:
            continue
        if how.relative:
            label = s.type == elf.STT_SECTION or s.local and s.type == elf.STT_NOTYPE
        else:
            label = (s.section, s.value + r.addend) not in patch.function_at
        covering = covered.get(r.offset)
        if label:
            start, end = covering or (r.offset, r.offset + how.size)
            entries[start] = max(end, entries.get(start, 0))
        elif covering is None and not how.relative and s.local:
            maybe[r.offset] = r.offset + how.size
    grew = True
    while grew and maybe:
        grew = False
        ends = set(entries.values())
        for start, end in list(maybe.items()):
            if end in entries or start in ends:
                entries[start] = maybe.pop(start)
                grew = True
    return entries


def _covered(objects: list[PatchSymbol], offsets: list[int]) -> dict[int, tuple[int, int]]:
    """(start, end) of the first of `objects` that has the byte, by offset; `offsets`: ascending."""
    out: dict[int, tuple[int, int]] = {}
    for o in objects:
        first, last = bisect.bisect_left(offsets, o.value), bisect.bisect_left(offsets, o.value + o.size)
        for offset in offsets[first:last]:
            out.setdefault(offset, (o.value, o.value + o.size))
    return out


def _objects(patch: PatchObject, section: int) -> list[PatchSymbol]:
    return [s for s in patch.symbols_in.get(section, ()) if s.type == elf.STT_OBJECT and s.size]


def _joined(entries: dict[int, int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start in sorted(entries):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], entries[start]))
        else:
            out.append((start, entries[start]))
    return out


def sections_with_labels(patch: PatchObject, roles: tuple[Role, ...], runs: Runs) -> frozenset[int]:
    """Constant sections that must stay with the code because they point to a run, directly or through another."""
    private: set[int] = set()
    grew = True
    while grew:
        grew = False
        for section, relocs in patch.relocs.items():
            if roles[section] is not Role.CONSTANT or section in private:
                continue
            for r in relocs:
                s = patch.symbols[r.symbol]
                at = s.value + r.addend
                inside = any(a <= r.offset < b for a, b in runs.get(section, ()))
                if not inside and (s.section in private or any(a <= at < b for a, b in runs.get(s.section, ()))):
                    private.add(section)
                    grew = True
                    break
    return frozenset(private)
