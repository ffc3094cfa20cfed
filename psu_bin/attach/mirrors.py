"""Stubs for direct calls that were turned, where those can be turned to by one byte: mirrors of the program's code.

Where an instruction's displacement may lie across two words (Arch.site_form.step, x86-64), a direct call is turned to a place
that is a multiple of 16 MiB away from its function's entry.  So the stub that it shall reach has to be just there.  This module
maps such places, a run of pages at a time, when one of their functions gets its first patch: pages that hold nothing but
a jump through its slot for each function of the pages that they mirror, at the same distances.

Where an instruction can be turned to any place, but the module's table of stubs is out of reach (MODULE_FAR, AArch64), the same is
done with less: any free pages near the code will do.  What they mirror is then no code but a table of stubs that is nowhere,
which has room for unwind rows in each page, and begins at address 0.

To the shim such a run is an object of patch 0, that no gate leads to: unwinders find its rows, and psu-bin finds it again by what
is in it.  It is made by a commit of its own right before the first call is turned.  If the patch is refused before that, it goes
again; if psu-bin dies, the next one finds it.  Once a call was turned to it, it is never unmapped: somebody may be about to
execute its one jump.

Addresses are run-time addresses of the target, distances bytes modulo 2^64.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psu_bin import arch as arch_package
from psu_bin import fde
from psu_bin.arch import Arch
from psu_bin.attach import placement, shim
from psu_bin.attach.process import PAGE, Process
from psu_bin.attach.target import Module
from psu_bin.descriptor import DETOURED
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.transaction import Transaction

AT_ONCE = 16               # runs in one commit
MOST_DROPPED = 512         # objects in one commit: a record that fits the fixed buffer
ATTEMPTS = 5               # the program may take an address between our look at its map and the mmap
ROWS_ALIGN = 8
ROWS_ROOM = 64             # of each page of a far module's runs


class NoRoom(PsuError):
    """There is no place for stubs at a distance."""


@dataclass(frozen=True)
class Run:
    """A stretch of mirrored pages: [start, end), `distance` behind the code (or table) that it mirrors."""
    distance: int
    start: int
    end: int


def stub_size(arch: Arch, module: Module) -> int:
    return len(arch.site_form.stub(0, 0, module.descriptor.flags))


def wanted(arch: Arch, module: Module) -> bool:
    """Whether calls of the module's functions are turned to mirrors, not to the table of stubs."""
    return bool(arch.site_form.step) or module.far


def _in_page(arch: Arch, module: Module) -> int:
    """How many stubs of the table that a far module's runs mirror are in one page."""
    return (PAGE - ROWS_ROOM) // stub_size(arch, module)


def _origin(arch: Arch, module: Module, number: int) -> int:
    """What the stubs of function `number` are the distances of their runs from."""
    if not module.far:
        return module.descriptor.functions[number].address + module.load_bias
    page, n = divmod(number, _in_page(arch, module))
    return page * PAGE + n * stub_size(arch, module)


def known(process: Process, runtime: shim.Runtime, module: Module) -> list[Run]:
    """The runs of a module that are in the target.  One that was dropped may still be there: it is about to be unmapped."""
    arch = arch_package.for_machine(module.machine, module.path)
    out = []
    for start, size in (r for o in runtime.read_objects(process) if o.patch == shim.NO_PATCH and o.state == shim.CURRENT
                        for r in o.regions) if wanted(arch, module) else ():
        data = process.read(start, size)
        for distance in _distances(arch, module, start, size):
            run = Run(distance & shim.WORD, start, start + size)
            if _begins(arch, module, run, data) and _contents(arch, module, run)[0] == data:
                out.append(run)
    return out


