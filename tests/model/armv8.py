"""Decides what an AArch64 litmus test can end with, by the axioms of the Armv8 memory model.

A litmus test is a few threads of a few instructions, and a question: can they end so?  Every execution is tried: each
load with each store that it could read from, and each order of the stores to one place.  Those that the axioms allow
are what a processor may do, however it reorders.  The axioms are Arm's own (Arm Architecture Reference Manual, B2.3;
aarch64.cat of herd7, https://github.com/herd/herdtools7), as far as the instructions below need them.

Instructions: MOV W,#n; MOV W,W; ADD W,W,W; LDR, LDAR, STR, STLR of a word [X]; STADD, STADDL (ARMv8.1);
LDXR, LDAXR, STXR, STLXR; DMB ISH, DMB ISHLD; CMP W,W; CBZ, CBNZ, B.NE, B.EQ forwards; labels.  Not modelled: instruction
fetches, addresses that are computed, accesses of other sizes, an exclusive store that fails.

    python armv8.py FILE.litmus...       says of each whether its condition can be met

herd7 reads the same files; test_litmus.py compares the two where herd7 is installed.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 2     # values above are not tried: counters go up by one, twice at most


@dataclass(frozen=True)
class Litmus:
    """One test: initial values, what the registers of each thread point to, instructions, and the final values asked for."""
    name: str
    memory: dict[str, int]
    pointers: tuple[dict[str, str], ...]
    threads: tuple[tuple[str, ...], ...]
    wanted: dict[tuple[int, str], int]      # (thread, register) -> value


@dataclass
class Event:
    """One access of memory, or a barrier, and what it depends on."""
    thread: int
    kind: str                   # R, W, F
    place: str                  # location; of a barrier, its kind
    value: int = 0
    acquire: bool = False
    release: bool = False
    unreturned: bool = False    # the read of a STADD: DMB ISHLD does not order it
    data: frozenset[int] = frozenset()      # reads (numbers within the thread) that the value comes from
    control: frozenset[int] = frozenset()   # reads that a branch before it depends on
    pair: int = -1              # the read of the same atomic update, within the thread


@dataclass
class Trace:
    """One way through one thread, each load having had some value."""
    events: list[Event] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> Litmus:
    """A test in herd's format, with an `exists` of a conjunction of registers."""
    head, _, rest = re.sub(r"\(\*.*?\*\)", "", text, flags=re.S).partition("{")
    name = head.split()[1]
    initial, _, rest = rest.partition("}")
    code, _, condition = rest.partition("exists")
    memory: dict[str, int] = {}
    rows = [[c.strip() for c in row.split("|")] for row in code.split(";") if row.strip()]
    pointers: list[dict[str, str]] = [{} for _ in rows[0]]
    for item in filter(None, (i.strip() for i in initial.split(";"))):
        left, _, right = (part.strip() for part in item.partition("="))
        thread, colon, register = left.partition(":")
        if colon:
            pointers[int(thread)][register] = right
        else:
            memory[left] = int(right)
    for place in {p for of in pointers for p in of.values()}:
        memory.setdefault(place, 0)
    threads = tuple(tuple(row[n] for row in rows[1:] if row[n]) for n in range(len(rows[0])))
    wanted = {(int(t), "W" + r[1:]): int(v) for t, r, v in re.findall(r"(\d+):([WX]\d+)=(\d+)", condition)}
    return Litmus(name, memory, tuple(pointers), threads, wanted)


