"""The volatile registers that callers rely on (descriptor.Function.preserve).

With -fipa-ra (on at -O2) GCC keeps values in registers that the psABI lets a callee change, where it sees that the
callee does not.  A new version of the callee may; so a gate has to keep them.  What is looked for, in three steps:

    clobbered  what a function changes, with all it calls.  A caller can rely on the rest only.
    defined    registers that may hold a value that means something, before each call.
    live       registers whose value may be read after each call before it is replaced.

A caller relies on a register that is defined before the call, live after it, and not clobbered.  What a function's
callers rely on, the functions that it calls must keep, too.

Each step errs to the safe side: too little clobbered, too much defined and live.  Every unknown function reads all
argument registers, and every function may return in all result registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Kind, RegisterFacts
from psu_bin.instrument import alignment
from psu_bin.instrument import blocks as block_list
from psu_bin.instrument.blocks import Blocks
from psu_bin.instrument.dataflow import Graph, solve
from psu_bin.instrument.functions import Functions, Role
from psu_bin.instrument.references import References
from psu_bin.instrument.tables import Tables
from psu_bin.instrument.unwind import Frames

_ALL = np.uint64((1 << 64) - 1)


@dataclass(frozen=True)
class Reliance:
    """One element a function."""
    preserve: np.ndarray         # uint64: as descriptor.Function.preserve
    odd: np.ndarray              # bool: called in a way that compilers do not use
    misaligned: np.ndarray       # bool: a caller may not align the stack for it
    unkeepable: frozenset[int]   # functions whose callers rely on registers that no gate can preserve


@dataclass(frozen=True)
class _Calls:
    """The blocks that end with a call, or with a jump to another unit, and where they lead."""
    callee: np.ndarray           # int64, of each block: the unit called or jumped to, or NONE
    unknown: np.ndarray          # bool: calls or jumps to what is not known
    returns: np.ndarray          # bool: a call, not a jump


def find(arch: Arch, functions: Functions, frames: Frames, code: Code, references: References,
         tables: Tables, named: np.ndarray) -> Reliance:
    """What callers rely on, for every function."""
    facts: RegisterFacts = arch.scan.REGISTERS
    count = len(functions.entry)
    if not len(code.address):
        return Reliance(np.zeros(count, np.uint64), np.zeros(count, bool), np.zeros(count, bool), frozenset())
    effects = arch.scan.effects(code)
    b = block_list.build(functions, frames, code, effects, tables, named)
    calls = _calls(functions, code, b)
    taken = np.array(sorted(references.taken | references.uncertain.keys() | references.forbidden.keys()), dtype=np.int64)
    clobbered = _clobbered(b, calls, facts)
    changed = np.where(calls.returns, np.where(calls.unknown, np.uint64(facts.volatile),
                                               clobbered[calls.callee.clip(0)]), np.uint64(0))
    defined = _defined(functions, code, taken, b, calls, changed, facts)
    live = _live(b, calls, changed, facts)

    site = np.flatnonzero(calls.returns & (calls.callee != NONE) & (b.next != NONE))
    kept = np.uint64(facts.volatile) & ~changed[site]
    # Compilers leave what stubs change to linkers, which use it for the like; only code without unwind table may not.
    compiled = frames.covering(code.address[b.first[b.entry]]) >= 0
    stub = np.where(compiled, np.uint64(facts.stub), np.uint64(0))
    relied = live[b.next[site]] & defined[site] & kept & ~stub[b.unit[site]]
    need = np.zeros(len(b.entry), dtype=np.uint64)
    np.bitwise_or.at(need, calls.callee[site], relied)
    source, target = _between_units(b, calls)
    solve(need, Graph(len(need), source, target), lambda e: need[source[e]])

    home = b.unit[np.searchsorted(code.address[b.first], functions.entry).clip(0, len(b.first) - 1)]
    needed = need[home]
    hidden = (_hidden_arguments(b, changed, facts) & ~stub)[home]
    odd = (hidden != 0) | _returns_oddly(b, calls, changed, facts)[home] | ((needed & np.uint64(facts.odd)) != 0)
    beyond = needed & ~np.uint64(facts.representable | facts.odd) | hidden & np.uint64(facts.stub)
    crooked = alignment.misaligned(arch, frames, code, effects, b, calls.callee, _open_units(functions, code, b, taken))
    masks, which = np.unique(needed & np.uint64(facts.representable), return_inverse=True)
    preserve = np.array([facts.preserve(int(mask)) for mask in masks], dtype=np.uint64)[which]
    return Reliance(preserve, odd, crooked[home], frozenset(np.flatnonzero(beyond).tolist()))


def _calls(functions: Functions, code: Code, b: Blocks) -> _Calls:
    """Sort out what every block calls.  A linkage table entry (PLT) is a unit that jumps to what is not known."""
    returns = (b.kind == Kind.CALL) | (b.kind == Kind.CALL_INDIRECT)
    direct, entered = b.target != NONE, b.target.clip(0)
    thunk = functions.entry[functions.role == Role.THUNK]
    to_thunk = direct & np.isin(code.address[b.first[entered]], thunk)
    leaves = direct & (b.unit[entered] != b.unit)
    callee = np.where(~to_thunk & (direct & returns | leaves), b.unit[entered], NONE)
    lost = ((b.kind == Kind.CALL) | (b.kind == Kind.JUMP) | (b.kind == Kind.BRANCH)) & ~direct
    has_table = np.zeros(len(direct), dtype=bool)
    has_table[b.table[:, 0]] = True
    by_table = b.by_table & (has_table | b.puzzling[b.unit])
    unknown = lost | to_thunk | (b.kind == Kind.CALL_INDIRECT) | (b.kind == Kind.JUMP_INDIRECT) & ~by_table
    return _Calls(callee, unknown, returns)


def _between_units(b: Blocks, calls: _Calls) -> tuple[np.ndarray, np.ndarray]:
    """(unit, unit that it calls or goes on in)."""
    called = np.flatnonzero(calls.callee != NONE)
    on = np.flatnonzero((b.next != NONE) & (b.unit[b.next.clip(0)] != b.unit))
    pairs = np.unique(np.concatenate([np.stack([b.unit[called], calls.callee[called]], axis=1),
                                      np.stack([b.unit[on], b.unit[b.next[on]]], axis=1)]), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _clobbered(b: Blocks, calls: _Calls, facts: RegisterFacts) -> np.ndarray:
    """What each unit, with all that it calls, may change."""
    out = np.zeros(len(b.entry), dtype=np.uint64)
    np.bitwise_or.at(out, b.unit, b.write)
    np.bitwise_or.at(out, b.unit[calls.unknown], np.uint64(facts.volatile))
    source, target = _between_units(b, calls)
    solve(out, Graph(len(out), target, source), lambda e: out[target[e]])
    return out & np.uint64(facts.volatile)


def _edges(b: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ways between blocks: (from, to, whether it enters a called function)."""
    on = np.flatnonzero(b.next != NONE)
    to = np.flatnonzero(b.target != NONE)
    source = np.concatenate([on, to, b.table[:, 0]])
    target = np.concatenate([b.next[on], b.target[to], b.table[:, 1]])
    enters = np.concatenate([np.zeros(len(on), bool), b.kind[to] == Kind.CALL, np.zeros(len(b.table), bool)])
    return source, target, enters


