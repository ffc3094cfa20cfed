"""Where new memory goes in the target.

Code must reach its module's stubs with direct branches, so it lies within their reach of the module (x86-64: 2 GiB,
AArch64: 128 MiB); code compiled for a position-dependent program may hold absolute 32-bit addresses and must lie below 2 GiB.  The program's own
heap (brk) grows upwards behind the executable: we stay below the executable, or far above the heap.
"""

from __future__ import annotations

from psu_bin.arch import for_machine
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
    full = for_machine(module.machine, module.path).reach
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


def reserved(process: Process, maps: tuple[Mapping, ...]) -> list[tuple[int, int]]:
    """[start, end) of what the heap has and may grow into."""
    heap = next((m for m in maps if m.path == "[heap]"), None)
    brk = _start_brk(process)
    if not heap and not brk:
        return []
    return [(heap.start if heap else brk, (heap.end if heap else brk) + HEAP_ROOM)]


def _start_brk(process: Process) -> int:
    """Where the heap begins, also when nothing was allocated there yet (field 47 of /proc/PID/stat)."""
    where = f"/proc/{process.pid}/stat"
    try:
        return proc.stat(proc.read(where), where).start_brk
    except (OSError, PsuError):
        return 0
