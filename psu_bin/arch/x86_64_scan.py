"""Reading compiled x86-64 code: every instruction of a module, and what instrument has to know of it.

`decode` gives Code (arch/code.py); the other functions answer questions that only this architecture can ask: absolute
addresses in instructions, accesses to the caller's stack arguments, and which leading instructions of a function can
be moved to make room for a jump.  What instructions do to registers is in x86_64_registers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from psu_bin.arch import x86_64_boundaries as boundaries
from psu_bin.arch.code import NONE, Code, Field, Kind, Moved, Region, StackMove, Use, distinct
from psu_bin.arch.x86_64_link import is_thunk
from psu_bin.arch.x86_64_registers import FACTS as REGISTERS
from psu_bin.arch.x86_64_registers import effects

__all__ = ["ABSOLUTE_WIDTH", "DWARF_SP", "ENTRY_CFA", "FOLLOWS_VALUES", "IRELATIVE", "POINTERS", "REGISTERS", "RELATIVE_ADDENDS",
           "RELATIVE_TYPES", "SP_BIT", "STACK_CAN_BE_MISALIGNED", "absolutes", "decode", "edits", "effects", "is_mark",
           "is_thunk", "jump_tables", "movable", "possible_operands", "possible_targets", "scaled_loads",
           "stack_arguments", "stack_moves", "switches_stack"]

RSP, RBP = 4, 5
DWARF_RSP, DWARF_RBP = 7, 6
DWARF_SP = DWARF_RSP
SP_BIT = 1 << RSP                          # of the stack pointer in Effects
ENTRY_CFA = 8                              # CFA - stack pointer at a function's entry
FOLLOWS_VALUES = False                    # an instruction names its whole address
STACK_CAN_BE_MISALIGNED = True             # calls may be made with a stack pointer that is no multiple of 16
JUMP_SIZE = 5

# Relocation types (psABI, table 4.9): those that make pointers at run time, absolute ones in the linker's input with
# their width in bytes, and relative ones.
IRELATIVE = 37
POINTERS = (1, 6, 7)                       # 64, GLOB_DAT, JUMP_SLOT
ABSOLUTE_WIDTH = {1: 8, 10: 4, 11: 4}      # 64, 32, 32S
RELATIVE_TYPES = (2, 4, 24)                # PC32, PLT32, PC64
# What the addend of a relative field in code makes up for: the field itself, and an immediate behind it.
RELATIVE_ADDENDS = (4, 5, 6, 8, 12)

_P66, _PF2, _PF3 = 1, 2, 4
_ENDBR = b"\xf3\x0f\x1e\xfa"


@dataclass(frozen=True)
class Parts:
    """The instruction fields that the functions below use, and the bytes of each region."""
    fields: boundaries.Fields
    regions: tuple[Region, ...]
    padded: tuple[np.ndarray, ...]
    first: tuple[int, ...]       # index of each region's first instruction, and the number of instructions


def _int32(code: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The little-endian signed 32-bit values at positions `at`, as int64."""
    words: np.ndarray = np.ndarray((len(code) - 3,), dtype="<i4", buffer=code.data, strides=(1,))
    return words[at].astype(np.int64)


def decode(regions: tuple[Region, ...]) -> Code:
    """All instructions of `regions`, which ascend by address and do not overlap."""
    padded: list[np.ndarray] = []
    columns: list[tuple[np.ndarray, ...]] = []
    wrong, parts, first, total = [np.zeros(0, dtype=np.int64)], [], [], 0
    for region in regions:
        code = np.frombuffer(region.data + bytes(boundaries.PADDING), dtype=np.uint8)
        size = boundaries.lengths(code)
        starts, bad = boundaries.walk(size, region.starts - region.address, region.ends - region.address)
        filler = _filler(code, region)
        bad = bad[~filler[bad]]
        size = size[starts]
        fields = boundaries.fields(code, starts, size)
        kind, *rest = _classify(code, starts, size, fields, region.address)
        kind[filler[starts]] = Kind.TRAP
        columns.append((starts + region.address, size, kind, *rest))
        padded.append(code)
        wrong.append(bad + region.address)
        parts.append(fields)
        first.append(total)
        total += len(starts)
    if not columns:
        empty = np.zeros(0, dtype=np.int64)
        columns.append((empty,) * 7)
        parts.append(boundaries.fields(np.zeros(boundaries.PADDING, np.uint8), empty, empty))
    names = boundaries.Fields.__dataclass_fields__
    fields = boundaries.Fields(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))
    chains = [np.zeros((0, 2), dtype=np.int64), *(np.stack([r.starts, r.ends], axis=1) for r in regions)]
    address, length, kind, use, field, field_at, target = (np.concatenate(c) for c in zip(*columns))
    return Code(address, length, kind, use, field, field_at, target, np.concatenate(wrong), np.concatenate(chains),
                np.zeros((0, 2), dtype=np.int64), np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64),
                Parts(fields, regions, tuple(padded), (*first, total)))


