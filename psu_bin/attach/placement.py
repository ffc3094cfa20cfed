"""Where new memory goes in the target.

Code must reach its module's stubs with direct branches, so it lies within their reach of the module (x86-64: 2 GiB,
AArch64: 128 MiB; in a module that is itself too large for that, MODULE_FAR, calls lead to addresses in slots: 2 GiB); code
compiled for a position-dependent program may hold absolute 32-bit addresses and must lie below 2 GiB.  The program's own heap
(brk) grows upwards behind the executable: we stay below the executable, or far above the heap.
"""

from __future__ import annotations

from psu_bin.arch import Arch, for_machine
from psu_bin.attach import proc
from psu_bin.attach.proc import Mapping
from psu_bin.attach.process import Process, find_gap
from psu_bin.attach.target import Module
from psu_bin.errors import PsuError

LOWEST = 1 << 20                    # keep NULL plus an offset a fault
HIGHEST_ABS32 = 0x7FF00000
HEAP_ROOM = 256 << 20               # address space behind the present end of the heap that stays the heap's


def near(process: Process, module: Module, size: int, taken: tuple[tuple[int, int], ...] = ()) -> int:
    """An address with `size` free bytes within reach of all of `module`; `taken`: ranges promised already.

    Raises PsuError when there is none."""
    maps = process.maps()
    arch = for_machine(module.machine, module.path)
    full = arch.data_reach if module.far else arch.reach
    reach = full - min(64 << 20, full >> 3)     # in hand for the sizes of module and object themselves
    low = max(LOWEST, module.end - reach)
    avoid = [*taken, *reserved(process, maps)]
    if module.load_bias == 0:       # position-dependent: absolute addresses of 32 bits
        at = find_gap(maps, size, low, min(HIGHEST_ABS32, module.start + reach), tuple(avoid))
    else:
        at = find_gap(maps, size, low, module.start, tuple(avoid))
        if at is None:
            at = find_gap(maps, size, module.end, module.start + reach, tuple(avoid))
    if at is None:
        raise PsuError(process.where, f"has no {size} free bytes within {full >> 20} MiB of {module.path}")
    return at


def near_calls(process: Process, module: Module, size: int, taken: tuple[tuple[int, int], ...] = ()) -> int | None:
    """An address with `size` free bytes that all of the module's own direct calls reach, None when there is none.

    Its zeroed data may lie behind them, where the program has no room to give: first below, then above."""
    maps = process.maps()
    low, high = reached(for_machine(module.machine, module.path), module)
    avoid = (*taken, *reserved(process, maps))
    at = find_gap(maps, size, low, module.start, avoid)
    return find_gap(maps, size, low, high, avoid) if at is None else at


def reached(arch: Arch, module: Module) -> tuple[int, int]:
    """[low, high) that all of a module's own direct calls reach."""
    sites = module.descriptor.sites
    if not sites:
        return 0, 0
    return max(LOWEST, sites[-1] + module.load_bias - arch.reach), sites[0] + module.load_bias + arch.reach


def reserved(process: Process, maps: tuple[Mapping, ...]) -> list[tuple[int, int]]:
    """[start, end) of what the heap has and may grow into."""
    heap = next((m for m in maps if m.path == "[heap]"), None)
    brk = _start_brk(process)
    if not heap and not brk:
        return []
    return [(heap.start if heap else brk, (heap.end if heap else brk) + HEAP_ROOM)]


def _start_brk(process: Process) -> int:
    """Where the heap begins, also when nothing was allocated there yet (field 47 of /proc/PID/stat)."""
    where = process.path("stat")
    try:
        return proc.stat(proc.read(where), where).start_brk
    except (OSError, PsuError):
        return 0
