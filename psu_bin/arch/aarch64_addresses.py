"""Addresses that AArch64 code computes in several instructions: `adrp` gives a page, an `add` or a load the rest.

Compilers separate the two, hoist the adrp out of loops, keep it in a register over calls and share it between several
uses.  So values are followed through registers over all ways that are known, for the whole module at once:

1. each block is summarised: which instruction last set each register at its end, or which register it was copied from;
2. a data-flow over the blocks finds the one instruction whose value each register holds at each block's beginning;
3. what these instructions compute follows from their operands;
4. every use of a page of code is looked at.  Where an incomplete address may go somewhere that is not followed (memory,
   another function, a computed jump, two different pages in one register), everything on that page is `loose`: its
   functions are in doubt.  So nothing that instrument calls updatable rests on having seen every way.

A *web* is the set of adrps that reach a common use.  Where all uses of a web complete the same address, adrps and uses
can be rewritten together.  To a landing pad (Region.entered) an exception leads from a call, a way that is not followed, and there
registers are as they were at the call: so an adrp that a register still has after a call may have uses that are not seen, by
instructions that add to what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch import aarch64_words as words
from psu_bin.arch.aarch64_registers import Registers
from psu_bin.arch.code import ENDS, NONE, Kind, distinct

UNSET, UNKNOWN, _SAME = -1, -2, -10       # _SAME - r: what register r held at the beginning of the block
_REGISTERS = 31
_LONGEST = 64                             # instructions of a block
PAGE = 4096
_LOW18 = (1 << 19) - 1                    # x0 to x18: a call may change them, and hand them on
_PASSED, _RETURNED = (1 << 9) - 1, 0b11


@dataclass(frozen=True)
class Operations:
    """What the data-flow knows about each instruction: numbers of registers, -1 for none."""
    sets: np.ndarray          # int64: the register whose new value is known from the operands
    base: np.ndarray          # int64: the register whose value it adds to, copies, or addresses memory with
    copies: np.ndarray        # bool: mov of a register
    constant: np.ndarray      # int64: the value, where no operand matters; NONE
    offset: np.ndarray        # int64: what is added to base
    keeps: np.ndarray         # int64: bits of base that stay (movk)
    memory: np.ndarray        # bool: memory operand at base + offset
    indexed: np.ndarray       # bool: memory operand at base + another register
    again: np.ndarray         # bool: uses base in another role, too: stores it
    page: np.ndarray          # bool: an adrp of a page with code in it


@dataclass(frozen=True)
class Addresses:
    """Of each instruction: what it refers to."""
    base: np.ndarray          # int64: the value of its base register, NONE where it is not known
    target: np.ndarray        # int64: base + offset of an add or memory operand; NONE
    value: np.ndarray         # int64: what it computes; NONE
    webs: dict[int, tuple[int, ...]]   # add -> the adrps to be rewritten together with it
    kept: dict[int, tuple[int, ...]]   # the same, of webs that registers keep over calls
    carried: dict[int, set[int]]       # adrp -> the calls after which a register still has it, whether that matters or not
    completes: np.ndarray     # int64: what instructions add to registers of which nothing is known
    loose: np.ndarray         # int64 (n, 2): [start, end)


def operations(word: np.ndarray, address: np.ndarray, spans: list[tuple[int, int]]) -> Operations:
    """Sort out `word` (uint32) at `address`; spans: [start, end) of the executable sections."""
    n = len(word)
    rd, rn, rm = ((word >> np.uint32(s)).astype(np.int64) & 31 for s in (0, 5, 16))

    def like(mask: int, value: int) -> np.ndarray:
        return (word & np.uint32(mask)) == np.uint32(value)

    form = words.form(word)
    target = words.target(address, word, form)
    page = np.zeros(n, dtype=bool)
    for start, end in spans:
        page |= (form == words.ADRP) & (target + PAGE > start) & (target < end)
    add, add_pages = form == words.ADD, like(0xFFC00000, 0x91400000)          # add; add ..., lsl #12
    moves = like(0xFFE0FFE0, 0xAA0003E0)
    movz, movk = like(0xFF800000, 0xD2800000), like(0xFF800000, 0xF2800000)
    half = 16 * ((word >> np.uint32(21)).astype(np.int64) & 3)
    immediate = (word >> np.uint32(5)).astype(np.int64) & 0xFFFF
    simd = (word >> np.uint32(26)) & np.uint32(1) != 0
    scale = (word >> np.uint32(30)).astype(np.int64) & 3
    scale = np.where(simd & (scale == 0) & ((word >> np.uint32(23)) & np.uint32(1) != 0), 4, scale)
    scaled, unscaled = like(0x3B000000, 0x39000000), like(0x3B200000, 0x38000000)
    pair = like(0x3A000000, 0x28000000)
    post = unscaled & like(0x00000C00, 0x00000400) | pair & like(0x01800000, 0x00800000)
    pair_scale = np.where(simd, 2 + scale, np.where(scale == 2, 3, 2))
    indexed = like(0x3B200C00, 0x38200800)
    other = like(0x3B200C00, 0x38200000) | like(0x3F000000, 0x08000000) | like(0xBE000000, 0x0C000000)
    offset = np.select(
        [add, add_pages, movk, scaled, unscaled, pair],
        [(word >> np.uint32(10)).astype(np.int64) & 0xFFF, ((word >> np.uint32(10)).astype(np.int64) & 0xFFF) << 12,
         immediate << half, ((word >> np.uint32(10)).astype(np.int64) & 0xFFF) << scale,
         words.signed(word, 12, 9), words.signed(word, 15, 7) << pair_scale], 0)
    offset[post] = 0
    memory = scaled | unscaled | pair | other
    constant = np.where((form == words.ADR) | (form == words.ADRP), target, np.where(movz, immediate << half, NONE))
    sets = np.where((constant != NONE) | add | add_pages | movk, rd, -1)
    sets[moves] = rd[moves]
    base = np.where(add | add_pages | memory | indexed, rn, np.where(movk, rd, np.where(moves, rm, -1)))
    sets[sets == 31] = base[base == 31] = -1
    keeps = np.where(movk, ~(np.int64(0xFFFF) << half), -1)
    load = np.where(pair, (word >> np.uint32(22)) & np.uint32(1), (word >> np.uint32(22)) & np.uint32(3)) != 0
    rt2 = (word >> np.uint32(10)).astype(np.int64) & 31
    again = np.where(other, (rd == rn) | (rm == rn) | (rt2 == rn), ~load & ~simd & ((rd == rn) | pair & (rt2 == rn)))
    return Operations(sets, base, moves, constant, offset, keeps, memory, indexed, memory & again, page)


@dataclass(frozen=True)
class _Blocks:
    first: np.ndarray
    last: np.ndarray
    number: np.ndarray        # of each instruction: its block
    source: np.ndarray        # ways from block ...
    target: np.ndarray        # ... to block
    callee: np.ndarray        # of each block: the block that its direct call enters, or NONE
    open: np.ndarray          # bool: entered in ways that are not seen


def _blocks(address: np.ndarray, kind: np.ndarray, jump: np.ndarray, starts: np.ndarray) -> _Blocks:
    """jump: index of the instruction that a direct call, jump or branch leads to, or NONE; starts: indices of entries and of
    landing pads."""
    n = len(address)
    flow = np.flatnonzero(kind > Kind.MARK)
    leader = np.zeros(n + 1, dtype=bool)
    leader[0] = True
    leader[1:n] = address[1:] != address[:-1] + 4
    leader[flow + 1] = True
    leader[starts] = True
    leader[jump[jump != NONE]] = True
    at = np.flatnonzero(leader[:n])
    long = np.diff(np.append(at, n))
    first = distinct(np.concatenate([at, *(at[long > k] + k for k in range(_LONGEST, int(long.max(initial=0)), _LONGEST))]))
    last = np.append(first[1:], n) - 1
    number = np.cumsum(np.isin(np.arange(n), first, assume_unique=True)) - 1
    close = np.append(address[first[1:]] == address[last[:-1]] + 4, False)
    on = np.flatnonzero(close & ~np.isin(kind[last], ENDS))
    direct = jump[last]
    to = np.flatnonzero((direct != NONE) & (kind[last] != Kind.CALL))
    callee = np.where((direct != NONE) & (kind[last] == Kind.CALL), number[direct.clip(0)], NONE)
    source, target = np.concatenate([on, to]), np.concatenate([on + 1, number[direct[to]]])
    entered = np.ones(len(first), dtype=bool)
    entered[target] = False
    entered[number[starts]] = True
    entered[callee[callee != NONE]] = True
    return _Blocks(first, last, number, source, target, callee, entered)


def _summaries(b: _Blocks, ops: Operations, kind: np.ndarray, writes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(of each block what every register holds at its end, of each instruction what its base register holds)."""
    state = np.tile((_SAME - np.arange(_REGISTERS)).astype(np.int32), (len(b.first), 1))
    base = np.full(len(kind), UNKNOWN, dtype=np.int64)
    bits = np.uint32(1) << np.arange(_REGISTERS, dtype=np.uint32)
    active = np.arange(len(b.first))
    k = 0
    while len(active):
        i = b.first[active] + k
        some = ops.base[i] >= 0
        base[i[some]] = state[active[some], ops.base[i[some]]]
        changes = np.flatnonzero(writes[i])
        rows = active[changes]
        state[rows] = np.where(writes[i[changes], None] & bits != 0, np.int32(UNKNOWN), state[rows])
        sets = np.flatnonzero(ops.sets[i] >= 0)
        state[active[sets], ops.sets[i[sets]]] = np.where(ops.copies[i[sets]], base[i[sets]], i[sets])
        k += 1
        active = active[b.first[active] + k <= b.last[active]]
    # A callee may change x0 to x18, or not: whichever it is, nothing is known of them.
    calls = (kind[b.last] == Kind.CALL) | (kind[b.last] == Kind.CALL_INDIRECT)
    state[calls, :19] = UNKNOWN
    state[calls, 30] = UNKNOWN
    return state, base


