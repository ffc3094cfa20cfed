"""Does a function touch its caller's stack arguments?  As x86_64_stack.py, for AArch64.

The caller's stack arguments begin at the CFA.  With the CFA rows of .eh_frame, every memory operand based on sp, or on x29
where the function makes it a frame pointer, is either below the CFA, the function's own, or at or above it.  A sum of sp
and a constant at or above the CFA is how compilers reach variable arguments.  What cannot be decided counts as touching.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch.aarch64_decode import SP

DWARF_FP = 29


class StackUse(NamedTuple):
    """touched: it reads, writes or takes the address of stack arguments, or that is not known.
    jumps: fields of direct jumps that leave it (tail calls, or jumps to its own cold part)."""
    touched: bool
    jumps: tuple[int, ...]


def stack_use(code: bytes, start: int, end: int, rows: tuple[tuple[int, int, int], ...],
              relocated: Container[int]) -> StackUse:
    """Examine code[start:end]; rows: (offset from which it holds, DWARF register, offset) of the CFA, ascending.

    relocated: offsets of fields that a relocation fills in: the displacement in the code says nothing then.
    Raises ValueError where the bytes are no instructions."""
    words = decode.walk(code, start, end)
    jumps = tuple(start + 4 * k for k, w in enumerate(words) if decode.is_jump(w)
                  and _leaves(w, start + 4 * k, start, end, relocated))
    if not rows or rows[0][0] > start:
        return StackUse(any(_names_frame(w) for w in words), jumps)
    n, frame = 0, None                       # frame: CFA - x29, once the function has set it
    # clang describes a prologue only at its end (unless asked for asynchronous tables): before, sp is followed.
    depth, prologue = 0, True
    for k, w in enumerate(words):
        at = start + 4 * k
        while n + 1 < len(rows) and rows[n + 1][0] <= at:
            n += 1
        _, register, offset = rows[n]
        if register not in (SP, DWARF_FP):
            return StackUse(True, jumps)
        if register == SP and prologue:
            offset = max(offset, depth)
        limits = {SP: offset if register == SP else None, DWARF_FP: offset if register == DWARF_FP else frame}
        rd, rn, step = w & 31, w >> 5 & 31, decode.add_immediate(w)
        if step is not None and rn in limits:
            if rd == DWARF_FP and rn == SP:
                frame = offset - step if register == SP else frame
                continue
            limit = limits[rn]
            if rd != SP and limit is not None and step >= limit:
                return StackUse(True, jumps)
        m = decode.memory(w)
        if rd == SP and rn == SP and step is not None:
            depth -= step
        elif m is not None and m.base == SP and m.writes_base:
            depth -= min(m.offset, 0)
        prologue = prologue and not (decode.is_jump(w) or decode.is_call(w) or decode.ends_path(w))
        if m is not None and m.base in limits:
            limit = limits[m.base]
            if limit is not None and (m.offset >= limit or m.index >= 0):
                return StackUse(True, jumps)
        if decode.is_indirect_jump(w) and register == SP and offset == 0 and not _switch(words, k):
            return StackUse(True, jumps)     # a tail call through a pointer: could hand them on
    return StackUse(False, jumps)


def leaves(code: bytes, start: int, end: int, relocated: Container[int]) -> tuple[list[int], bool]:
    """(fields of direct calls and jumps that leave code[start:end], whether it leaves in a way not known).

    Raises ValueError where the bytes are no instructions."""
    words = decode.walk(code, start, end)
    fields = [start + 4 * k for k, w in enumerate(words) if decode.is_call(w)
              or decode.is_jump(w) and _leaves(w, start + 4 * k, start, end, relocated)]
    unknown = any(decode.is_indirect_call(w) or decode.is_indirect_jump(w) and not _switch(words, k)
                  for k, w in enumerate(words))
    return fields, unknown


def moves_stack(code: bytes, start: int, end: int) -> bool:
    """Whether code[start:end] may go on with another stack: it gives sp a value that is not made of sp or x29, or makes a system
    call (clone).

    Where an array of variable length goes out of scope, or the stack is realigned, compilers put back a value that the same function
    made of sp: that does not count, where it can be seen.  Raises ValueError where the bytes are no instructions."""
    words = decode.walk(code, start, end)
    own = {w & 31 for w in words if w >> 5 & 31 == SP and (w & 0x3F800000 == 0x11000000        # add, sub: of sp and a constant,
                                                           or w & 0x3FE00000 == 0x0B200000)}    # or a register
    return any(_moves_stack(w, own | {SP, DWARF_FP}) for w in words)


def _moves_stack(word: int, own: Container[int]) -> bool:
    """own: registers that hold places in the present stack."""
    rd, rn = word & 31, word >> 5 & 31
    if word & 0xFFE0001F == 0xD4000001:                          # svc
        return True
    if rd != SP or rn in own:
        return False
    # To register 31, which is sp in these alone: add, sub (immediate; extended register), and, orr, eor (immediate).
    return (word & 0x3F800000 == 0x11000000 or word & 0x3FE00000 == 0x0B200000
            or word & 0x1F800000 == 0x12000000 and word >> 29 & 3 != 3)


def _leaves(word: int, at: int, start: int, end: int, relocated: Container[int]) -> bool:
    """The direct jump leads out of [start, end), or may."""
    return at in relocated or not start <= decode.branch_target(word, at) < end


def _names_frame(word: int) -> bool:
    """The word may read sp or x29, or jumps to an address in a register."""
    if decode.is_adrp(word) or decode.is_jump(word) or word == decode.NOP:
        return False
    return word >> 5 & 31 in (SP, DWARF_FP) or word >> 16 & 31 == DWARF_FP or decode.is_indirect_jump(word)


def _switch(words: tuple[int, ...], k: int) -> bool:
    """The indirect jump is that of a jump table: an entry is loaded with an index just before it."""
    loads = (decode.memory(w) for w in words[max(0, k - 8):k])
    return any(m is not None and m.index >= 0 and not m.store for m in loads)
