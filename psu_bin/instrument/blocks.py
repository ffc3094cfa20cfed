"""Basic blocks and the ways between them, for the whole module at once.

A unit is what one compiler run saw as a function: a function with its split-off parts, or, where symbols are missing,
what one unwind entry covers or a direct call enters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch.code import NONE, Code, Effects, Kind
from psu_bin.instrument.functions import Functions, Role
from psu_bin.instrument.tables import Tables
from psu_bin.instrument.unwind import Frames

_LONGEST = 64         # instructions of a block: summaries are made instruction by instruction, for all blocks at once


@dataclass(frozen=True)
class Blocks:
    """Blocks ascending by address.  A block ends before the next, and after whatever does not simply go on."""
    first: np.ndarray     # int64: index of its first instruction
    last: np.ndarray      # int64: index of its last
    kind: np.ndarray      # uint8, Kind of the last
    unit: np.ndarray      # int64
    entry: np.ndarray     # int64, of each unit: its first block
    next: np.ndarray      # int64: the block that follows when the last instruction goes on or returns, or NONE
    target: np.ndarray    # int64: the block that a direct call, jump or branch leads to, or NONE
    table: np.ndarray     # int64 (n, 2): (block with an indirect jump, block that it may lead to)
    by_table: np.ndarray  # bool: ends with an indirect jump that reads a jump table
    puzzling: np.ndarray  # bool, of each unit: jumps by a table that was not found
    use: np.ndarray       # uint64: registers read before they are replaced
    write: np.ndarray     # uint64: registers that may be changed
    kill: np.ndarray      # uint64: registers that are replaced
    untouched: np.ndarray  # uint64: registers read before any part of them is changed


def build(functions: Functions, frames: Frames, code: Code, effects: Effects, tables: Tables,
          named: np.ndarray) -> Blocks:
    """named: every address in code that anything may refer to."""
    n = len(code.address)
    end = code.address + code.length
    flow = np.flatnonzero(code.kind > Kind.MARK)
    leader = np.zeros(n + 1, dtype=bool)
    leader[0] = True
    leader[1:n] = code.address[1:] != end[:-1]
    leader[flow + 1] = True
    called = code.target[code.kind == Kind.CALL]
    for places in (functions.entry, frames.begin, named, code.target[flow], tables.target):
        at = code.at(places)
        leader[at[at >= 0]] = True
    start = np.flatnonzero(leader[:n])
    long = np.diff(np.append(start, n))
    extra = [start[long > k] + k for k in range(_LONGEST, int(long.max(initial=0)), _LONGEST)]
    first = np.unique(np.concatenate([start, *extra]))
    last = np.append(first[1:], n) - 1
    kind = code.kind[last]
    unit, entry = _units(functions, frames, code, first, called)

    number = np.cumsum(np.isin(np.arange(n), first, assume_unique=True)) - 1 if n else np.zeros(0, np.int64)
    follows = np.arange(1, len(first) + 1)
    follows[-1:] = NONE
    close = np.append(code.address[first[1:]] == end[last[:-1]], False)
    returns = (kind == Kind.CALL) | (kind == Kind.CALL_INDIRECT)
    goes_on = close & ((kind <= Kind.MARK) | (kind == Kind.BRANCH)
                       | returns & np.append(unit[1:] == unit[:-1], False))
    count = np.concatenate([[0], np.cumsum(code.kind == Kind.NOP)])
    idle = count[last + 1] - count[first] == last + 1 - first
    goes_on &= ~_padding(code, first, idle, goes_on, returns, unit, entry, named)
    at = code.at(np.where(code.kind[last] > Kind.MARK, code.target[last], NONE))
    direct = (kind == Kind.CALL) | (kind == Kind.JUMP) | (kind == Kind.BRANCH)
    target = np.where(direct & (at >= 0), number[at.clip(0)], NONE)

    jumps = np.flatnonzero(kind == Kind.JUMP_INDIRECT)
    source = unit[number[code.at(code.address[tables.source])]] if len(tables.source) else tables.source
    table = _ways(jumps, unit[jumps], source, number[code.at(tables.target)] if len(source) else source)
    # Beyond its end a table leads anywhere; a function's own leads into it, or into a part of it that has no name.
    named_unit = functions.index(code.address[first[entry]]) >= 0
    table = table[(unit[table[:, 0]] == unit[table[:, 1]]) | ~named_unit[unit[table[:, 1]]]]
    near = np.cumsum(tables.scaled)
    by_table = np.zeros(len(first), dtype=bool)
    by_table[jumps] = near[last[jumps]] > near[(last[jumps] - 10).clip(0)]
    puzzling = np.zeros(len(entry), dtype=bool)
    puzzling[unit[np.setdiff1d(np.flatnonzero(by_table), table[:, 0])]] = True
    return Blocks(first, last, kind, unit, entry, np.where(goes_on, follows, NONE), target, table, by_table, puzzling,
                  *_summaries(first, last, effects))


def _padding(code: Code, first: np.ndarray, idle: np.ndarray, goes_on: np.ndarray, returns: np.ndarray,
             unit: np.ndarray, entry: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Which blocks are padding that nothing leads to: no-ops behind a jump, a return or the last call of a unit.

    idle: nothing but no-ops; goes_on: whether each block goes on in the next; returns: ends with a call."""
    kept = np.zeros(len(first), dtype=bool)
    kept[entry] = True
    kept |= np.isin(code.address[first], named)
    out = np.zeros(len(first), dtype=bool)
    last_of_unit = np.append(unit[1:] != unit[:-1], True)
    while True:
        before = np.append(False, (goes_on & ~out)[:-1])
        entered = before & ~(np.append(False, returns[:-1]) & last_of_unit)
        new = idle & ~kept & ~entered & ~out
        if not new.any():
            return out
        out |= new