def _filler(code: np.ndarray, region: Region) -> np.ndarray:
    """bool, one a byte: zeros up to the end of a chain, which linkers fill gaps with (add %al,(%rax), were it executed)."""
    place = np.arange(len(region.data) + 1)
    last = np.maximum.accumulate(np.where(np.append(code[:len(region.data)] != 0, False), place, -1))
    out = np.zeros(len(region.data) + 1, dtype=np.int8)
    for start, end in zip((region.starts - region.address).tolist(), (region.ends - region.address).tolist()):
        zeros = max(int(last[end - 1]) + 1, start)
        if zeros < end:
            out[zeros] += 1
            out[end] -= 1
    return np.cumsum(out)[:-1] > 0


def _classify(code: np.ndarray, starts: np.ndarray, size: np.ndarray, f: boundaries.Fields,
              base: int) -> tuple[np.ndarray, ...]:
    """kind, use, field, field_at and target of each instruction, as in Code."""
    one = (f.map == 0) & (f.encoding == boundaries.LEGACY)
    two = (f.map == 1) & (f.encoding == boundaries.LEGACY)
    op, reg = f.opcode, (f.modrm >> 3) & 7
    kind = np.zeros(len(starts), dtype=np.uint8)
    kind[one & (op == 0xE8)] = Kind.CALL
    kind[one & ((op == 0xE9) | (op == 0xEB))] = Kind.JUMP
    xbegin = one & (op == 0xC7) & (f.modrm == 0xF8)
    short = one & (((op & 0xF0) == 0x70) | ((op & 0xFC) == 0xE0))
    kind[short | two & ((op & 0xF0) == 0x80) | xbegin] = Kind.BRANCH
    kind[one & ((op == 0xC3) | (op == 0xC2) | (op == 0xCB) | (op == 0xCA) | (op == 0xCF))] = Kind.RETURN
    group5 = one & (op == 0xFF)
    kind[group5 & ((reg == 2) | (reg == 3))] = Kind.CALL_INDIRECT
    kind[group5 & ((reg == 4) | (reg == 5))] = Kind.JUMP_INDIRECT
    kind[two & ((op == 0x0B) | (op == 0xFF) | (op == 0xB9))] = Kind.TRAP
    kind[one & ((op == 0xF4) | (op == 0xCC) | (op == 0xF1))] = Kind.TRAP
    plain = (f.mandatory & (_PF2 | _PF3)) == 0
    kind[plain & (one & (op == 0x90) & ((f.rex & 1) == 0) | two & (op == 0x1F))] = Kind.NOP
    kind[two & (op == 0x1E) & ((f.mandatory & _PF3) != 0) & ((f.modrm == 0xFA) | (f.modrm == 0xFB))] = Kind.MARK

    use = np.zeros(len(starts), dtype=np.uint8)
    field = np.zeros(len(starts), dtype=np.uint8)
    field_at = np.zeros(len(starts), dtype=np.uint8)
    target = np.full(len(starts), NONE, dtype=np.int64)
    flow = (kind == Kind.CALL) | (kind == Kind.JUMP) | (kind == Kind.BRANCH)
    end = starts + size
    at = np.flatnonzero(flow & (f.imm_size == 4))
    field[at], use[at], field_at[at] = Field.REL32, Use.FLOW, size[at] - 4
    target[at] = base + end[at] + _int32(code, end[at] - 4)
    at = np.flatnonzero(flow & (f.imm_size == 1))
    field[at], use[at], field_at[at] = Field.REL8, Use.FLOW, size[at] - 1
    target[at] = base + end[at] + code[end[at] - 1].view(np.int8)
    at = np.flatnonzero((f.modrm >= 0) & ((f.modrm & 0xC7) == 5) & (kind != Kind.NOP))
    lea = (one[at]) & (op[at] == 0x8D)
    field[at], use[at], field_at[at] = Field.REL32, np.where(lea, Use.ADDRESS, Use.MEMORY), f.disp_at[at]
    target[at] = base + end[at] + _int32(code, starts[at] + f.disp_at[at])
    # With a segment prefix or 32-bit addressing the sum is not the address that is used.
    odd = at[((f.mandatory[at] & 0x18) != 0) & ~lea]
    target[odd], use[odd], field[odd] = NONE, Use.NONE, Field.NONE
    return kind, use, field, field_at, target


