"""One commit: which gates serve which functions, and the record that makes the agent switch them all at one store.

Everything is decided here, in psu-bin; the agent checks the record and runs it (shim/commit.c has the argument for the
order of its steps).  Gates are given to a (function, counter index, kind) for ever (I3), so a function that is patched
again and again alternates between two.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from psu_bin.attach import gates, meta, shim
from psu_bin.attach.process import PAGE, Process
from psu_bin.attach.tracing import AgentSession
from psu_bin.errors import PsuError

SLOT = 3                   # of shim.GATE
LOOKED_AT = 256            # gates at once


@dataclass(frozen=True)
class NewObject:
    """An injected object that this commit makes current."""
    index: int                             # counter index
    patch: int
    eh_frame: int                          # run-time address, 0: none
    regions: tuple[tuple[int, int], ...]   # (address, size), at most shim.REGIONS
    symfile: tuple[int, int]               # (address, size) of the file for debuggers, in a region


@dataclass(frozen=True)
class Switch:
    """One function's way from its present version to another."""
    function: meta.FunctionNotes
    slot: int
    original: int                          # run-time address of the original code; 0: there is none (new function)
    body: int                              # the new version's entry (`original`: through a gate); 0: the original, without one
    kind: int
    index: int                             # counter index of the new version's object
    preserve: int = 0                      # registers that a full gate restores; and bits of gates.py
    looks: bool = False                    # calls from inside the new version's object are not counted (inner.looks)


def choose_indices(runtime: shim.Runtime, process: Process, functions: list[list[meta.FunctionNotes]],
                   promised: Collection[int] = ()) -> list[int]:
    """A free counter index for each new object; `functions`: what each replaces; promised: indices that are not free either.

    Prefers an index for which the functions have gates already.  Raises PsuError when all are taken."""
    taken = {o.index for o in runtime.read_objects(process)} | set(promised)
    out: list[int] = []
    for replaced in functions:
        score: dict[int, int] = {}
        for f in replaced:
            for _, _, index in f.gates:
                if index not in taken:
                    score[index] = score.get(index, 0) + 1
        if score:
            best = max(score, key=lambda i: (score[i], -i))
        else:
            best = next((i for i in range(runtime.indices) if i not in taken), -1)
            if best < 0:
                raise PsuError(process.where, f"holds {runtime.indices} patch objects: no more fit",
                               "revert some, or join them into one patch")
        taken.add(best)
        out.append(best)
    return out


class _Gates:
    """Gives gates to functions, and notes that.

    A process may be the child of one that forked while its agent was about to bind gates (shim/commit.c, step 1): then there are
    gates that belong to a function for ever (I3), of which the notes know nothing.  They are left alone."""

    def __init__(self, process: Process, runtime: shim.Runtime, notes: meta.Notes) -> None:
        self._process, self._runtime, self._notes = process, runtime, notes
        self._bound: list[tuple[int, list[bool]]] = [(0, []) for _ in runtime.pools]     # first number, which are bound

    def of(self, f: meta.FunctionNotes, kind: int, index: int) -> int:
        """The gate of function `f` for (kind, index): its own from earlier, or a fresh one.  Raises PsuError when none is left."""
        for k, gate, i in f.gates:
            if (k, i) == (kind, index):
                return gate
        while True:
            gate = self._notes.next_gate[kind]
            if gate >= self._runtime.pools[kind].count:
                raise PsuError(self._process.where, f"has used all {self._runtime.pools[kind].count} gates of kind {kind}",
                               "restart the program with the new version built in")
            self._notes.next_gate[kind] += 1
            if not self._is_bound(kind, gate):
                f.gates.append([kind, gate, index])
                return gate

    def _is_bound(self, kind: int, gate: int) -> bool:
        first, bound = self._bound[kind]
        if not first <= gate < first + len(bound):
            pool = self._runtime.pools[kind]
            count = min(LOOKED_AT, pool.count - gate)
            bound = [False] * count
            for delta in {0, self._runtime.near_delta} if kind != shim.FULL else {0}:
                try:
                    raw = self._process.read((pool.data + delta & shim.WORD) + gate * shim.GATE.size, count * shim.GATE.size)
                except PsuError:
                    continue        # no such copies
                bound = [b or bool(row[SLOT]) for b, row in zip(bound, shim.GATE.iter_unpack(raw))]
            first, self._bound[kind] = gate, (gate, bound)
        return bound[gate - first]


