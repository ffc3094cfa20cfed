"""Calls that were left without returning: longjmp, and threads that end without being unwound.

Their gate counted them in and never counts them out, so the object of their version looks busy for ever.  Exceptions,
cancellation and pthread_exit are counted by the gates' personality routines; what remains is found here.  It errs on the safe
side until then: a count can be too high, never too low.

The rule.  A retired object has a surplus, the calls counted in and not out.  If no call of it is in progress, the surplus is
written off (the agent counts that many out) and the object is freed.  Why what we look at is enough:

  1. No counted call of a retired object begins: its gates are redirected (shim/commit.c, step 8).  Those that are not
     counted have a counted one below them on the same stack: what holds for that holds for the object.
  2. A call in progress has its gate's return address in memory all the time (stacks.py), at a place that does not change, so
     a search finds it although the program runs on; or its thread is executing the gate itself, a few instructions at either end.
  3. A thread in those few instructions is blocked with its program counter in the shim (we look), or is running: then it
     is past them once it blocks elsewhere or had the processor for PAST nanoseconds more, unless a signal handler
     interrupted it there, and then the address is in the signal's frame, in memory.
  4. So there are two searches, and that wait between them. A call that the first one missed was in those instructions: by the
     second it has been counted out, or its address is in memory.  A call that is in them during the second one was found by
     the first, because it did not begin in between (1).
  5. The agent compares the counts with those from before the searches: had a call ended meanwhile, they would differ.

Stacks are not moved by the programs that we know; the second search goes the other way, so that a program that copies
a stack from one place to another would have to do so twice, in opposite directions, to be missed.

Where a call's return address may be in a register only (AArch64: a leaf function), 2 does not hold, and there are other
looks: clearing.py says which, and why they are enough.

Stale addresses, below the stack pointer, would keep an object for as long as nothing overwrites them.  So what lies below the
stack pointer on a thread's own stack does not count, if the thread was blocked all the time, its stack is a whole mapping with
a guard page below it (or the main thread's), no part of the program can switch stacks (by makecontext, or by instructions of an
instrumented module), and no thread is in a signal handler: that may be on an alternate stack which is a part of the thread's
own, and the calls that it has interrupted below it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from psu_bin import arch as arch_package
from psu_bin.attach import shim, stacks
from psu_bin.attach.clearing import Clearing, blocked
from psu_bin.attach.leaf import Unwinding
from psu_bin.attach.process import Mapping
from psu_bin.attach.target import Target
from psu_bin.attach.tracing import AgentSession, agent_thread
from psu_bin.descriptor import MODULE_MOVES_STACK
from psu_bin.errors import PsuError

PAST = 1_000_000            # nanoseconds; the few instructions take 10
PATIENCE = 0.5              # seconds that running threads have for it
LOOKING = 0.5               # seconds within which all threads may be seen blocked, one after the other
PAUSE = 0.02                # seconds between such looks, at least
BRIEF = 1 << 30             # bytes of memory that are searched on the way, by who did not come for that; half a second or so
SWITCHERS = (b"\0makecontext\0", b"\0swapcontext\0", b"\0setcontext\0")


@dataclass(frozen=True)
class Keeper:
    """A call in progress in a retired object, as far as it can be told."""
    index: int              # of the object
    tid: int                # thread on whose stack it is; 0: on a stack that no thread is on, or that of a running thread
    kind: int
    gate: int


@dataclass(frozen=True)
class Survey:
    """What was found out about retired objects with a surplus."""
    surplus: dict[int, tuple[int, int]]     # object: (enters, leaves)
    keepers: tuple[Keeper, ...]
    abandoned: tuple[int, ...]              # objects that nobody is in
    # Objects of which no call was found, and threads that may be in one all the same.
    unseen: dict[int, frozenset[int]] = field(default_factory=dict)


def survey(t: Target, clearing: Clearing | None = None, seconds: float = LOOKING) -> Survey:
    """Look for calls in progress in every retired object of `t` that looks busy.  Stops no thread.

    clearing: what earlier surveys of this process found out, and then this one, too.  seconds: how long threads may take to
    be seen blocked, where that matters.  Raises PsuError when the target cannot be read."""
    process, runtime = t.process, t.runtime()
    retired = tuple(o.index for o in runtime.read_objects(process) if o.state == shim.RETIRED)
    surplus = {i: s for i, s in runtime.sums(process, retired).items() if s[0] != s[1]}
    if not surplus:
        return Survey({}, (), ())
    agent = agent_thread(process, runtime)
    look = _Look(t, runtime, agent.tid if agent else 0)
    if _architecture(t).returns_through_memory:
        keepers, rest = _look_twice(look, frozenset(surplus))
        unseen: dict[int, frozenset[int]] = {}
    else:
        keepers, unseen = _look_until_cleared(look, surplus, clearing or begin(t), seconds)
        rest = frozenset(i for i, threads in unseen.items() if not threads)
    now = runtime.sums(process, tuple(rest))
    return Survey(surplus, keepers, tuple(sorted(i for i in rest if now[i] == surplus[i])),
                  {i: threads for i, threads in unseen.items() if threads})


def begin(t: Target) -> Clearing:
    """For surveys that go on with what the ones before them found out."""
    return Clearing(together=not _architecture(t).returns_through_memory and _switches_stacks(t))


def _architecture(t: Target) -> arch_package.Arch:
    """All modules of a process are of one."""
    return arch_package.for_machine(t.modules[0].machine, t.modules[0].path)


def write_off(t: Target, found: Survey) -> bool:
    """Have the agent count the abandoned calls of `found` out, so that it frees the objects.

    False when another psu-bin or a debugger holds the agent, or when the counts changed meanwhile."""
    if not found.abandoned:
        return False
    rows = b"".join(shim.SURPLUS.pack(i, *found.surplus[i], 0) for i in found.abandoned)
    try:
        with AgentSession(t.process, t.runtime_address) as session:
            session.command(shim.OP_WRITE_OFF, rows, len(found.abandoned))
    except PsuError:
        return False
    return True


def sweep(t: Target, at_least: int = 1, most: int = 0, clearing: Clearing | None = None,
          seconds: float = LOOKING) -> tuple[bool, dict[int, frozenset[int]]]:
    """survey and write_off in one, unless fewer than `at_least` objects are retired.

    most: nothing is searched when the target has more bytes of memory than this; 0: however long it takes.  Returns whether
    something was written off, and Survey.unseen."""
    runtime = t.runtime()
    retired = sum(o.state == shim.RETIRED for o in runtime.read_objects(t.process))
    if retired < at_least or most and stacks.resident(t.process) > most:
        return False, {}
    found = survey(t, clearing, seconds)
    return write_off(t, found), found.unseen


class _Look(NamedTuple):
    """Where to look."""
    t: Target
    runtime: shim.Runtime
    agent_tid: int

    def at(self, wanted: frozenset[int], *, switches: bool = False) -> _Search:
        """A search for calls in progress in these objects, which begins now."""
        return _Search(self.t, self.runtime, self.agent_tid, wanted, switches)


def _look_twice(look: _Look, objects: frozenset[int]) -> tuple[tuple[Keeper, ...], frozenset[int]]:
    """The calls found in some of `objects`, and those that nobody is in, where return addresses are in memory."""
    keepers: list[Keeper] = []
    for backwards in (False, True):
        search = look.at(objects)
        keepers += search.run(backwards)
        objects -= {k.index for k in keepers}
        if not objects or search.void or not (backwards or _all_went_on(search)):
            return tuple(keepers), frozenset()
    return tuple(keepers), objects


def _look_until_cleared(look: _Look, surplus: dict[int, tuple[int, int]],
                        clearing: Clearing, seconds: float) -> tuple[tuple[Keeper, ...], dict[int, frozenset[int]]]:
    """The calls found in some objects, and the threads that may be in each of the others (clearing.py)."""
    process, call = look.t.process, _architecture(look.t).system_call
    end = time.monotonic() + seconds
    keepers: list[Keeper] = []
    objects = frozenset(surplus)
    threads = stacks.listed(process)
    if threads is None:
        return (), {}
    clearing.begin(surplus, threads - {look.agent_tid})
    while True:
        began = time.monotonic()
        search = look.at(objects, switches=True)
        keepers += search.run(backwards=False)
        objects -= {k.index for k in keepers}
        if objects and not search.void:
            after = stacks.standings(process, look.agent_tid, switches=True)
            threads = stacks.listed(process)
            if threads is not None:
                clearing.look(objects, blocked(search.before, after, Unwinding(process, search.maps, call).keeps),
                              threads - {look.agent_tid})
        now = time.monotonic()
        if now > end or not any(clearing.waiting(i) for i in objects):
            return tuple(keepers), {i: clearing.waiting(i) for i in objects}
        time.sleep(max(PAUSE, now - began))


def _all_went_on(search: _Search) -> bool:
    """Wait until each thread that was running before the search has run for PAST, or blocks outside the shim, or is gone."""
    waiting = {s.tid: s for s in search.before.values() if s.sp is None}
    deadline = time.monotonic() + PATIENCE
    while waiting:
        now = stacks.standings(search.process, search.agent_tid)
        for tid, old in list(waiting.items()):
            new = now.get(tid)
            if new is None or new.pc is not None and not search.in_shim(new.pc) or (
                    new.ran is not None and old.ran is not None and new.ran - old.ran >= PAST):
                del waiting[tid]
        if waiting and time.monotonic() > deadline:
            return False
        if waiting:
            time.sleep(0.005)
    return True


class _Search:
    """One look at all threads and all memory."""

    def __init__(self, t: Target, runtime: shim.Runtime, agent_tid: int, wanted: frozenset[int], switches: bool) -> None:
        self.t = t
        self.process = t.process
        self.runtime = runtime
        self.agent_tid = agent_tid
        self.wanted = wanted
        self.maps = t.process.maps()
        self.gates = stacks.Gates(runtime)
        self.memory = stacks.Memory(self.process, self.gates, self.maps)
        self.shim = next(((m.start, m.end) for m in self.maps if m.start <= runtime.pools[0].first < m.end), (0, 0))
        self.switches = switches
        self.before = stacks.standings(self.process, agent_tid, switches=switches)
        self.unclear = False            # a thread is somewhere in the shim: nothing can be said now
        self._objects: dict[tuple[int, int], set[int]] = {}

    @property
    def void(self) -> bool:
        """Whether the search says nothing about what it did not find."""
        return self.unclear or self.memory.unclear

    def in_shim(self, pc: int) -> bool:
        """Whether a thread there may be in a gate, or on its way out of one."""
        return self.shim[0] <= pc < self.shim[1] or self.gates.at(pc) is not None

    def run(self, backwards: bool) -> list[Keeper]:
        """The calls in progress in the wanted objects.  Stops searching once each has one."""
        found: list[Keeper] = []
        for s in self.before.values():
            if s.pc is not None and self.shim[0] <= s.pc < self.shim[1]:
                self.unclear = True
            elif s.pc is not None and (gate := self.gates.at(s.pc)):
                found += self._keepers(gate, s.tid)     # in a copy of a gate
        own = {s.tid: m for s in self.before.values() if s.sp is not None and (m := self._mapping(s.sp))}
        agent = self._mapping(self._agent_sp())
        mine = set(own.values())
        for tid, m in own.items():
            start = self.before[tid].sp
            assert start is not None
            for word in self.memory.search(start // 8 * 8, m.end):
                self.unclear |= word.kind == shim.NO_GATE
                found += self._keepers((word.kind, word.gate), tid)
        rest = [m for m in self.memory.maps if m not in mine and m != agent]
        if self.void or self.wanted <= {k.index for k in found}:
            return found
        found += self._elsewhere(rest[::-1] if backwards else rest)
        if self.wanted <= {k.index for k in found}:
            return found
        below = [k for tid, m in own.items() for k in self._below(tid, m)]
        if below and not self._dead_below(own):
            found += below
        return found

    def _agent_sp(self) -> int:
        s = stacks.standing(self.process, self.agent_tid) if self.agent_tid else None
        return s.sp or 0 if s else 0

    def _mapping(self, address: int) -> Mapping | None:
        return next((m for m in self.maps if m.start <= address < m.end), None)

    def _elsewhere(self, maps: list[Mapping]) -> list[Keeper]:
        out: list[Keeper] = []
        for m in maps:
            for word in self.memory.search(m.start, m.end):
                self.unclear |= word.kind == shim.NO_GATE
                out += self._keepers((word.kind, word.gate), 0)
        return out

    def _below(self, tid: int, m: Mapping) -> list[Keeper]:
        sp = self.before[tid].sp
        assert sp is not None
        return [k for word in self.memory.search(m.start, sp // 8 * 8) if word.kind != shim.NO_GATE
                for k in self._keepers((word.kind, word.gate), 0)]

    def _dead_below(self, own: dict[int, Mapping]) -> bool:
        """Whether what lies below the stack pointers of the blocked threads is nobody's any more."""
        now = stacks.standings(self.process, self.agent_tid, switches=self.switches)
        if any(now.get(tid) != self.before[tid] for tid in own) or len(set(own.values())) != len(own):
            return False
        guards = {m.end for m in self.maps if m.prot[:3] == "---"}
        if not all(m.path == "[stack]" or m.start in guards for m in own.values()):
            return False
        return not _switches_stacks(self.t) and not self._in_handlers(own)

    def _in_handlers(self, own: dict[int, Mapping]) -> bool:
        """Whether a thread may be in a signal handler: what handlers return to is a return address on its stack."""
        code = stacks.code_places(self.process, tuple(m for m in self.maps if "x" in m.prot), _architecture(self.t).signal_return)
        return not code or any(self.memory.holds((self.before[tid].sp or 0) // 8 * 8, m.end, code) for tid, m in own.items())

    def _keepers(self, gate: tuple[int, int], tid: int) -> list[Keeper]:
        if gate[0] == shim.NO_GATE:
            return []
        if gate not in self._objects:
            pool = self.runtime.pools[gate[0]]
            self._objects[gate] = set()
            for delta in {0, self.runtime.near_delta if gate[0] != shim.FULL else 0}:
                try:
                    raw = self.process.read((pool.data + delta & shim.WORD) + gate[1] * shim.GATE.size, shim.GATE.size)
                except PsuError:
                    continue        # its page of the copies was never filled in
                _, counter, _, slot, *_ = shim.GATE.unpack(raw)
                if slot:
                    self._objects[gate].add(counter // 8)
        return [Keeper(i, tid, *gate) for i in self._objects[gate] & self.wanted]


def _switches_stacks(t: Target) -> bool:
    """Whether an instrumented module can switch stacks by itself, or the program or a library of its, but the C library, names
    one of the functions that make or enter contexts."""
    if any(m.descriptor.flags & MODULE_MOVES_STACK for m in t.modules):
        return True
    for path in t.paths:
        if path.rsplit("/", 1)[-1].startswith(("libc.so", "libc-", "ld-", "ld.so")) or "ld-musl" in path:
            continue
        try:
            with open(t.process.file(path), "rb") as f:
                data = f.read()
        except OSError:
            return True
        if any(name in data for name in SWITCHERS):
            return True
    return False