def _flow(b: _Blocks, out: np.ndarray, ops: Operations,
          ) -> tuple[np.ndarray, list[tuple[int, int]], list[tuple[int, int, int]]]:
    """(what each register holds at the beginning of each block, adrps that mean the same page where they meet,
    (block, register, adrp) where an incomplete address meets something else)."""
    # A row is UNSET as a whole: no known way has led to its block yet.
    state = np.full((len(b.first), _REGISTERS), UNSET, dtype=np.int32)
    state[b.open] = UNKNOWN
    order = np.argsort(b.source, kind="stable")
    source, target = b.source[order], b.target[order]
    start = np.searchsorted(source, np.arange(len(b.first) + 1))
    joined: list[tuple[int, int]] = []
    lost: list[tuple[int, int, int]] = []
    # Indexed by what a register holds: UNSET and UNKNOWN find the two values at the end.
    is_page, constant = np.append(ops.page, [False, False]), np.append(ops.constant, [NONE, NONE])
    active = np.flatnonzero(b.open)
    while True:
        while len(active):
            count = start[active + 1] - start[active]
            edges = np.repeat(start[active] - np.concatenate([[0], np.cumsum(count)[:-1]]), count) + np.arange(count.sum())
            changed = []
            while len(edges):
                _, chosen = np.unique(target[edges], return_index=True)
                now = edges[chosen]
                edges = np.delete(edges, chosen)
                s, t = source[now], target[now]
                value = out[s]
                same = value <= _SAME
                value = np.where(same, np.take_along_axis(state[s], (_SAME - value).clip(0, _REGISTERS - 1), axis=1), value)
                old = state[t]
                known = (old >= 0) & (value >= 0)
                equal = known & (constant[old] == constant[value]) & (constant[old] != NONE)
                differ = (old != UNSET) & (old != value)
                for row, r in np.argwhere(differ & (is_page[old] | is_page[value])).tolist():
                    x, y = int(old[row, r]), int(value[row, r])
                    if equal[row, r]:
                        joined.append((x, y))
                    else:
                        lost += [(int(t[row]), r, d) for d in (x, y) if is_page[d]]
                new = np.where(old == UNSET, value, np.where(differ & ~equal, UNKNOWN, old)).astype(np.int32)
                moved = (new != old).any(axis=1)
                state[t[moved]] = new[moved]
                changed.append(t[moved])
            active = distinct(np.concatenate(changed)) if changed else active[:0]
        # A loop that only a computed jump enters: nothing is known in it.
        rest = np.flatnonzero((state == UNSET).all(axis=1))
        if not len(rest):
            return state, joined, lost
        active = rest[:1]
        state[active] = UNKNOWN


