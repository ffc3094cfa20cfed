"""Which functions are called with a stack that is not aligned to 16 bytes.

The psABI wants the stack pointer to be a multiple of 16 at every call.  Where GCC knows the callee and sees that it does
not care, it saves the instruction that would align it (-fipa-stack-alignment, on by default).  A new version may care:
it keeps a vector on the stack, or calls printf.  So its gate has to align the stack; for that the functions are found.

The distance between the stack pointer and the CFA is in the unwind table, or follows from pushes and subtractions where
the frame is addressed through a frame pointer.  Whether the CFA itself is aligned depends on the function's callers.
"""

from __future__ import annotations

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Effects, Kind, StackMove
from psu_bin.instrument.blocks import Blocks
from psu_bin.instrument.dataflow import Graph, solve
from psu_bin.instrument.unwind import UNKNOWN, Frames

# What is known of the stack pointer, as a set of bits: its distance from the CFA is a multiple of 16, or 8 more; or it is
# itself a multiple of 16, or 8 more, whatever the CFA is.
_FROM_CFA, _FROM_CFA_8, _SELF, _SELF_8 = 1, 2, 4, 8
_ANYTHING = 15
_FLIPPED = np.array([(s & 5) << 1 | (s & 10) >> 1 for s in range(16)], dtype=np.uint64)
# How a function can be entered.
_ALIGNED, _MISALIGNED = np.uint64(1), np.uint64(2)


def misaligned(arch: Arch, frames: Frames, code: Code, effects: Effects, b: Blocks, callee: np.ndarray,
               open_units: np.ndarray) -> np.ndarray:
    """bool, of each unit: may be entered with a misaligned stack.

    callee: the unit that each block calls or jumps to, or NONE; open_units: may be called from where it is not seen.
    """
    if not arch.scan.STACK_CAN_BE_MISALIGNED:
        return np.zeros(len(b.entry), dtype=bool)
    writes_sp = (effects.writes & np.uint64(arch.scan.SP_BIT))[effects.shape] != 0
    move = arch.scan.stack_moves(code, writes_sp)
    register, offset = frames.rows(code.address)
    known = register == arch.scan.DWARF_SP
    step = np.where(offset % 16 == 0, _FROM_CFA, np.where(offset % 16 == 8, _FROM_CFA_8, _ANYTHING)).astype(np.uint64)

    # Of each block: what holds before its last instruction, and behind it, either fixed or as a change of what held before.
    n = len(b.first)
    fixed, flips = np.zeros(n, dtype=np.uint64), np.zeros(n, dtype=bool)
    active = np.arange(n)
    before: tuple[np.ndarray, np.ndarray] = (fixed.copy(), flips.copy())
    k = 0
    while len(active):
        i = b.first[active] + k
        fixed[active] = np.where(known[i], step[i], fixed[active])
        final = active[i == b.last[active]]
        before[0][final], before[1][final] = fixed[final], flips[final]
        fixed[active] = np.select(
            [move[i] == StackMove.KEEPS, move[i] == StackMove.FLIPS, move[i] == StackMove.ALIGNS],
            [fixed[active], _FLIPPED[fixed[active]], np.uint64(_SELF)], np.uint64(_ANYTHING))
        flips[active] ^= move[i] == StackMove.FLIPS
        k += 1
        active = active[b.first[active] + k <= b.last[active]]

    def through(state: np.ndarray, constant: np.ndarray, flip: np.ndarray) -> np.ndarray:
        return np.where(constant != 0, constant, np.where(flip, _FLIPPED[state], state))

    on, to = np.flatnonzero(b.next != NONE), np.flatnonzero((b.target != NONE) & (b.kind != Kind.CALL))
    source = np.concatenate([on, to, b.table[:, 0]])
    target = np.concatenate([b.next[on], b.target[to], b.table[:, 1]])
    # A way into another unit that does not begin with a called function's frame stays in the frame.
    inside = (b.unit[source] == b.unit[target]) | ~known[b.first[target]]
    source, target = source[inside], target[inside]
    state = np.zeros(n, dtype=np.uint64)
    state[known[b.first]] = step[b.first[known[b.first]]]
    entered = np.ones(n, dtype=bool)
    entered[target] = False
    # What only the unwinder enters calls it again, or the C++ library: such frames are aligned.
    described = frames.covering(code.address[b.first]) >= 0
    state[entered & (state == 0)] = np.where(described, np.where(register[b.first] == UNKNOWN, _SELF, _FROM_CFA),
                                             _ANYTHING)[entered & (state == 0)]
    solve(state, Graph(n, source, target), lambda e: through(state[source[e]], fixed[source[e]], flips[source[e]]))

    # A jump to the middle of another unit goes on in the same frame: one of the two was split off.
    site = np.flatnonzero((callee != NONE) & ((b.kind == Kind.CALL) | (b.target == b.entry[callee.clip(0)])))
    at_site = through(state[site], before[0][site], before[1][site])
    # A jump leaves with the return address on the stack, which a call only then puts there.
    jumps = (b.kind[site] != Kind.CALL)
    at_site = np.where(jumps & (arch.scan.ENTRY_CFA % 16 == 8), _FLIPPED[at_site], at_site)
    # What begins with another frame than a called function's is a part of the caller, split off.
    start = b.first[b.entry]
    part = (register[start] != UNKNOWN) & ~(known[start] & (offset[start] == arch.scan.ENTRY_CFA))
    at_site[part[callee[site]]] = _FROM_CFA
    caller, called = b.unit[site], callee[site]
    entry = np.where(open_units, _ALIGNED, np.uint64(0))

    def enter(e: np.ndarray) -> np.ndarray:
        how, own = at_site[e], entry[caller[e]]
        turned = (own & _ALIGNED) << np.uint64(1) | (own & _MISALIGNED) >> np.uint64(1)
        return (np.where(how & np.uint64(_FROM_CFA), own, np.uint64(0))
                | np.where(how & np.uint64(_FROM_CFA_8), turned, np.uint64(0))
                | np.where(how & np.uint64(_SELF), _ALIGNED, np.uint64(0))
                | np.where(how & np.uint64(_SELF_8), _MISALIGNED, np.uint64(0)))

    solve(entry, Graph(len(entry), caller, called), enter)
    return (entry & _MISALIGNED) != 0