def _defined(functions: Functions, code: Code, taken: np.ndarray, b: Blocks, calls: _Calls, changed: np.ndarray,
             facts: RegisterFacts) -> np.ndarray:
    """What may hold a meaningful value at the end of each block, before what its call does."""
    source, target, enters = _edges(b)
    incoming = np.uint64(facts.arguments | facts.variadic)
    state = np.zeros(len(b.first), dtype=np.uint64)
    lonely = np.ones(len(b.first), dtype=bool)
    lonely[target] = False
    state[lonely] = _ALL      # entered in a way that is not seen: from the unwinder, say
    state[b.puzzling[b.unit]] = _ALL
    block_at = code.address[b.first]
    entry = np.searchsorted(block_at, functions.entry).clip(0, len(block_at) - 1)
    state[entry[lonely[entry]]] = incoming
    state[entry[taken]] |= incoming
    gone = np.where(calls.returns, changed, np.uint64(0))
    # An unknown callee, or one that changes it, may have left a result.
    result = np.where(calls.returns, np.uint64(facts.results) & changed, np.uint64(0))

    def carry(e: np.ndarray) -> np.ndarray:
        s = source[e]
        before = state[s] | b.write[s]
        return np.where(enters[e], before, before & ~gone[s] | result[s])

    solve(state, Graph(len(state), source, target), carry)
    return state | b.write


def _open_units(functions: Functions, code: Code, b: Blocks, taken: np.ndarray) -> np.ndarray:
    """bool, of each unit: may be called from where it is not seen."""
    at = functions.index(code.address[b.first[b.entry]])
    out = at < 0
    out[np.isin(at, taken)] = True
    return out


def _live(b: Blocks, calls: _Calls, changed: np.ndarray, facts: RegisterFacts) -> np.ndarray:
    """What may be read from the beginning of each block on."""
    source, target, enters = _edges(b)
    fixed = np.where(calls.unknown, np.uint64(facts.arguments | facts.variadic), np.uint64(0))
    fixed[b.kind == Kind.RETURN] |= np.uint64(facts.results)
    fixed[(b.kind == Kind.JUMP_INDIRECT) & b.puzzling[b.unit]] = _ALL
    state = b.use | fixed & ~b.kill

    def carry(e: np.ndarray) -> np.ndarray:
        s = source[e]
        after = state[target[e]]
        return np.where(enters[e], after, after & ~changed[s]) & ~b.kill[s]

    solve(state, Graph(len(state), target, source), carry)
    return state


def _returns_oddly(b: Blocks, calls: _Calls, changed: np.ndarray, facts: RegisterFacts) -> np.ndarray:
    """bool, of each unit: a caller itself reads what the unit left in a register that gates spoil.

    Only reads in the straight line of code behind a call count: on longer ways compiled code seems to read what was
    never set (variables without a value on ways that are not taken, code behind calls that do not return)."""
    _, target, _ = _edges(b)
    site = np.flatnonzero(calls.returns & (calls.callee != NONE) & (b.next != NONE))
    alone = np.bincount(target, minlength=len(b.first)) == 1
    site = site[alone[b.next[site]] & ((b.untouched[b.next[site]] & changed[site] & np.uint64(facts.spoiled)) != 0)]
    out = np.zeros(len(b.entry), dtype=bool)
    out[calls.callee[site]] = True
    return out


def _hidden_arguments(b: Blocks, changed: np.ndarray, facts: RegisterFacts) -> np.ndarray:
    """Of each unit: what it reads at its entry though no psABI call passes anything in it: registers, flags."""
    source, target, enters = _edges(b)
    inside = ~enters & (b.unit[source] == b.unit[target])
    source, target = source[inside], target[inside]
    hidden = np.uint64(facts.volatile & ~(facts.arguments | facts.variadic))
    state = b.use & hidden
    solve(state, Graph(len(state), target, source),
          lambda e: state[target[e]] & ~changed[source[e]] & ~b.kill[source[e]])
    return state[b.entry]