def _units(functions: Functions, frames: Frames, code: Code, first: np.ndarray,
           called: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unit of each block, and the entry block of each unit."""
    address = code.address[first]
    loose = called[(functions.holding(called) < 0) & (frames.covering(called) < 0)]
    own = functions.entry[functions.role != Role.INSIDE]
    starts = np.unique(np.concatenate([own, frames.begin, loose, code.chains[:1, 0]]))
    unit = np.searchsorted(starts, address, side="right") - 1
    # A split-off part belongs to its function's unit.
    part = functions.index(starts)
    owner = functions.owner[part.clip(0)]
    home = np.where((part >= 0) & (owner != part), np.searchsorted(starts, functions.entry[owner]), np.arange(len(starts)))
    unit = home[unit.clip(0, max(len(starts) - 1, 0))]
    entry = np.searchsorted(address, starts).clip(0, max(len(first) - 1, 0))
    return unit, entry


def _ways(jumps: np.ndarray, unit_of_jump: np.ndarray, unit_of_entry: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(jump, target) for every jump and table entry of the same unit, without repetition."""
    entries = np.unique(np.stack([unit_of_entry, target], axis=1), axis=0)
    low = np.searchsorted(entries[:, 0], unit_of_jump)
    count = np.searchsorted(entries[:, 0], unit_of_jump, side="right") - low
    return np.stack([np.repeat(jumps, count), entries[spread(low, count), 1]], axis=1)


def spread(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (count[0] numbers), start[1], ..., as one array."""
    total = int(count.sum())
    jump = np.repeat(start - np.concatenate([[0], np.cumsum(count)[:-1]]) if len(count) else start, count)
    return np.arange(total) + jump


def _summaries(first: np.ndarray, last: np.ndarray, effects: Effects) -> tuple[np.ndarray, ...]:
    """What each block reads before it replaces it, may change, replaces, and reads before it changes it."""
    use, write, kill, untouched = (np.zeros(len(first), dtype=np.uint64) for _ in range(4))
    active = np.arange(len(first))
    for k in range(_LONGEST):
        active = active[first[active] + k <= last[active]]
        if not len(active):
            break
        shape = effects.shape[first[active] + k]
        use[active] |= effects.reads[shape] & ~kill[active]
        untouched[active] |= effects.reads[shape] & ~write[active]
        write[active] |= effects.writes[shape]
        kill[active] |= effects.kills[shape]
    return use, write, kill, untouched
