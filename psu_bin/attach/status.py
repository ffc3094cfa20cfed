"""What psu-bin status shows, and wait: read from the target's memory and /proc alone; no thread of the program is stopped.

Both have the agent write off calls that were left without returning (surplus.py): what they would otherwise show, and wait
for, is not there any more.  `wait` also leads functions back to their originals directly that revert had led there through
gates (originals.py), once nobody needs these.

The target goes on meanwhile, so numbers of one moment may be off by calls that begin or end during the reading.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from psu_bin.attach import meta, proc, shim, surplus, target
from psu_bin.attach.process import Process
from psu_bin.attach.tracing import agent_thread
from psu_bin.errors import PsuError

LOOK_AFTER, LOOK_EVERY = 0.1, 1.0    # seconds of waiting until calls that were left without returning are searched for
STACK_SEARCHED = 256 * 1024  # bytes above a waiting thread's stack pointer that are searched for return addresses


@dataclass(frozen=True)
class ModuleStatus:
    path: str
    build_id: str
    functions: int


@dataclass(frozen=True)
class PatchStatus:
    id: int
    name: str
    state: str                 # current, retired, freed
    functions: tuple[str, ...]
    activations: int           # calls in progress, summed over threads
    bytes: int                 # memory of its objects that is still mapped
    kept_because: str | None   # why something of it is still there although it is superseded


@dataclass(frozen=True)
class Status:
    pid: int
    modules: tuple[ModuleStatus, ...]
    agent: int | None          # thread id, as this process sees it
    patches: tuple[PatchStatus, ...]


def read(pid: int) -> Status:
    """The present state of process `pid`.  Raises PsuError when it cannot be read or is not instrumented."""
    process = Process(pid)
    with process.one_program():
        t = target.read(process)
        written_off, unseen = surplus.sweep(t, most=surplus.BRIEF)
        if written_off:
            _until_freed(t)
        return of(t, unseen)


def of(t: target.Target, unseen: Mapping[int, frozenset[int]] = MappingProxyType({})) -> Status:
    """As read, of a target that is known already; nothing in it is touched.  `unseen` as in surplus.Survey."""
    process = t.process
    runtime, notes = _consistent(t)
    objects = {o.index: o for o in runtime.read_objects(process)}
    by_patch: dict[int, list[shim.Object]] = {}
    for o in objects.values():
        by_patch.setdefault(o.patch, []).append(o)
    counts = runtime.activations(process, tuple(objects))
    agent = agent_thread(process, runtime)
    patches = []
    for p in notes.patches:
        alive = by_patch.get(p.id, [])
        state = "freed"
        if any(o.state == shim.RETIRED for o in alive):
            state = "retired"
        if any(o.state == shim.CURRENT for o in alive):
            state = "current"
        active = sum(n for o in alive for n in counts[o.index].values())
        kept = _why(process, p, alive, counts, notes, unseen) if alive else None
        patches.append(PatchStatus(p.id, p.name, state, tuple(p.functions), max(active, 0),
                                   sum(o.bytes for o in alive), kept))
    modules = tuple(ModuleStatus(m.path, m.build_id.hex(), len(m.descriptor.functions)) for m in t.modules)
    return Status(process.pid, modules, agent.tid if agent else None, tuple(patches))


def _consistent(t: target.Target) -> tuple[shim.Runtime, meta.Notes]:
    """The runtime and the notes that belong to it: a commit in between replaces the notes and unmaps the old ones."""
    for attempt in range(10):
        runtime = t.runtime()
        try:
            notes = meta.read(t.process, runtime)
        except PsuError:
            if attempt == 9:
                raise
            continue
        if t.runtime().meta == runtime.meta:
            break
    return runtime, notes


def _why(process: Process, p: meta.PatchNotes, alive: list[shim.Object], counts: dict[int, dict[int, int]],
         notes: meta.Notes, unseen: Mapping[int, frozenset[int]]) -> str | None:
    """Why memory of a patch that was superseded or reverted is still there; None for one that is simply current."""
    retired = [o for o in alive if o.state == shim.RETIRED]
    if retired:
        reasons = []
        for o in retired:
            for tid, n in sorted(counts[o.index].items()):
                if n > 0:
                    reasons.append(_who(process, p, o, tid, n))
            if reasons and o.index in unseen:
                reasons.append(_undecided(unseen[o.index]))
        return "; ".join(reasons) or "the agent has not freed it yet"
    current = {f.name for f in notes.functions if f.history and f.history[-1] == p.id}
    if p.reverted or not current:
        return f"the program may hold the address of {', '.join(p.pinned)}" if p.pinned else None
    return None


def _who(process: Process, p: meta.PatchNotes, o: shim.Object, own_tid: int, n: int) -> str:
    calls = f"{n} call{'s' if n != 1 else ''} in progress"
    if own_tid == 0:
        return f"{calls} of threads that ended"
    thread = process.thread(own_tid)
    if thread is None or thread.state in "ZX":
        return f"{calls} of thread {own_tid}, which ended"
    where = _function_on_stack(process, p, o, thread.tid)
    if not where:       # it runs: nobody can tell without stopping it
        names = [name for name, start, _ in p.code if any(a <= start < a + size for a, size in o.regions)]
        where = names[0] if len(names) == 1 else f"one of {len(names)} functions: {_some(names)}"
    return f"{calls} of thread {thread.tid} in {where}"


def _undecided(threads: frozenset[int]) -> str:
    """`threads` as in surplus.Survey.unseen: not empty."""
    who = f"thread {min(threads)} " + ("was" if len(threads) == 1 else f"and {len(threads) - 1} more were")
    return f"or they were left without returning (longjmp), which cannot be told: {who} not seen to wait where that shows"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _function_on_stack(process: Process, p: meta.PatchNotes, o: shim.Object, tid: int) -> str:
    """The patch's function that a waiting thread executes or will return to, found among the words of its stack."""
    try:
        where = f"/proc/{process.pid}/task/{tid}/syscall"
        waiting = proc.syscall(proc.read(where), where)
        if waiting is None:
            return ""
        sp, pc = waiting.stack_pointer, waiting.program_counter
        maps = process.maps()
        limit, mask = next((m.end for m in maps if m.start <= sp < m.end), sp), proc.address_mask(maps)
        stack = process.read(sp, max(0, min(limit - sp, STACK_SEARCHED)) // 8 * 8)
    except (OSError, PsuError):
        return ""
    for (found,) in ((pc,), *struct.iter_unpack("<Q", stack)):
        word = found & mask
        if any(a <= word < a + size for a, size in o.regions):
            for name, start, size in p.code:
                if start <= word <= start + size:
                    return name
    return ""


def retired(process: Process, runtime_address: int) -> int:
    """How many retired objects of patches there are."""
    runtime = shim.Runtime.read(process, runtime_address)
    return sum(o.state == shim.RETIRED and o.patch != shim.NO_PATCH for o in runtime.read_objects(process))


def wait(pid: int, timeout: float | None) -> None:
    """Return when no retired object is left; PsuError when `timeout` seconds pass before, or the process ends."""
    from psu_bin.attach.revert import settle
    process = Process(pid)
    with process.one_program():
        t = target.read(process)
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        look, clearing = time.monotonic() + LOOK_AFTER, surplus.begin(t)
        while (n := retired(process, t.runtime_address)):
            if not process.alive():
                raise PsuError(process.where, "ended meanwhile")
            if deadline is not None and time.monotonic() >= deadline:
                raise PsuError(process.where, f"still holds {n} retired object{'s' if n != 1 else ''} after {timeout:g} s",
                               f"psu-bin status {pid} says what keeps them")
            if time.monotonic() > look:
                surplus.sweep(t, clearing=clearing)
                look = time.monotonic() + LOOK_EVERY
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        settle(t, 0)      # what it warns of is not what was asked for


def _until_freed(t: target.Target) -> None:
    """Give the agent, which was just told that calls were abandoned, the moment that it needs to free their objects."""
    before = retired(t.process, t.runtime_address)
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline and retired(t.process, t.runtime_address) == before:
        time.sleep(0.001)
