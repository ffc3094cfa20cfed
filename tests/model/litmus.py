"""The places where psu-bin relies on the order of memory accesses, as litmus tests for AArch64.

update.pml explores the whole protocol with an idea of its own of what Arm reorders.  Here the idea is Arm's, and only
the core is asked about, instruction by instruction as the shim has it: each of TESTS says what must not happen, and names
mistakes with which it could.

What stands for what:
  count, load, leave     arch/aarch64/gates.S: STADD and STADDL, or LDXR/STXR and LDXR/STLXR; the load of `code` is plain
  memory                 a version's code and data: 1 while it is mapped; a version "runs" by loading it
  MEMBARRIER             membarrier(2): between call and return every running thread executes a barrier.  So here: the
                         agent asks and waits for the answer, a thread answers at one point of its program, with a
                         DMB between.  Every point is tried, each as a test of its own
  sp, next, frame        a side entry (gates.S, SIDE; entries.c): 0 in the first is free
  munmap, CODE           a store after the comparison of the sums; code words of gates: 1, 2, ...
  fence                  psu_route(): __atomic_thread_fence(__ATOMIC_ACQUIRE) is DMB ISHLD

Not in it: instruction fetch (the caches are cleaned and membarrier SYNC_CORE is called, shim/turn.c), blocks that come
and go, signal handlers, the slow paths' C code: these are update.pml's, or shim/test's.

    python litmus.py FOLDER     writes all of them, for herd7
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMBARRIER = "MEMBARRIER"       # in the agent: asks all threads that have one
HERE = "HERE"                   # in a thread: it answers at one of the points from the first HERE to the last


@dataclass(frozen=True)
class Protocol:
    """One question: can these threads end so?  Thread 0 is the agent.  Mistakes: name -> (thread, old lines, new)."""
    name: str
    why: str
    memory: dict[str, int]
    pointers: tuple[str, ...]               # per thread, "X1=enter X2=leave"
    threads: tuple[str, ...]                # lines; words with ";" between
    never: str                              # "1:X2=1 1:X3=0"
    mistakes: dict[str, tuple[tuple[int, str, str], ...]]


NO_MEMBARRIER = ((0, MEMBARRIER + "; ", ""),)

_AGENT = ("MOV W9,#2; STLR W9,[X0]; MEMBARRIER; LDAR W1,[X1]; DMB ISH; LDAR W2,[X2]; CMP W1,W2; B.NE L0; "
          "STR WZR,[X3]; L0:")
# The status of the store is asked for: 0, done.  One that fails is tried again, which changes no order.
_PAIR = "LDXR W10,[{0}]; ADD W10,W10,W9; {1} {2},W10,[{0}]"

TESTS = (
    Protocol(
        "retire", "a version that a thread runs is not unmapped: count before load (I4), and the leave is a release",
        {"code": 1, "memory": 1, "enter": 0, "leave": 0}, ("X0=code X1=leave X2=enter X3=memory",
                                                           "X0=code X1=leave X2=enter X3=memory"),
        (_AGENT, "MOV W9,#1; HERE; STADD W9,[X2]; HERE; LDR W2,[X0]; HERE; LDR W3,[X3]; HERE; STADDL W9,[X1]; HERE"),
        "1:X2=1 1:X3=0",
        {"no barrier": NO_MEMBARRIER,
         "the count after the load": ((1, "STADD W9,[X2]; HERE; LDR W2,[X0]", "LDR W2,[X0]; HERE; STADD W9,[X2]"),),
         "a plain leave": ((1, "STADDL", "STADD"),)}),
    Protocol(
        "retire-pair", "the same with exclusive pairs, for processors before ARMv8.1",
        {"code": 1, "memory": 1, "enter": 0, "leave": 0}, ("X0=code X1=leave X2=enter X3=memory",
                                                           "X0=code X1=leave X2=enter X3=memory"),
        (_AGENT, f"MOV W9,#1; HERE; {_PAIR.format('X2', 'STXR', 'W7')}; HERE; LDR W2,[X0]; HERE; LDR W3,[X3]; HERE; "
                 f"{_PAIR.format('X1', 'STLXR', 'W8')}; HERE"),
        "1:X2=1 1:X3=0 1:X7=0 1:X8=0",
        {"no barrier": NO_MEMBARRIER, "a plain leave": ((1, "STLXR", "STXR"),)}),
    Protocol(
        "sums", "another thread's enter and this one's leave do not make up for a call in progress: late threads pass "
                "a redirected gate while the agent adds up",
        {"code": 1, "memory": 1, "enter1": 0, "leave1": 0, "enter2": 0, "leave2": 0},
        ("X0=code X1=leave1 X2=enter1 X3=memory X4=leave2 X5=enter2", "X1=leave1 X2=enter1", "X0=code X2=enter2 X3=memory"),
        ("MOV W9,#2; STLR W9,[X0]; MEMBARRIER; LDAR W1,[X1]; LDAR W4,[X4]; DMB ISH; LDAR W2,[X2]; LDAR W5,[X5]; "
         "ADD W1,W1,W4; ADD W2,W2,W5; CMP W1,W2; B.NE L0; STR WZR,[X3]; L0:",
         "MOV W9,#1; STADD W9,[X2]; STADDL W9,[X1]",
         "MOV W9,#1; HERE; STADD W9,[X2]; HERE; LDR W2,[X0]; HERE; LDR W3,[X3]; HERE"),
        "2:X2=1 2:X3=0",
        {"a plain leave": ((1, "STADDL", "STADD"),),
         "enters first": ((0, "LDAR W1,[X1]; LDAR W4,[X4]; DMB ISH; LDAR W2,[X2]; LDAR W5,[X5]",
                           "LDAR W2,[X2]; LDAR W5,[X5]; DMB ISH; LDAR W1,[X1]; LDAR W4,[X4]"),),
         "sums without order": ((0, "LDAR W1,[X1]; LDAR W4,[X4]; DMB ISH; LDAR W2,[X2]; LDAR W5,[X5]",
                                 "LDR W1,[X1]; LDR W4,[X4]; LDR W2,[X2]; LDR W5,[X5]"),),
         "no barrier": NO_MEMBARRIER}),
    Protocol(
        "publish", "who finds the new code in a gate finds it complete, though gates load plainly (commit.c, 4 and 6); "
                   "so does who finds a gate in a slot for the first time (1)",
        {"code": 0, "text": 0}, ("X0=code X1=text", "X0=code X1=text"),
        ("MOV W9,#1; STR W9,[X1]; MEMBARRIER; STLR W9,[X0]", "HERE; LDR W2,[X0]; HERE; LDR W3,[X1]; HERE"),
        "1:X2=1 1:X3=0",
        {"no barrier": NO_MEMBARRIER, "published before the barrier": (
            (0, "STR W9,[X1]; MEMBARRIER; STLR W9,[X0]", "STR W9,[X1]; STLR W9,[X0]; MEMBARRIER"),)}),
    Protocol(
        "arm", "who finds a gate pending finds the words that say what it waits for (commit.c, 2)",
        {"code": 0, "words": 0}, ("X0=code X1=words", "X0=code X1=words"),
        ("MOV W9,#1; STR W9,[X1]; STLR W9,[X0]", "LDR W2,[X0]; DMB ISHLD; LDR W3,[X1]"),
        "1:X2=1 1:X3=0",
        {"a plain store": ((0, "STLR", "STR"),), "no fence": ((1, "DMB ISHLD; ", ""),),
         "the code first": ((0, "STR W9,[X1]; STLR W9,[X0]", "STLR W9,[X0]; STR W9,[X1]"),)}),
    Protocol(
        "together", "who ran the new version of one function sees the commit at the next one, whose gate is still "
                    "pending (commit.c, 5 and 6)",
        {"seq": 0, "code1": 0, "code2": 0}, ("X0=code1 X1=seq X2=code2", "X0=code1 X1=seq X2=code2"),
        ("MOV W9,#1; STLR W9,[X1]; STLR W9,[X0]; STLR W9,[X2]",
         "LDR W2,[X0]; LDR W3,[X2]; CBNZ W3,L1; DMB ISHLD; LDAR W4,[X1]; L1:"),
        "1:X2=1 1:X3=0 1:X4=0",
        {"no fence": ((1, "DMB ISHLD; ", ""),),
         "settled before the commit": ((0, "STLR W9,[X1]; STLR W9,[X0]", "STLR W9,[X0]; STLR W9,[X1]"),)}),
    Protocol(
        "inside", "calls inside an object go through the slot again before a commit that concerns them (commit.c, 1b and 4)",
        {"seq": 0, "code": 0, "word": 0}, ("X0=code X1=seq X2=word", "X0=code X2=word"),
        ("MOV W9,#1; STLR W9,[X2]; MEMBARRIER; STLR W9,[X1]; STLR W9,[X0]",
         "HERE; LDR W2,[X0]; HERE; LDR W3,[X2]; HERE"),
        "1:X2=1 1:X3=0",
        {"no barrier": NO_MEMBARRIER,
         "turned behind the barrier": ((0, "STLR W9,[X2]; MEMBARRIER", "MEMBARRIER; STLR W9,[X2]"),)}),
    Protocol(
        "entry-owner", "a side entry that two lists lead to has one owner (gates.S, SIDE)",
        {"sp": 0}, ("X0=sp", "X0=sp"),
        ("MOV W9,#1; LDAXR W2,[X0]; STXR W7,W9,[X0]", "MOV W9,#2; LDAXR W3,[X0]; STXR W8,W9,[X0]"),
        "0:X2=0 1:X3=0 0:X7=0 1:X8=0",
        {"a look and a store": ((0, "LDAXR W2,[X0]; STXR W7,W9,[X0]", "MOV W7,#0; LDR W2,[X0]; STR W9,[X0]"),)}),
    Protocol(
        "entry-next", "who takes a side entry that another thread gave back finds where it leads (psu_side_release)",
        {"sp": 1, "next": 0}, ("X0=sp X1=next", "X0=sp X1=next"),
        ("MOV W9,#1; STR W9,[X1]; STLR WZR,[X0]",
         "MOV W9,#2; LDAXR W2,[X0]; CBNZ W2,L1; STXR W7,W9,[X0]; LDR W3,[X1]; L1:"),
        "1:X2=0 1:X7=0 1:X3=0",
        {"a plain store": ((0, "STLR", "STR"),), "a plain load": ((1, "LDAXR", "LDXR"),)}),
    Protocol(
        "entry-frame", "what is in a side entry has been read when the next owner writes into it",
        {"sp": 1, "frame": 1}, ("X0=sp X1=frame", "X0=sp X1=frame"),
        ("MOV W9,#2; LDAXR W2,[X0]; CBNZ W2,L1; STXR W7,W9,[X0]; STR WZR,[X1]; L1:", "LDR W3,[X1]; STLR WZR,[X0]"),
        "0:X2=0 0:X7=0 1:X3=0",
        {"a plain store": ((1, "STLR", "STR"),)}),
)


def variants(test: Protocol, mistake: str | None = None) -> Iterator[tuple[str, str]]:
    """The test, or the test with a mistake, as (name, text in herd's format), one for each point of the barrier."""
    threads = list(test.threads)
    for thread, old, new in test.mistakes[mistake] if mistake else ():
        assert threads[thread].count(old) >= 1, f"{test.name}: {mistake}: {old}"
        threads[thread] = threads[thread].replace(old, new)
    barrier = MEMBARRIER in threads[0]
    points = max(t.count(HERE) for t in threads) if barrier else 1
    for point in range(points):
        name = "-".join([test.name, *(mistake or "").split(), *([str(point)] if points > 1 else [])])
        yield name, _text(name, test, threads, barrier, point)


def _text(name: str, test: Protocol, threads: list[str], barrier: bool, point: int) -> str:
    initial = [f"{place}={value};" for place, value in test.memory.items()]
    never = test.never.split()
    columns = []
    for n, thread in enumerate(threads):
        pointers = test.pointers[n].split()
        lines: list[str] = []
        seen = 0
        for line in thread.split("; "):
            if line == MEMBARRIER:
                lines += ["MOV W20,#1", "DMB ISH", "STR W20,[X20]", "LDR W21,[X21]", "DMB ISH"]
                never.append(f"{n}:X21=1")
            elif line == HERE:
                if barrier and seen == point:
                    lines += ["LDR W20,[X20]", "DMB ISH", "STR W20,[X21]"]
                    never.append(f"{n}:X20=1")
                seen += 1
            else:
                lines.append(line)
        if barrier and (n == 0 or seen):
            # X20 and X21 are the addresses until W20 and W21 are loaded: other registers.
            lines = [line.replace("[X20]", "[X22]").replace("[X21]", "[X23]") for line in lines]
            pointers += ["X22=asked", "X23=answered"]
        initial.append(" ".join(f"{n}:{p};" for p in pointers))
        columns.append(_addresses_apart(lines, initial, n))
    rows = max(map(len, columns))
    table = [[f"P{n}", *c, *[""] * (rows - len(c))] for n, c in enumerate(columns)]
    width = [max(map(len, column)) for column in table]
    body = "\n".join(" " + " | ".join(f"{column[row]:{w}}" for column, w in zip(table, width)) + " ;"
                     for row in range(rows + 1))
    return f"AArch64 {name}\n(* {test.why} *)\n{{\n" + "\n".join(initial) + f"\n}}\n{body}\nexists (" + " /\\ ".join(
        never) + ")\n"


def _addresses_apart(lines: list[str], initial: list[str], n: int) -> list[str]:
    """Addresses in X12 and up: W2 and X2 are one register."""
    at = {f"X{i}": f"X{12 + i}" for i in range(6)}
    initial[-1] = " ".join(f"{n}:{at.get(r, r)}={p}" for r, p in (
        item.removeprefix(f"{n}:").split("=") for item in initial[-1].split()))
    out = []
    for line in lines:
        head, bracket, tail = line.partition("[")
        register = tail.rstrip("]")
        out.append(f"{head}[{at.get(register, register)}]" if bracket else line)
    return out


def main() -> None:
    folder = Path(sys.argv[1])
    for test in TESTS:
        for mistake in (None, *test.mistakes):
            for name, text in variants(test, mistake):
                (folder / f"{name}.litmus").write_text(text)


if __name__ == "__main__":
    main()