def traces(thread: int, test: Litmus, values: dict[str, set[int]]) -> Iterator[Trace]:
    """Every way through the thread in which a load has one of the `values` of its place."""
    code, points = test.threads[thread], test.pointers[thread]
    labels = {line[:-1]: n for n, line in enumerate(code) if line.endswith(":")}

    def go(at: int, trace: Trace, regs: dict[str, tuple[int, frozenset[int]]], control: frozenset[int],
           flags: tuple[bool, frozenset[int]], reserved: int) -> Iterator[Trace]:
        while at < len(code):
            line, at = code[at], at + 1
            if line.endswith(":"):
                continue
            name, *words = re.split(r"[ ,]+", line.replace("[", "").replace("]", ""))
            if name == "DMB":
                trace.events.append(Event(thread, "F", words[0]))
            elif name in ("LDR", "LDAR", "LDXR", "LDAXR"):
                place = points[words[1]]
                for value in sorted(values[place]):
                    branch = Trace([*trace.events])
                    branch.events.append(Event(thread, "R", place, value, acquire="A" in name, control=control))
                    number = len(branch.events) - 1
                    yield from go(at, branch, {**regs, words[0]: (value, frozenset({number}))}, control, flags,
                                  number if "X" in name else reserved)
                return
            elif name in ("STR", "STLR"):
                value, since = regs[words[0]] if words[0] != "WZR" else (0, frozenset())
                trace.events.append(Event(thread, "W", points[words[1]], value, release=name == "STLR", data=since,
                                          control=control))
            elif name in ("STXR", "STLXR"):
                value, since = regs[words[1]]
                trace.events.append(Event(thread, "W", points[words[2]], value, release=name == "STLXR", data=since,
                                          control=control, pair=reserved))
                regs[words[0]] = (0, frozenset())
            elif name in ("STADD", "STADDL"):
                place = points[words[1]]
                added, since = regs[words[0]]
                for value in sorted(values[place]):
                    branch = Trace([*trace.events])
                    number = len(branch.events)
                    branch.events.append(Event(thread, "R", place, value, unreturned=True, control=control))
                    branch.events.append(Event(thread, "W", place, value + added, release=name == "STADDL",
                                               data=since | {number}, control=control, pair=number))
                    yield from go(at, branch, dict(regs), control, flags, reserved)
                return
            elif name == "MOV":
                regs[words[0]] = (int(words[1][1:]), frozenset()) if words[1].startswith("#") else regs[words[1]]
            elif name == "ADD":
                (a, of_a), (b, of_b) = regs[words[1]], regs[words[2]]
                regs[words[0]] = (a + b, of_a | of_b)
            elif name == "CMP":
                (a, of_a), (b, of_b) = regs[words[0]], regs[words[1]]
                flags = (a == b, of_a | of_b)
            elif name in ("CBZ", "CBNZ"):
                value, since = regs[words[0]]
                control |= since
                if (value == 0) == (name == "CBZ"):
                    at = labels[words[1]]
            elif name in ("B.EQ", "B.NE"):
                equal, since = flags
                control |= since
                if equal == (name == "B.EQ"):
                    at = labels[words[0]]
            else:
                raise ValueError(f"{test.name}: unknown instruction: {line}")
        trace.registers = {r: v for r, (v, _) in regs.items()}
        yield trace

    yield from go(0, Trace(), {}, frozenset(), (False, frozenset()), -1)


def possible(test: Litmus) -> dict[str, set[int]]:
    """The values that a load of each place may have: the initial one and all that are stored."""
    values = {place: {value} for place, value in test.memory.items()}
    while True:
        stored = {(e.place, e.value) for n in range(len(test.threads)) for t in traces(n, test, values)
                  for e in t.events if e.kind == "W" and e.value <= LIMIT}
        if all(value in values[place] for place, value in stored):
            return values
        for place, value in stored:
            values[place].add(value)


def allowed(test: Litmus) -> bool:
    """Can the test end as it asks?"""
    values = possible(test)
    choices = []
    for n in range(len(test.threads)):
        wanted = {r: v for (t, r), v in test.wanted.items() if t == n}
        # A register that a way through the thread never sets is 0.
        choices.append([t for t in traces(n, test, values) if all(t.registers.get(r, 0) == v for r, v in wanted.items())])
    return any(_consistent(test, ways) for ways in itertools.product(*choices))