def _live(b: _Blocks, kind: np.ndarray, reads: np.ndarray, kills: np.ndarray) -> np.ndarray:
    """uint32, of each block: registers that may be read from its beginning on."""
    use, kill = (np.zeros(len(b.first), dtype=np.uint32) for _ in range(2))
    active, k = np.arange(len(b.first)), 0
    while len(active):
        i = b.first[active] + k
        use[active] |= reads[i] & ~kill[active]
        kill[active] |= kills[i]
        k += 1
        active = active[b.first[active] + k <= b.last[active]]
    end = kind[b.last]
    more = np.zeros(len(b.first), dtype=np.uint32)
    more[end == Kind.RETURN] = _RETURNED
    more[(end == Kind.CALL_INDIRECT) | (end == Kind.CALL) & (b.callee == NONE)] = _PASSED
    more[end == Kind.JUMP_INDIRECT] = (1 << _REGISTERS) - 1
    live = use | more & ~kill
    enters = np.flatnonzero(b.callee != NONE)
    source, target = np.concatenate([b.source, enters]), np.concatenate([b.target, b.callee[enters]])
    mask = np.concatenate([np.full(len(b.source), -1, np.int64), np.full(len(enters), _LOW18)]).astype(np.uint32)
    while True:
        new = live.copy()
        np.bitwise_or.at(new, source, live[target] & mask & ~kill[source])
        if (new == live).all():
            return live
        live = new


