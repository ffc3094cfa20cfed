"""Where a process may still be inside a gate: its threads' states, and a search of its memory for return addresses.

A call that a gate counted has, from the count on the way in to the count on the way out, the gate's return address in
memory (on a stack, wherever that is, or in a signal frame), or the gate's own instructions are being executed.  So
whoever looks at all memory that a stack could be in, and at all threads, sees every call in progress.  Here is the looking;
surplus.py draws the conclusions.

What is odd: words that merely look like such an address count, too (stale ones below the stack pointer, ones in freed memory):
as for a conservative garbage collector, that errs on the safe side.  Nothing is stopped; the target runs on while we read.

Addresses are run-time addresses of the target, sizes bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from psu_bin.attach import pagemap, proc, shim
from psu_bin.attach.process import Mapping, Process
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from numpy import uint64
    from numpy.typing import NDArray

    Words = NDArray[uint64]

PAGE = pagemap.PAGE
CHUNK = 1 << 20
LISTS = 20                 # of threads, until two are equal


@dataclass(frozen=True)
class Standing:
    """Where one thread was at one moment."""
    tid: int
    sp: int | None         # None: running, or ready to run
    pc: int | None
    ran: int | None        # nanoseconds that it has had a processor; None: the kernel does not say
    number: int = -1       # of the system call that it waits in; -1: in none
    switches: int | None = None    # how often it lost a processor; None: not asked for, or the kernel does not say


@dataclass(frozen=True)
class Found:
    """A word in memory that is an address inside a gate."""
    at: int
    kind: int              # of the gate; shim.NO_GATE: in the part of the shim that leaves gates
    gate: int


def standings(process: Process, without: int, *, switches: bool = False) -> dict[int, Standing]:
    """Every thread but `without`; with `switches`, how often each was switched away from, too.

    Raises PsuError when the target may not be looked at, or ended, or /proc is not the kernel's own."""
    out = {}
    for name in process.thread_names():
        if int(name) != without and (s := standing(process, int(name), switches=switches)) is not None:
            out[s.tid] = s
    return out


def listed(process: Process) -> frozenset[int] | None:
    """All threads; None when they come and go faster than they can be listed.

    A thread that ends while it is listed may cut the kernel's list short.  It is not in the next one: two lists that are
    equal are whole.  The first thread stays in the list when it ends before others, and there are the kernel's own: both are
    left out."""
    names = process.thread_names()
    for _ in range(LISTS):
        before, names = names, process.thread_names()
        if before == names:
            return frozenset(t for t in map(int, names) if standing(process, t) is not None)
    return None


def resident(process: Process) -> int:
    """Bytes of memory that the target has touched, 0 when it cannot be told."""
    try:
        return proc.resident_pages(proc.read(process.path("statm"))) * PAGE
    except OSError:
        return 0


def standing(process: Process, tid: int, *, switches: bool = False) -> Standing | None:
    """Where thread `tid` is; None: it has ended, or is the kernel's own.  Raises PsuError as standings()."""
    folder = f"/proc/{process.pid}/task/{tid}"
    try:
        where = proc.read(f"{folder}/syscall")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as e:
        raise process.forbidden(e) from e
    try:
        time = proc.read(f"{folder}/schedstat")
    except OSError:
        time = ""
    try:
        # Behind the other: a thread that blocks again after it ran has been switched away from once more by then.
        status = proc.read(f"{folder}/status") if switches else ""
    except OSError:
        return None
    return stands(tid, where, time, f"{folder}/syscall", status)


def stands(tid: int, syscall: str, schedstat: str, where: str, status: str = "") -> Standing | None:
    """What the texts of three files of a thread say; `where`: the name of the first, for the PsuError that it is odd.  None:
    nothing of the program's is executed by it, now or later."""
    waiting = proc.syscall(syscall, where)
    if waiting and waiting.nowhere:
        return None
    ran = proc.ran(schedstat)
    if waiting is None:
        return Standing(tid, None, None, ran)
    return Standing(tid, waiting.stack_pointer, waiting.program_counter, ran, waiting.number, proc.switches(status))