def _consistent(test: Litmus, ways: tuple[Trace, ...]) -> bool:
    """Is there an order of the stores, and a store for each load to read from, that the axioms allow?"""
    events: list[Event] = [Event(-1, "W", place, value) for place, value in test.memory.items()]
    base = []
    for way in ways:
        base.append(len(events))
        events += way.events
    writes: dict[str, list[int]] = {place: [] for place in test.memory}
    for n, e in enumerate(events):
        if e.kind == "W":
            writes[e.place].append(n)
    reads = [n for n, e in enumerate(events) if e.kind == "R"]
    sources = [[w for w in writes[events[r].place] if events[w].value == events[r].value] for r in reads]
    if not all(sources):
        return False
    fixed = _local_order(events, base)
    # The initial store comes first; each thread's own stores to a place are in program order.
    orders = [[(first, *rest) for first, *others in (writes[place],) for rest in itertools.permutations(others)
               if all(not (events[a].thread == events[b].thread and a > b) for i, a in enumerate(rest) for b in rest[i:])]
              for place in writes]
    for order in itertools.product(*orders):
        rank = {w: i for o in order for i, w in enumerate(o)}
        after = {w: o[i + 1:] for o in order for i, w in enumerate(o)}
        for chosen in itertools.product(*sources):
            if _axioms(events, base, fixed, dict(zip(reads, chosen)), rank, after):
                return True
    return False


def _local_order(events: list[Event], base: list[int]) -> list[tuple[int, int]]:
    """lob but for what depends on who reads from whom: lws, data, control, rmw, and barrier-ordered-before."""
    edges: list[tuple[int, int]] = []
    for a, x in enumerate(events):
        if x.thread < 0:
            continue
        for b in range(a + 1, len(events)):
            y = events[b]
            if y.thread != x.thread:
                break
            if x.kind == "F" or y.kind == "F":
                continue
            start = base[x.thread]
            between = {e.place for e in events[a + 1:b] if e.kind == "F"}
            if (y.kind == "W" and x.place == y.place                              # local memory write successor
                    or x.kind == "R" and a - start in y.data                       # data
                    or x.kind == "R" and y.kind == "W" and a - start in y.control   # control
                    or y.pair == a - start and y.kind == "W" and x.kind == "R"     # atomic
                    or "ISH" in between
                    or "ISHLD" in between and x.kind == "R" and not x.unreturned
                    or x.acquire or y.release or x.release and y.acquire):
                edges.append((a, b))
    return edges


def _axioms(events: list[Event], base: list[int], fixed: list[tuple[int, int]], source: dict[int, int],
            rank: dict[int, int], after: dict[int, tuple[int, ...]]) -> bool:
    internal: list[tuple[int, int]] = []
    ordered = list(fixed)
    for a, x in enumerate(events):
        for b in range(a + 1, len(events)):
            if events[b].thread == x.thread >= 0 and events[b].place == x.place and x.kind != "F":
                internal.append((a, b))
    for read, write in source.items():
        internal.append((write, read))
        if events[read].thread != events[write].thread:
            ordered.append((write, read))                                          # rfe
        elif events[write].thread >= 0:
            start = base[events[write].thread]
            ordered += [(start + d, read) for d in events[write].data]             # data; rfi
            if events[write].pair >= 0 and events[read].acquire:
                ordered.append((start + events[write].pair, read))                 # rmw; rfi; acquire
        for later in after[write]:
            internal.append((read, later))                                         # fr
            if events[read].thread != events[later].thread:
                ordered.append((read, later))
    for write, laters in after.items():
        for later in laters:
            internal.append((write, later))                                        # co
            if events[write].thread != events[later].thread:
                ordered.append((write, later))
    for n, e in enumerate(events):
        if e.kind == "W" and e.pair >= 0:                                          # nothing between the two of a pair
            read = base[e.thread] + e.pair
            if rank[n] != rank[source[read]] + 1:
                return False
    return _acyclic(internal, len(events)) and _acyclic(ordered, len(events))


def _acyclic(edges: list[tuple[int, int]], size: int) -> bool:
    out: list[list[int]] = [[] for _ in range(size)]
    into = [0] * size
    for a, b in edges:
        out[a].append(b)
        into[b] += 1
    ready = [n for n in range(size) if not into[n]]
    for n in ready:
        for b in out[n]:
            into[b] -= 1
            if not into[b]:
                ready.append(b)
    return len(ready) == size


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        test = parse(path.read_text())
        print(f"{test.name}: {'can happen' if allowed(test) else 'cannot happen'}")


if __name__ == "__main__":
    main()