def edits(code: Code, index: np.ndarray, stubs: tuple[int, int], far: bool) -> list[list[tuple[str, int]]]:
    """For each instruction in `index`, which refers to an entry, the fields that make it refer to a stub in `stubs`,
    [low, high): (name of a plan_types.Reroute, address).  [] where there are none."""
    return [[("REL32", at)] if field == Field.REL32 else []
            for at, field in zip((code.address + code.field_at)[index].tolist(), code.field[index].tolist())]


def jump_tables(code: Code, contents: Callable[[int], bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Entries of jump tables in forms of this architecture's own (the common ones are known to instrument's tables.py):
    (index of an instruction that names the table, address that an entry leads to).  None here."""
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


def possible_operands(data: bytes, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(addresses of fields, where they lead if they are operands)] in bytes at `start` that could not be decoded."""
    if len(data) < 4:
        return []
    words: np.ndarray = np.ndarray((len(data) - 3,), dtype="<i4", buffer=data, strides=(1,))
    where = np.arange(start, start + len(words), dtype=np.int64)
    return [(where, where + 4 + words), (where, words.astype(np.int64))]


def possible_targets(data: bytes, start: int, entries: np.ndarray) -> np.ndarray:
    """Every address that bytes at `start` could lead to if a jump or operand ended after each of them.

    entries: of functions, ascending: what leads to one is taken for that, and not for an operand with an immediate."""
    out = [np.arange(start + 1, start + len(data) + 1) + np.frombuffer(data, dtype=np.int8)]
    for where, value in possible_operands(data, start)[:1]:
        other = ~np.isin(value, entries)
        out += [value, (value + 1)[other], (value + 4)[other], value - where - 4]
    return np.concatenate(out)


def absolutes(code: Code) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Operands that may be absolute addresses: (instruction index, address of the field, its size, its value).

    imm32 and disp32 are as the instruction extends them to 64 bits: sign-extended.
    """
    out: list[tuple[np.ndarray, ...]] = []
    parts: Parts = code.parts
    f = parts.fields
    for region, padded, first, last in zip(parts.regions, parts.padded, parts.first, parts.first[1:]):
        here = slice(first, last)
        flow = code.use[here] == Use.FLOW
        start = code.address[here] - region.address
        end = start + code.length[here]
        for some, size, where in (
                ((f.imm_size[here] == 4) & ~flow, 4, end - 4),
                ((f.imm_size[here] == 8) & (f.encoding[here] == boundaries.LEGACY), 8, end - 8),
                ((f.disp_size[here] == 4) & (code.field[here] != Field.REL32), 4, start + f.disp_at[here])):
            at = np.flatnonzero(some)
            if size == 4:
                value = _int32(padded, where[at])
            else:
                words: np.ndarray = np.ndarray((len(padded) - 7,), dtype="<i8", buffer=padded.data, strides=(1,))
                value = words[where[at]].copy()
            out.append((at + first, where[at] + region.address, np.full(len(at), size), value))
    none = np.zeros(0, dtype=np.int64)
    owner, field, width, value = zip((none, none, none, none), *out)
    return np.concatenate(owner), np.concatenate(field), np.concatenate(width), np.concatenate(value)


def _memory(code: Code, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Instructions with a memory operand at register `base` (RSP or RBP) plus displacement: (index, displacement)."""
    parts: Parts = code.parts
    f = parts.fields
    mode = f.modrm >> 6
    if base == RSP:
        some = (f.modrm >= 0) & (mode < 3) & ((f.modrm & 7) == 4) & ((f.sib & 7) == RSP) & ((f.rex & 1) == 0)
    else:
        some = (f.modrm >= 0) & ((mode == 1) | (mode == 2)) & ((f.rex & 1) == 0) & (
            ((f.modrm & 7) == RBP) | ((f.modrm & 7) == 4) & ((f.sib & 7) == RBP))
    at = np.flatnonzero(some & (code.kind != Kind.NOP))
    displacement = np.zeros(len(at), dtype=np.int64)
    for region, padded, first, last in zip(parts.regions, parts.padded, parts.first, parts.first[1:]):
        mine = np.flatnonzero((at >= first) & (at < last))
        i = at[mine]
        where = code.address[i] - region.address + f.disp_at[i]
        displacement[mine] = np.select([f.disp_size[i] == 1, f.disp_size[i] == 4],
                                       [padded[where].view(np.int8), _int32(padded, where)], 0)
        # A compressed displacement counts in units of the operand; the largest is a vector of 64 bytes.
        displacement[mine] *= np.where((f.encoding[i] == boundaries.EVEX) & (f.disp_size[i] == 1), 64, 1)
    return at, displacement


def stack_arguments(code: Code, register: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The indices of instructions that may touch their function's stack arguments: the CFA, or above it.

    register, offset: where the CFA is before each instruction (DWARF number, or -1 for "not known").  An instruction
    that copies the stack pointer counts when the copy may be used to reach beyond the frame.
    """
    found = []
    at, displacement = _memory(code, RSP)
    found.append(at[(register[at] == DWARF_RSP) & (displacement >= offset[at])])
    at, displacement = _memory(code, RBP)
    found.append(at[(register[at] == DWARF_RBP) & (displacement >= offset[at])])
    found.append(np.flatnonzero((register != DWARF_RSP) & (register != DWARF_RBP) & (code.kind != Kind.NOP) & (code.kind != Kind.MARK)))
    # mov reg, rsp into anything but rbp, while the CFA is reckoned from rsp: where it goes is not followed.
    f = code.parts.fields
    copy = (f.map == 0) & (f.encoding == boundaries.LEGACY) & ((f.rex & 8) != 0) & (
        (f.opcode == 0x89) & (f.modrm >= 0xC0) & (((f.modrm >> 3) & 7) == RSP) & ((f.rex & 4) == 0)
        & ~(((f.modrm & 7) == RBP) & ((f.rex & 1) == 0))
        | (f.opcode == 0x8B) & (f.modrm >= 0xC0) & ((f.modrm & 7) == RSP) & ((f.rex & 1) == 0)
        & ~((((f.modrm >> 3) & 7) == RBP) & ((f.rex & 4) == 0)))
    found.append(np.flatnonzero(copy & (register == DWARF_RSP)))
    return distinct(np.concatenate(found))


def stack_moves(code: Code, writes_sp: np.ndarray) -> np.ndarray:
    """uint8, StackMove of each instruction.  writes_sp: bool, one an instruction: changes rsp in any way."""
    parts: Parts = code.parts
    f = parts.fields
    one = (f.map == 0) & (f.encoding == boundaries.LEGACY)
    out = np.where(writes_sp, StackMove.UNKNOWN, StackMove.KEEPS).astype(np.uint8)
    calls = (code.kind == Kind.CALL) | (code.kind == Kind.CALL_INDIRECT) | (code.kind == Kind.RETURN)
    out[calls] = StackMove.KEEPS
    # Room whose size is known at run time only, and its end: compilers keep such sizes multiples of 16.
    out[one & np.isin(f.opcode, (0x29, 0x2B, 0x89, 0x8B, 0xC9))] = StackMove.KEEPS
    reg = (f.modrm >> 3) & 7
    full = (f.mandatory & _P66) == 0
    stack = ((f.opcode & 0xF0) == 0x50) | (f.opcode == 0x68) | (f.opcode == 0x6A) | (f.opcode == 0x9C) | (
        f.opcode == 0x9D) | (f.opcode == 0xFF) & (reg == 6) | (f.opcode == 0x8F) & (reg == 0)
    pops_sp = (f.opcode == 0x5C) & ((f.rex & 1) == 0)
    out[one & full & stack & ~pops_sp & writes_sp] = StackMove.FLIPS
    # add, sub, and with a constant; lea rsp, [rsp + constant]
    group1 = one & ((f.rex & 9) == 8) & (f.modrm >= 0xC0) & ((f.modrm & 7) == RSP) & (
        (f.opcode == 0x81) | (f.opcode == 0x83))
    lea = one & (f.opcode == 0x8D) & ((f.rex & 12) == 8) & (reg == RSP) & (f.sib == 0x24) & (f.modrm >= 0x40)
    for region, padded, first, last in zip(parts.regions, parts.padded, parts.first, parts.first[1:]):
        i = first + np.flatnonzero((group1 | lea)[first:last])
        start = code.address[i] - region.address
        # The low byte of the immediate or displacement, and whether all of it says "negative, 16 or more".
        low = padded[np.where(lea[i], start + f.disp_at[i], start + code.length[i] - f.imm_size[i])]
        moves = lea[i] | (reg[i] == 0) | (reg[i] == 5)
        step = np.where((low & 7) != 0, StackMove.UNKNOWN, np.where((low & 8) != 0, StackMove.FLIPS, StackMove.KEEPS))
        mask = np.where((reg[i] == 4) & ((low & 15) == 0), StackMove.ALIGNS, StackMove.UNKNOWN)
        out[i] = np.where(moves, step, mask)
    return out


def switches_stack(code: Code) -> np.ndarray:
    """bool, one an instruction: gives rsp a value that is not made of rsp or rbp, or makes a system call.

    A first look at much code: x86_64_stack.moves_stack has the last word."""
    f = code.parts.fields
    one = (f.map == 0) & (f.encoding == boundaries.LEGACY)
    two = (f.map == 1) & (f.encoding == boundaries.LEGACY)
    into_reg = (((f.modrm >> 3) & 7) == RSP) & ((f.rex & 4) == 0)
    into_rm = (f.modrm >= 0xC0) & ((f.modrm & 7) == RSP) & ((f.rex & 1) == 0)
    of_rbp = ((f.modrm & 7) == RBP) & (f.modrm >= 0x40) & ((f.rex & 1) == 0)
    loaded = ((f.opcode == 0x8B) | (f.opcode == 0x8D)) & into_reg & ~of_rbp
    stored = (f.opcode == 0x89) & into_rm & (f.modrm != 0xEC)
    exchanged = (f.opcode == 0x87) & (into_reg | into_rm) | ((f.opcode == 0x94) | (f.opcode == 0x5C)) & ((f.rex & 1) == 0)
    return one & (loaded | stored | exchanged | (f.opcode == 0x8F) & into_rm) | two & (
        (f.opcode == 0x05) | ((f.opcode & 0xF0) == 0x40) & into_reg)


def scaled_loads(code: Code) -> np.ndarray:
    """bool, one an instruction: loads a 4-byte jump table entry (movslq (base,index,4)) or jumps through a scaled index."""
    f = code.parts.fields
    scale = (f.sib >> 6) & 3
    return (f.map == 0) & (f.encoding == boundaries.LEGACY) & (f.sib >= 0) & (
        (f.opcode == 0x63) & (scale == 2) | (code.kind == Kind.JUMP_INDIRECT) & (scale == 3))


def is_mark(data: bytes) -> bool:
    """Whether code begins with a landing mark (endbr64), which has to stay at an entry."""
    return data[:4] == _ENDBR


def movable(code: Code, first: int, entry: int, limit: int, data: bytes, calls_may_move: bool) -> Moved | str:
    """Which leading instructions of the function at `entry` make room for a jump, and their copy.

    first: index of its first instruction; limit: address where the room ends (the function, and padding behind it);
    data: the bytes [entry, limit).  Returns the reason, as text, where it cannot be done.
    """
    f = code.parts.fields
    skip = len(_ENDBR) if is_mark(data) else 0
    at, ended, i = entry, False, first
    copy, fixups, places = bytearray(), [], [(0, 0)]
    while at - entry - skip < JUMP_SIZE:
        if i >= len(code.address) or code.address[i] != at or at + int(code.length[i]) > limit:
            return f"shorter than the {JUMP_SIZE} bytes of a jump"
        size = int(code.length[i])
        if at - entry >= skip:
            kind, field = Kind(code.kind[i]), Field(code.field[i])
            body = bytearray(data[at - entry:at - entry + size])
            if ended and kind not in (Kind.NOP, Kind.TRAP):
                return f"shorter than the {JUMP_SIZE} bytes of a jump"
            if kind in (Kind.CALL, Kind.CALL_INDIRECT) and not calls_may_move:
                return "calls something in its first bytes, and has exception handlers"
            if kind == Kind.JUMP_INDIRECT:
                return "jumps to a computed address in its first bytes"
            if f.map[i] == 0 and f.opcode[i] == 0xC7 and f.modrm[i] == 0xF8:
                return "begins a transaction in its first bytes"
            if field == Field.REL8:
                # The same jump with a 4-byte displacement.
                if size != 2 or (body[0] & 0xF0) != 0x70 and body[0] != 0xEB:
                    return "has a 2-byte jump in its first bytes"
                body = bytearray([0xE9] if body[0] == 0xEB else [0x0F, body[0] + 0x10]) + bytes(4)
                fixups.append((len(copy) + len(body) - 4, int(code.target[i])))
            elif field == Field.REL32:
                after = size - int(code.field_at[i]) - 4
                fixups.append((len(copy) + int(code.field_at[i]), int(code.target[i]) - after))
            copy += body
            ended = ended or kind in (Kind.JUMP, Kind.RETURN, Kind.TRAP)
            places.append((at + size - entry - skip, len(copy)))
        at += size
        i += 1
    return Moved(skip, at - entry - skip, bytes(copy), tuple(fixups), tuple(places))
