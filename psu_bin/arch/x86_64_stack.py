"""Does a function touch its caller's stack arguments?  Decides between the cheap gate and the one that leaves them.

The caller's stack arguments begin at the CFA, just above the return address.  With the CFA rows of .eh_frame, every
memory operand based on rsp (or on rbp, where that is the frame register) is either below the CFA, the function's own,
or at or above it.  A tail call hands the stack arguments on without touching them, so where it leads counts as well.
What cannot be decided counts as touching: the wrong gate would give the function somebody else's stack words.

Not seen: stack arguments reached through a copy of rsp in another register.  Compilers make such copies of the CFA
with a `lea` of an address at or above it (varargs, realigned stacks), which counts; hand-written code has no rows,
which counts."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from psu_bin.arch import x86_64_decode as decode
from psu_bin.arch.x86_64_decode import RBP, RSP, Insn

DWARF_RBP, DWARF_RSP = 6, 7
RETURN_ADDRESS = 8          # CFA - 8: where rsp points at entry


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
    insns = decode.walk(code, start, end)
    jumps = tuple(i.imm_at for i in insns if decode.is_jump(i) and _leaves(code, i, start, end, relocated))
    if not rows or rows[0][0] > start:
        return StackUse(True, jumps)
    touched = False
    n = 0
    for k, i in enumerate(insns):
        while n + 1 < len(rows) and rows[n + 1][0] <= i.at:
            n += 1
        _, register, offset = rows[n]
        if register not in (DWARF_RBP, DWARF_RSP):
            touched = True
            break
        if i.memory and not _padding(i):
            base = {RSP: DWARF_RSP, RBP: DWARF_RBP}.get(i.base)
            reach = decode.displacement(code, i)
            # Where rbp is the frame register, compilers name arguments by it and only the frame's lower end by rsp.
            if base == register and reach >= offset:
                touched = True
                break
        if decode.is_indirect_jump(i) and register == DWARF_RSP and offset == RETURN_ADDRESS and not _switch(insns, k):
            touched = True                                   # tail call through a pointer: could hand them on
            break
        if i.map == 0 and i.opcode in (0xC2, 0xCA, 0xC8):    # ret n, enter
            touched = True
            break
    return StackUse(touched, jumps)


def leaves(code: bytes, start: int, end: int, relocated: Container[int]) -> tuple[list[int], bool]:
    """(fields of direct calls and jumps that leave code[start:end], whether it leaves in a way not known).

    Raises ValueError where the bytes are no instructions."""
    insns = decode.walk(code, start, end)
    fields = [i.imm_at for i in insns if decode.is_call(i)
              or decode.is_jump(i) and _leaves(code, i, start, end, relocated)]
    unknown = any(decode.is_indirect_call(i) or decode.is_indirect_jump(i) and not _switch(insns, k)
                  for k, i in enumerate(insns))
    return fields, unknown


R10 = 10                    # by which GCC finds its way back from a realigned stack
CALLEE_SAVED = frozenset((3, 12, 13, 14, 15))
# Bytes without which no instruction of a function does what _moves_stack looks for: most functions need no decoding.
_TO_RSP = rb"[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]"        # ModRM.reg is 4
_CANDIDATE = re.compile(rb"\x0f\x05|[\x48-\x4b](?:[\x8b\x8d]|\x0f[\x40-\x4f])" + _TO_RSP
                        + rb"|[\x48\x4a\x4c\x4e]\x89[\xc4\xcc\xd4\xdc\xe4\xec\xf4\xfc]|\x87|\x48\x94|\x5c|\x8f\xc4", re.S)


def moves_stack(code: bytes, start: int, end: int) -> bool:
    """Whether code[start:end] may go on with another stack: it gives rsp a value that is not made of rsp or rbp, or makes
    a system call (clone).

    Where an array of variable length goes out of scope, compilers put back a value that the same function saved in a register that
    outlives calls: that does not count.  Where it came by other ways, it does.  Raises ValueError where the bytes are no
    instructions."""
    if not _CANDIDATE.search(code, start, end):
        return False
    insns = decode.walk(code, start, end)
    saved = {_operand(i) for i in insns if i.map == 0 and i.opcode == 0x89 and i.reg == RSP}       # mov %rsp, register
    return any(_moves_stack(i, saved & CALLEE_SAVED | {RSP, RBP}) for i in insns)


def _operand(i: Insn) -> int:
    """The register that ModRM.rm names, -1: none."""
    return (i.modrm & 7) | (i.rex & 1) << 3 if i.modrm >= 0xC0 else -1


def _moves_stack(i: Insn, own: Container[int]) -> bool:
    """own: registers that hold places in the present stack."""
    if i.vex or i.map > 1:
        return False
    if i.map == 1:
        return i.opcode == 0x05 or i.opcode & 0xF0 == 0x40 and i.reg == RSP       # syscall, cmov
    operand = _operand(i)
    if i.opcode == 0x8B and i.reg == RSP:                        # mov
        return operand not in own if operand >= 0 else i.base not in (RSP, RBP)
    if i.opcode == 0x89 and operand == RSP:
        return i.reg not in own
    if i.opcode == 0x8D and i.reg == RSP:                        # lea
        return i.base not in (RSP, RBP, R10)
    if i.opcode == 0x87:                                         # xchg
        return RSP in (i.reg, operand)
    if i.opcode in (0x94, 0x5C):                                 # xchg with rax, pop
        return not i.rex & 1
    return i.opcode == 0x8F and operand == RSP                   # pop


def _leaves(code: bytes, jump: Insn, start: int, end: int, relocated: Container[int]) -> bool:
    """The direct jump leads out of code[start:end], or may."""
    return jump.imm_at in relocated or not start <= decode.branch_target(code, jump) < end


def _padding(i: Insn) -> bool:
    return i.map == 1 and i.opcode in (0x1E, 0x1F)           # nop with an operand, endbr64


def _switch(insns: tuple[Insn, ...], k: int) -> bool:
    """The indirect jump is that of a jump table: jmp *table(,%reg,8), or a table load just before it."""
    i = insns[k]
    if i.memory:
        return i.index >= 0 and i.scale == 8
    for before in insns[max(0, k - 4):k]:
        if before.map == 0 and before.opcode == 0x63 and before.index >= 0 and before.scale == 4:
            return True
        if before.map == 0 and before.opcode == 0x8B and before.index >= 0 and before.scale == 8:
            return True
    return False