@dataclass(frozen=True)
class Record:
    """A commit that is ready: all memory that it needs in the target is there."""
    data: bytes
    count: int
    at: int                                # where in the target the record goes; 0: into the fixed buffer


def prepare(session: AgentSession, notes: meta.Notes, objects: list[NewObject], switches: list[Switch],
            scratch_for) -> Record:  # noqa: ANN001
    """The record of a commit, and the notes after it written into the target.

    `notes`: complete but for the gates, which are filled in here; so are what the functions of `switches` say is current.
    scratch_for(size) -> address of staged memory, for a record that does not fit the fixed buffer, and for the notes.
    Raises PsuError."""
    runtime, process = session.runtime, session.process
    fresh = _Gates(process, runtime, notes)
    body = b""
    retiring: set[int] = set()
    for s in switches:
        old = s.function.current
        old_kind, old_gate = (old[0], old[1]) if old else (shim.NO_GATE, shim.NO_GATE)
        if s.body:
            gate = fresh.of(s.function, s.kind, s.index)
            body += shim.SWITCH.pack(s.slot, 0, s.body, s.kind, gate, s.index, s.preserve & gates.REGISTERS, old_kind,
                                     old_gate, _otherwise(s), s.looks)
            s.function.current, s.function.body = [s.kind, gate, s.index], s.body
        elif old:
            body += shim.SWITCH.pack(s.slot, s.original, 0, 0, shim.NO_GATE, 0, 0, old_kind, old_gate, 0, 0)
            s.function.current, s.function.body = [], 0
        else:
            continue
        if old:
            retiring.add(old[2])
    count = len(body) // shim.SWITCH.size
    still = {f.current[2] for f in notes.functions if f.current}
    alive = {o.index for o in runtime.read_objects(process) if o.state == shim.CURRENT}
    # Also new ones that nothing leads to: of data only, or made again by a revert for the sake of another of their patch.
    retires = sorted((retiring & alive | {o.index for o in objects}) - still)
    head = b"".join(shim.NEW_OBJECT.pack(o.index, o.patch, o.eh_frame, *_flat(o.regions), *o.symfile) for o in objects)
    tail = b"".join(i.to_bytes(4, "little") for i in retires)
    blob = meta.encode(notes)
    meta_size = -(-len(blob) // PAGE) * PAGE
    meta_at = scratch_for(meta_size, True)
    process.write(meta_at, blob)
    record = shim.COMMIT.pack(len(objects), count, len(retires), 0, meta_at, meta_size) + head + body + tail
    at = 0
    if len(record) + shim.COMMAND.size > shim.BUFFER_SIZE:
        at = scratch_for(len(record) + shim.COMMAND.size, False)
    return Record(record, count, at)


def commit(session: AgentSession, record: Record) -> float:
    """Switch everything at one instant.  Returns the seconds that it took in the target.

    Raises PsuError; then nothing was switched."""
    began = time.monotonic()
    session.command(shim.OP_COMMIT, record.data, record.count, record_at=record.at, patience=60)
    return session.runtime.command_ns / 1e9 or time.monotonic() - began


def _otherwise(s: Switch) -> int:
    """What a call through the gate does for which there is no memory: as psu_switch.otherwise."""
    if s.preserve & gates.MOVABLE:
        return shim.ON_STACK
    return s.original if s.preserve & gates.ORIGINAL_WILL_DO else 0


def _flat(regions: tuple[tuple[int, int], ...]) -> list[int]:
    out = [n for r in regions for n in r]
    return out + [0] * (2 * shim.REGIONS - len(out))
