"""Which threads may still have the return address of a retired object's call in a register only: Clearing.

Where a call leaves its return address in a register (AArch64), a search of memory misses a call whose innermost function
is a leaf.  What can be seen of a thread without stopping it are its stack pointer and program counter, while it is blocked.
So a look is a search of all memory, and threads that were blocked from before it until after it: behind a system call, in a
function that keeps its return address in memory (leaf.py).  Such a thread is cleared for an object when that look found no
gate of the object.  An object that no uncleared thread is left for has no call in progress.  Why:

  1. Let C be a call of a retired object, in progress when the first look begins and still when the last one ends.  There is
     no other kind among those that are counted: none begins (its gates are redirected), and the counts say that none ended.
  2. C is on some thread, or on a stack that no thread is on.  (Signal handlers: the interrupted registers are in the
     signal's frame, in memory.  The gate's own instructions: a thread there is not blocked, or is in such a handler; in the
     functions that leave gates it makes the look void, surplus.py.)
  3. A look during which C's thread is blocked as above finds C: the return address of the innermost function is in memory,
     those of the others have to be, since they called another one, and nobody moves them in that time.
  4. So C's thread is not cleared by any look, as long as C stays on it.  Other threads need not be cleared at that
     same time: what a thread does later cannot put it into C.
  5. A thread that began after the first look is not in C, and one that ended is not either.
  6. A program that can switch stacks (makecontext) may move C from thread to thread, from one not yet looked at to one
     cleared before.  There, all threads must be cleared in one look: then nothing moved at all.

What this leans on: who calls a function has its own return address in memory, not in one of the registers that the callee
has to preserve.  Compilers and C libraries do it like that; the same holds for x86-64 and hand-written code that pops its
return address.  A process that shares the memory without being a thread (clone with CLONE_VM alone) is not looked at.  A
child of vfork is none of these, because its parent is blocked in vfork, which has its return address in the register.

A thread that always runs, never waits for as long as a look takes, or waits where it is not known where its return address is
(a system call in a leaf function or in a version itself, a C library without unwind rules), is never cleared.  The object is kept: a
leak, and status says so.  A look at nothing but such a thread's own stack would be short enough, and wrong where a library that nobody
knows as one that switches stacks has the call on another stack: not in a register then, but not on this stack either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from psu_bin.attach.stacks import Standing


def blocked(before: Mapping[int, Standing], after: Mapping[int, Standing], keeps: Callable[[int], bool]) -> frozenset[int]:
    """The threads that were blocked in one and the same system call all the time between the two readings, and have all their
    return addresses in memory there.  `keeps`: whether that holds behind the system call in front of an address."""
    return frozenset(tid for tid, s in before.items()
                     if s == after.get(tid) and s.pc is not None and s.number >= 0 and s.switches is not None and keeps(s.pc))


class Clearing:
    """What the looks at one process showed, so far.

    together: the program can switch stacks, so that one look has to clear all threads."""

    def __init__(self, *, together: bool) -> None:
        self.together = together
        self._surplus: dict[int, tuple[int, int]] = {}
        self._waiting: dict[int, frozenset[int]] = {}

    def begin(self, surplus: Mapping[int, tuple[int, int]], threads: frozenset[int]) -> None:
        """Go on with the objects in `surplus`, retired ones and their counts, given all threads of now.

        What was found out about an object holds as long as its counts do: these are the same calls."""
        for i, counts in surplus.items():
            if self._surplus.get(i) != counts:
                self._waiting[i] = threads
        self._surplus = dict(surplus)
        self._waiting = {i: self._waiting[i] for i in surplus}

    def look(self, objects: Iterable[int], cleared: frozenset[int], threads: frozenset[int]) -> None:
        """`cleared` were blocked while nothing was found of `objects`; `threads` are all that there are afterwards."""
        for i in objects:
            self._waiting[i] = (threads if self.together else self._waiting[i] & threads) - cleared

    def waiting(self, index: int) -> frozenset[int]:
        """The threads that may be in a call of this object, as far as looks can tell."""
        return self._waiting[index]