class Gates:
    """The address ranges of gates, and of the shim's functions that leave them (PSU_LEAVING in shim/internal.h)."""

    def __init__(self, runtime: shim.Runtime) -> None:
        self.runtime = runtime
        self.pools: list[tuple[int, int, int]] = []        # first, end, kind
        for kind, pool in enumerate(runtime.pools):
            for delta in {0, runtime.near_delta} if kind != shim.FULL else {0}:
                first = pool.first + delta & shim.WORD      # the copies may be below
                self.pools.append((first, first + pool.stride * pool.count, kind))
        self.pools.append((*runtime.leaving, shim.NO_GATE))

    def at(self, address: int) -> tuple[int, int] | None:
        """(kind, number) of the gate that `address` lies in, but for its entries; (NO_GATE, 0) where gates are left.

        The very beginning is no return address, and nobody there is counted: a slot holds an entry, psu_runtime the beginning of
        the leaving part."""
        for first, end, kind in self.pools:
            if first <= address < end:
                if kind == shim.NO_GATE:
                    return (kind, 0) if address != first else None
                pool = self.runtime.pools[kind]
                number, offset = divmod(address - first, pool.stride)
                return (kind, number) if offset not in (0, pool.look) else None
        return None


class Memory:
    """The target's memory that a stack could be in, searched for addresses inside gates."""

    def __init__(self, process: Process, gates: Gates, maps: tuple[Mapping, ...]) -> None:
        self.process = process
        self.gates = gates
        self.maps = tuple(m for m in maps if _may_be_stack(m))
        self.unclear = False            # something was too much to be searched
        self.mask = proc.address_mask(maps)

    def search(self, start: int, end: int) -> Iterator[Found]:
        """The words in [start, end) that are addresses inside gates.  What is unmapped meanwhile is left out."""
        ranges = pagemap.touched(self.process.path("pagemap"), start, end)
        self.unclear |= ranges is None
        for at, size in ranges or ():
            for address in range(at, at + size, CHUNK):
                yield from self._words(address, min(CHUNK, at + size - address))

    def holds(self, start: int, end: int, places: tuple[int, ...]) -> bool:
        """Whether a word in [start, end) is one of the addresses `places`, or what was touched there cannot be told."""
        import numpy
        ranges = pagemap.touched(self.process.path("pagemap"), start, end)
        return ranges is None or any(
            numpy.isin(words, numpy.array(places, numpy.uint64)).any() for at, size in ranges
            for address in range(at, at + size, CHUNK) for _, words in self._read(address, min(CHUNK, at + size - address)))

    def _words(self, at: int, size: int) -> Iterator[Found]:
        import numpy
        for place, words in self._read(at, size):
            for low, high, _ in self.gates.pools:
                for i in numpy.flatnonzero(words - numpy.uint64(low) < numpy.uint64(high - low)):
                    gate = self.gates.at(int(words[i]))
                    if gate is not None:
                        yield Found(place + int(i) * 8, *gate)

    def _read(self, at: int, size: int) -> Iterator[tuple[int, Words]]:
        """(address, the words there without what addresses do not have), page by page where not all of it is there."""
        import numpy
        try:
            data = self.process.read(at, size)
        except PsuError:
            pages = range(at // PAGE * PAGE, at + size, PAGE)
            for page in pages if len(pages) > 1 else ():
                start = max(page, at)
                yield from self._read(start, min(page + PAGE, at + size) - start)
            return
        yield at, numpy.frombuffer(data, numpy.uint64) & numpy.uint64(self.mask)


@lru_cache(maxsize=1)
def code_places(process: Process, maps: tuple[Mapping, ...], code: bytes) -> tuple[int, ...]:
    """Where in the mappings these bytes are."""
    out = []
    for m in maps:
        for at in range(m.start, m.end, CHUNK):
            try:
                data = process.read(at, min(CHUNK + len(code) - 1, m.end - at))
            except PsuError:
                continue        # unmapped meanwhile, or [vsyscall]
            found = data.find(code)
            while found >= 0:
                out.append(at + found)
                found = data.find(code, found + 1)
    return tuple(out)


def _may_be_stack(m: Mapping) -> bool:
    """Readable and writable; a shared mapping of a regular file is nobody's stack, and can be larger than memory."""
    shared_file = m.prot[3:4] == "s" and m.inode and not m.path.startswith(("/dev/", "/memfd:", "/SYSV"))
    return m.prot[:2] == "rw" and not shared_file