def _distances(arch: Arch, module: Module, start: int, size: int) -> range:
    """Those that a run of `size` bytes at `start` may have."""
    if module.far:
        low, high = placement.reached(arch, module)
        pages = -(-len(module.descriptor.functions) // _in_page(arch, module)) if low <= start < high else 0
        return range(start, start - pages * PAGE, -PAGE)
    step = arch.site_form.step
    return range(-(-(start - module.end + size) // step) * step, start - module.start + 1, step)


def _begins(arch: Arch, module: Module, run: Run, data: bytes) -> bool:
    """Whether the first stub of the run is in `data`: hardly ever, if it is another module's or has another distance."""
    for number, origin in mirrored(arch, module, run):
        at = origin + run.distance & shim.WORD
        stub = arch.site_form.stub(at, module.slot(number), module.descriptor.flags)
        return data[at - run.start:][:len(stub)] == stub
    return False


def place(arch: Arch, runs: Sequence[Run], module: Module, number: int) -> int | None:
    """Where turned calls of function `number` lead: its stub in a mirror, or, where the architecture needs none, in the table."""
    if not wanted(arch, module):
        return module.stub(number)
    origin, size = _origin(arch, module, number), stub_size(arch, module)
    return next((at for r in runs if r.start <= (at := origin + r.distance & shim.WORD) and at + size <= r.end), None)


def ensure(x: Transaction, module: Module, runs: list[Run], numbers: Sequence[int]) -> list[int]:
    """Make mirrors for those functions of a module that have none in `runs`, which they join.

    Returns the indices of the objects that they are, for drop().  Raises PsuError when there is no room."""
    arch = arch_package.for_machine(module.machine, module.path)
    pages = _runs(arch, module, [n for n in numbers if place(arch, runs, module, n) is None])
    out: list[int] = []
    try:
        for first in range(0, len(pages), AT_ONCE):
            out += _make(x, arch, module, runs, pages[first:first + AT_ONCE])
    except BaseException:
        drop(x, out)
        raise
    return out


def drop(x: Transaction, indices: Sequence[int]) -> None:
    """Give mirrors back that no call was turned to.  It needs no memory in the target."""
    try:
        for first in range(0, len(indices), MOST_DROPPED):
            some = indices[first:first + MOST_DROPPED]
            x.session.command(shim.OP_COMMIT, shim.COMMIT.pack(0, 0, len(some), 0, 0, 0)
                              + struct.pack(f"<{len(some)}I", *some), 0)
    except PsuError:
        pass  # the error that brought us here is the one to tell; the next psu-bin finds them


def _runs(arch: Arch, module: Module, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """[start, end) of the code (or table) to mirror, whole pages, ascending."""
    size = stub_size(arch, module)
    origins = [_origin(arch, module, n) for n in numbers]
    pages = sorted({p for at in origins for p in (at // PAGE, (at + size - 1) // PAGE)})
    out: list[tuple[int, int]] = []
    for p in pages:
        if out and out[-1][1] == p:
            out[-1] = out[-1][0], p + 1
        else:
            out.append((p, p + 1))
    return [(a * PAGE, b * PAGE) for a, b in out]


def _make(x: Transaction, arch: Arch, module: Module, runs: list[Run], code: list[tuple[int, int]]) -> list[int]:
    process = x.target.process
    for _ in range(ATTEMPTS):
        made: list[Run] = []
        for a, b in code:
            promised = [(r.start, r.end) for r in made]
            made.append(_choose_far(process, arch, module, a, b, promised) if module.far else
                        choose(process, arch, module, a, b, [*runs, *made], promised))
        if x.map([(r.start, r.end - r.start, False) for r in made]) is not None:
            break
    else:
        raise PsuError(process.where, "takes memory faster than it can be found near its modules", "try again")
    taken = {o.index for o in x.session.runtime.read_objects(process)} | x.promised
    free = (i for i in range(x.session.runtime.indices) if i not in taken)
    indices, objects = [], b""
    for r in made:
        data, rows = _contents(arch, module, r)
        process.write(r.start, data)
        index = next(free, None)
        if index is None:
            raise PsuError(process.where, f"holds {x.session.runtime.indices} patch objects: no more fit", "revert some")
        indices.append(index)
        regions = [(r.start, r.end - r.start)] + [(0, 0)] * (shim.REGIONS - 1)
        objects += shim.NEW_OBJECT.pack(index, shim.NO_PATCH, rows, *(n for region in regions for n in region), 0, 0)
    x.protect([(r.start, r.end - r.start, 5) for r in made])
    x.session.command(shim.OP_COMMIT, shim.COMMIT.pack(len(made), 0, 0, 0, 0, 0) + objects, 0)
    runs += made
    return indices


def choose(process: Process, arch: Arch, module: Module, start: int, end: int, runs: Sequence[Run],
           promised: Sequence[tuple[int, int]]) -> Run:
    """A free place for the mirror of [start, end), in steps from it, that all calls of the module, or near it, reach.  Raises NoRoom.

    runs: the module's, whose distances are taken first; promised: [start, end) of what is to be mapped there."""
    maps = process.maps()
    taken: list[tuple[int, int]] = []                  # ascending, none in or behind another's start
    for a, b in sorted([(m.start, m.end) for m in maps] + placement.reserved(process, maps) + list(promised)):
        if taken and a <= taken[-1][1]:
            taken[-1] = taken[-1][0], max(taken[-1][1], b)
        else:
            taken.append((a, b))
    starts = [a for a, _ in taken]
    step = arch.site_form.step
    most = arch.reach // step
    distances = dict.fromkeys([r.distance for r in runs] + [
        k * step & shim.WORD for k in (*range(-1, -most - 1, -1), *range(1, most + 1))])
    for distance in distances:
        low = start + distance & shim.WORD
        high = low + end - start
        i = bisect.bisect_left(starts, high)
        # Calls of the module and of its objects lead there, and the jumps there to the module's slots.
        near = max(high, end, module.end) - min(low, start, module.start) < arch.reach - PAGE
        if near and low >= placement.LOWEST and high < 1 << 47 and (not i or taken[i - 1][1] <= low):
            return Run(distance, low, high)
    raise _no_room(process, arch, module)


def _choose_far(process: Process, arch: Arch, module: Module, start: int, end: int, promised: Sequence[tuple[int, int]]) -> Run:
    """As choose, for a module that is far, and at any distance."""
    at = placement.near_calls(process, module, end - start, tuple(promised))
    if at is None:
        raise _no_room(process, arch, module)
    return Run(at - start & shim.WORD, at, at + end - start)


def _no_room(process: Process, arch: Arch, module: Module) -> NoRoom:
    return NoRoom(process.where, f"has no room within {arch.reach >> 20} MiB of {module.path} for the stubs of direct calls")


def _contents(arch: Arch, module: Module, run: Run) -> tuple[bytes, int]:
    """The bytes of a run, and the address of its unwind rows in it (0: no room)."""
    size = stub_size(arch, module)
    data = bytearray(arch.padding * ((run.end - run.start) // len(arch.padding)))
    used: list[tuple[int, int]] = []
    for number, origin in mirrored(arch, module, run):
        at = origin + run.distance & shim.WORD
        offset = at - run.start
        data[offset:offset + size] = arch.site_form.stub(at, module.slot(number), module.descriptor.flags)
        used.append((offset, offset + size))
    rows = fde.rows(arch, 0, [fde.Code(0, 0)])[0]
    room = len(rows) + 4
    before = 0
    for low, high in (*used, (len(data), len(data))):
        at = -(-before // ROWS_ALIGN) * ROWS_ALIGN
        if at + room <= low:
            rows = fde.rows(arch, run.start + at, [fde.Code(run.start, run.end - run.start)])[0]
            data[at:at + room] = rows + bytes(4)
            return bytes(data), run.start + at
        before = high
    return bytes(data), 0


def mirrored(arch: Arch, module: Module, run: Run) -> Iterator[tuple[int, int]]:
    """(number, what its stub has the run's distance from) of the functions whose stubs are in the run, ascending: those whose
    calls sites.py may have left."""
    size, functions = stub_size(arch, module), module.descriptor.functions
    if module.far:
        first, behind = ((at - run.distance & shim.WORD) // PAGE * _in_page(arch, module) for at in (run.start, run.end))
        for n in range(first, min(behind, len(functions))):
            yield n, _origin(arch, module, n)
        return
    low, high = (a - run.distance - module.load_bias for a in (run.start, run.end))
    low, high = low & shim.WORD, high & shim.WORD
    for n in range(bisect.bisect_left(functions, low, key=lambda f: f.address), len(functions)):
        entry = functions[n].address
        if entry + size > high:
            return
        if not functions[n].flags & DETOURED and (n + 1 == len(functions) or functions[n + 1].address - entry >= size):
            yield n, entry + module.load_bias