def find(word: np.ndarray, address: np.ndarray, kind: np.ndarray, jump: np.ndarray, starts: np.ndarray, ops: Operations,
         registers: Registers) -> Addresses:
    """Follow addresses through all of `word` at `address`; jump and starts as in _blocks."""
    n = len(word)
    if not n:
        none = np.full(0, NONE, dtype=np.int64)
        return Addresses(none, none, none, {}, {}, {}, none, np.zeros((0, 2), dtype=np.int64))
    b = _blocks(address, kind, jump, starts)
    kills = registers.writes & ~np.where(np.isin(kind, (Kind.CALL, Kind.CALL_INDIRECT)), np.uint32(1 << 30), np.uint32(0))
    out, base = _summaries(b, ops, kind, registers.writes)
    state, joined, lost = _flow(b, out, ops)
    same = np.flatnonzero(base <= _SAME)
    base[same] = state[b.number[same], _SAME - base[same]]

    value = ops.constant.copy()
    base_value = np.full(n, NONE, dtype=np.int64)
    todo = np.flatnonzero((base >= 0) & (ops.base >= 0))
    while len(todo):
        ready = value[base[todo]] != NONE
        i = todo[ready]
        base_value[i] = value[base[i]]
        sums = i[(ops.sets[i] >= 0) & ~ops.copies[i] & (ops.constant[i] == NONE)]
        value[sums] = (base_value[sums] & ops.keeps[sums]) + ops.offset[sums]
        if not len(i):
            break
        todo = todo[~ready]
    sums = (ops.sets >= 0) & (ops.constant == NONE) & ~ops.copies & (ops.keeps == -1)
    target = np.where((base_value != NONE) & (sums | ops.memory), base_value + ops.offset, NONE)
    webs, kept, carried, loose = _pages(b, ops, kind, registers.reads, kills, out, state, base, value, joined, lost)
    return Addresses(base_value, target, value, webs, kept, carried, distinct(ops.offset[sums & (base == UNKNOWN)]), loose)


class _Webs:
    """Sets of adrps, joined where they meet."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, x: int) -> int:
        while self._parent.get(x, x) != x:
            x = self._parent[x]
        return x

    def join(self, x: int, y: int) -> None:
        x, y = self.root(x), self.root(y)
        self._parent[max(x, y)] = min(x, y)


def _pages(b: _Blocks, ops: Operations, kind: np.ndarray, reads: np.ndarray, kills: np.ndarray, out: np.ndarray,
           state: np.ndarray, base: np.ndarray, value: np.ndarray, joined: list[tuple[int, int]],
           lost: list[tuple[int, int, int]],
           ) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]], dict[int, set[int]], np.ndarray]:
    """Follow every adrp of a page of code to its uses: Addresses.webs, .kept, .carried and .loose."""
    pages = np.flatnonzero(ops.page)
    if not len(pages):
        return {}, {}, {}, np.zeros((0, 2), dtype=np.int64)
    webs = _Webs()
    for x, y in joined:
        webs.join(x, y)
    live = _live(b, kind, reads, kills)
    escaped = {d for t, r, d in lost if int(live[t]) >> r & 1}
    mixed = {d for _, _, d in lost}
    over: set[int] = set()
    carried: dict[int, set[int]] = {}
    uses: dict[int, list[int]] = {}
    is_page = np.zeros(len(kind) + 1, dtype=bool)
    is_page[pages] = True
    holds = np.zeros(len(b.first), dtype=bool)
    holds[b.number[pages]] = True
    holds |= (is_page[state.clip(-1)] & (state >= 0)).any(axis=1)
    successors: dict[int, int] = {}
    interesting = np.flatnonzero(holds)
    on = np.isin(b.source, interesting)
    for s, t in zip(b.source[on].tolist(), b.target[on].tolist()):
        successors[s] = successors.get(s, 0) | int(live[t])
    for block in interesting.tolist():
        held = {r: int(d) for r, d in enumerate(state[block].tolist()) if d >= 0 and is_page[d]}
        for i in range(int(b.first[block]), int(b.last[block]) + 1):
            read, r = int(reads[i]), int(ops.base[i])
            if r in held:
                d = held[r]
                if ops.sets[i] >= 0 and ops.keeps[i] == -1 or ops.memory[i]:
                    if not ops.copies[i]:
                        uses.setdefault(d, []).append(i)
                    read &= ~(1 << r)
                    if ops.again[i]:
                        escaped.add(d)
            for q in [q for q in held if read >> q & 1]:
                escaped.add(held[q])
            copied = held.get(r) if ops.copies[i] else None
            if kills[i]:
                held = {q: d for q, d in held.items() if not int(kills[i]) >> q & 1}
            s = int(ops.sets[i])
            if s >= 0:
                held.pop(s, None)
                if is_page[i]:
                    held[s] = i
                elif copied is not None:
                    held[s] = copied
        end = Kind(int(kind[b.last[block]]))
        after = successors.get(block, 0)
        if end in (Kind.CALL, Kind.CALL_INDIRECT):
            callee = int(b.callee[block])
            handed = int(live[callee]) & _LOW18 if callee != NONE else _PASSED
            escaped |= {d for r, d in held.items() if r < 19 and (handed | after) >> r & 1}
            over |= {d for r, d in held.items() if after >> r & 1}
            for d in {d for r, d in held.items() if r >= 19}:
                carried.setdefault(d, set()).add(int(b.last[block]))
        elif end in (Kind.RETURN, Kind.JUMP_INDIRECT):
            mask = _LOW18 if end == Kind.RETURN else -1
            escaped |= {d for r, d in held.items() if mask >> r & 1}
    every = _rewritable(webs, pages, uses, mixed | escaped, value, ops)
    kept = {i: adrps for i, adrps in every.items() if over & set(adrps)}
    return {i: adrps for i, adrps in every.items() if i not in kept}, kept, carried, _loose(escaped, value)


def _rewritable(webs: _Webs, pages: np.ndarray, uses: dict[int, list[int]], mixed: set[int], value: np.ndarray,
                ops: Operations) -> dict[int, tuple[int, ...]]:
    """The adds of webs that complete one address only, each with all adrps of its web."""
    members: dict[int, list[int]] = {}
    for d in pages.tolist():
        members.setdefault(webs.root(d), []).append(d)
    out: dict[int, tuple[int, ...]] = {}
    for adrps in members.values():
        adds = [i for d in adrps for i in uses.get(d, ())]
        good = adds and not mixed & set(adrps) and all(ops.sets[i] >= 0 and 0 <= ops.offset[i] < PAGE for i in adds)
        if good and len({int(value[i]) for i in adds}) == 1 and value[adds[0]] != NONE:
            out.update({i: tuple(adrps) for i in adds})
    return out


def _loose(escaped: set[int], value: np.ndarray) -> np.ndarray:
    starts = distinct(np.array([int(value[d]) for d in escaped], dtype=np.int64))
    return np.stack([starts, starts + PAGE], axis=1)
