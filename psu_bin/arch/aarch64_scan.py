"""Reading compiled AArch64 code: every instruction of a module, and what instrument has to know of it.

`decode` gives Code (arch/code.py).  Decoding itself is trivial (one word an instruction); what is data between code, the
assembler's mapping symbols say.  What several instructions compute together is in aarch64_addresses.py, what they do to
registers in aarch64_registers.py, entries that move in aarch64_entries.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from psu_bin.arch import aarch64_addresses as addresses
from psu_bin.arch import aarch64_registers as registers
from psu_bin.arch import aarch64_words as words
from psu_bin.arch.aarch64_entries import is_mark, movable
from psu_bin.arch.aarch64_link import is_thunk
from psu_bin.arch.aarch64_registers import FACTS as REGISTERS
from psu_bin.arch.aarch64_registers import effects
from psu_bin.arch.code import NONE, Code, Field, Kind, Region, StackMove, Use, distinct

__all__ = ["ABSOLUTE_WIDTH", "DWARF_SP", "ENTRY_CFA", "FOLLOWS_VALUES", "IRELATIVE", "POINTERS", "REGISTERS", "RELATIVE_ADDENDS",
           "RELATIVE_TYPES", "SP_BIT", "STACK_CAN_BE_MISALIGNED", "absolutes", "decode", "edits", "effects", "is_mark",
           "is_thunk", "jump_tables", "movable", "possible_operands", "possible_targets", "scaled_loads",
           "stack_arguments", "stack_moves"]

DWARF_SP, DWARF_FP = 31, 29
SP_BIT = 0                                 # Effects have no bit for the stack pointer
ENTRY_CFA = 0                              # CFA - stack pointer at a function's entry
STACK_CAN_BE_MISALIGNED = False            # the processor checks it at every access
FOLLOWS_VALUES = True                      # through registers, from one instruction to others

# Relocation types (AArch64 ELF, 5.7): pointers at run time, absolute ones in the linker's input with their width in
# bytes, and relative ones.
IRELATIVE = 1032
POINTERS = (257, 1025, 1026)               # ABS64, GLOB_DAT, JUMP_SLOT
# ABS64, ABS32; MOVW_UABS_G0 to G3, ADD_ABS_LO12_NC
ABSOLUTE_WIDTH = {257: 8, 258: 4}
# PREL64, PREL32; LD_PREL_LO19, ADR_PREL_LO21, ADD_ABS_LO12_NC, TSTBR14, CONDBR19, JUMP26, CALL26
RELATIVE_TYPES = (260, 261, 273, 274, 277, 279, 280, 282, 283)
RELATIVE_ADDENDS = (0,)

_CONTENT = {0: 4, 1: 8, 2: 4}              # ldr (literal): bytes by opc


@dataclass(frozen=True)
class Parts:
    """The words, and what several functions below use of them."""
    word: np.ndarray                       # uint32
    data: np.ndarray                       # bool: read by a load nearby (a literal), not executed
    registers: registers.Registers
    operations: addresses.Operations
    found: addresses.Addresses
    regions: tuple[Region, ...]


def decode(regions: tuple[Region, ...]) -> Code:
    """All instructions of `regions`, which ascend by address and do not overlap."""
    empty = np.zeros(0, dtype=np.int64)
    address, word, wrong, starts = [empty], [np.zeros(0, np.uint32)], [empty], [empty]
    for region in regions:
        first = region.address + -region.address % 4
        all_words = np.frombuffer(region.data, dtype="<u4", count=max(len(region.data) - (first - region.address), 0) // 4,
                                  offset=min(first - region.address, len(region.data)))
        low, high = -(-(region.starts - first) // 4), (region.ends - first) // 4
        inside = np.zeros(len(all_words) + 2, dtype=np.int64)
        np.add.at(inside, low, 1)
        np.add.at(inside, np.maximum(high, low), -1)
        at = np.flatnonzero(np.cumsum(inside)[:len(all_words)] > 0)
        address.append(first + 4 * at)
        word.append(all_words[at])
        wrong.append(region.starts[(region.starts % 4 != 0) & (region.ends > region.starts)])
        starts += [region.starts, region.entered]
    where, w = np.concatenate(address), np.concatenate(word).astype(np.uint32)
    n = len(where)
    form = words.form(w)
    kind = _kinds(w, form)
    target = np.where(form != words.NONE, words.target(where, w, form), NONE)
    literal = form == words.LITERAL
    data = _literals(where, w, target, literal)
    kind[data] = Kind.TRAP
    form[data] = words.NONE
    target[(form == words.NONE) | (form == words.ADD) | (form == words.ADRP)] = NONE

    flow = (form != words.NONE) & (form <= words.BRANCH14)
    jump = np.full(n, NONE, dtype=np.int64)
    jump[flow] = _index(where, target[flow])
    r = registers.general(w)
    r = registers.Registers(np.where(data, 0, r.reads).astype(np.uint32), np.where(data, 0, r.writes).astype(np.uint32),
                            r.reads_flags & ~data, r.writes_flags & ~data, r.vector & ~data)
    spans = [(x.address, x.address + len(x.data)) for x in regions]
    ops = addresses.operations(np.where(data, np.uint32(0), w).astype(np.uint32), where, spans)
    entries = _index(where, np.concatenate(starts))
    found = addresses.find(w, where, kind, jump, entries[entries != NONE], ops, r)

    use, field = np.zeros(n, dtype=np.uint8), np.zeros(n, dtype=np.uint8)
    use[flow], field[flow | literal & ~data | (form == words.ADR)] = Use.FLOW, Field.INSTRUCTION
    use[form == words.ADR] = Use.ADDRESS
    use[form == words.LITERAL] = Use.MEMORY
    some = (target == NONE) & (found.target != NONE)
    target[some] = found.target[some]
    field[some] = Field.SUM
    use[some] = np.where(ops.memory[some], Use.MEMORY, Use.ADDRESS)
    caught = np.array([(found.value[d], found.value[d] + addresses.PAGE, where[c]) for d, calls in found.carried.items()
                       for c in sorted(calls)], dtype=np.int64).reshape(-1, 3)
    chains = np.concatenate([np.zeros((0, 2), dtype=np.int64), *(np.stack([x.starts, x.ends], axis=1) for x in regions)])
    return Code(where, np.full(n, 4, dtype=np.uint8), kind, use, field, np.zeros(n, dtype=np.uint8), target,
                np.concatenate(wrong), chains, found.loose, caught, found.completes, Parts(w, data, r, ops, found, regions))


def _index(where: np.ndarray, addresses_: np.ndarray) -> np.ndarray:
    """The index of the instruction at each address, or NONE."""
    if not len(where):
        return np.full(len(addresses_), NONE, dtype=np.int64)
    at = np.searchsorted(where, addresses_).clip(0, len(where) - 1)
    return np.where(where[at] == addresses_, at, NONE)


def _kinds(w: np.ndarray, form: np.ndarray) -> np.ndarray:
    """uint8, Kind of each word."""
    def like(mask: int, value: int) -> np.ndarray:
        return (w & np.uint32(mask)) == np.uint32(value)

    kind = np.zeros(len(w), dtype=np.uint8)
    kind[like(0xFC000000, 0x94000000)] = Kind.CALL
    kind[like(0xFC000000, 0x14000000)] = Kind.JUMP
    kind[(form == words.BRANCH19) | (form == words.BRANCH14)] = Kind.BRANCH
    register = like(0xFE000000, 0xD6000000)
    opc = (w >> np.uint32(21)) & np.uint32(15)
    kind[register & ((opc == 0) | (opc == 8))] = Kind.JUMP_INDIRECT
    kind[register & ((opc == 1) | (opc == 9))] = Kind.CALL_INDIRECT
    kind[register & ((opc == 2) | (opc == 4))] = Kind.RETURN
    kind[like(0xFFFFFFFF, 0xD503201F)] = Kind.NOP
    kind[like(0xFFFFFF3F, 0xD503241F)] = Kind.MARK                           # bti
    kind[like(0xFFE0001F, 0xD4200000) | like(0xFFFF0000, 0)] = Kind.TRAP     # brk, udf
    return kind


def _literals(where: np.ndarray, w: np.ndarray, target: np.ndarray, literal: np.ndarray) -> np.ndarray:
    """bool: words that an `ldr` (literal) reads; without mapping symbols nothing else says that they are data."""
    out = np.zeros(len(w), dtype=bool)
    opc, simd = (w >> np.uint32(30)).astype(np.int64), (w >> np.uint32(26)) & np.uint32(1) != 0
    reads = literal & (simd | (opc != 3))
    size = np.where(simd, 4 << opc, np.where(opc == 1, 8, 4))
    for step in range(0, 16, 4):
        at = _index(where, target[reads & (size > step)] + step)
        out[at[at != NONE]] = True
    return out


def absolutes(code: Code) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Operands that may be absolute addresses: (instruction index, address of the field, its size, its value).

    Literals of 8 bytes, and constants that movz and movk make together; the latter have no field to write: size 0."""
    parts: Parts = code.parts
    load = np.flatnonzero(((parts.word & np.uint32(0xFF000000)) == 0x58000000) & ~parts.data)
    found = []
    for region in parts.regions:
        mine = load[(code.target[load] >= region.address) & (code.target[load] + 8 <= region.address + len(region.data))]
        values: np.ndarray = np.ndarray((max(len(region.data) - 7, 0),), dtype="<i8", buffer=region.data, strides=(1,))
        found.append((mine, code.target[mine], np.full(len(mine), 8), values[code.target[mine] - region.address]))
    made = np.flatnonzero(((parts.word & np.uint32(0x7F800000)) == 0x72800000) | (
        (parts.word & np.uint32(0x7F800000)) == 0x52800000))
    value = parts.found.value[made]
    found.append((made[value != NONE], code.address[made[value != NONE]], np.zeros((value != NONE).sum(), np.int64),
                  value[value != NONE]))
    return tuple(np.concatenate(c).astype(np.int64) for c in zip(*found))  # type: ignore[return-value]


def edits(code: Code, index: np.ndarray, stubs: tuple[int, int], far: bool) -> list[list[tuple[str, int]]]:
    """For each instruction in `index`, which refers to an entry, the fields that make it refer to a stub in `stubs`,
    [low, high): (name of a plan_types.Reroute, address).  [] where there are none.

    A branch or adr must reach; an add to a page becomes an adr that does, or is rewritten with all adrps of its web.
    far: there is no other way to make a function updatable, so webs that registers keep over calls are rewritten, too."""
    parts: Parts = code.parts
    at, word = code.address[index], parts.word[index]
    sums = code.field[index] == Field.SUM
    simple = np.where(sums, word & np.uint32(31) | np.uint32(0x10000000), word).astype(np.uint32)
    reaches = np.ones(len(index), dtype=bool)
    for goal in stubs:
        reaches &= words.encode(at, simple, np.full(len(at), goal, dtype=np.int64))[1]
    out: list[list[tuple[str, int]]] = []
    for i, a, near, is_sum in zip(index.tolist(), at.tolist(), reaches.tolist(), sums.tolist()):
        web = parts.found.webs.get(i)
        if far:
            web = web or parts.found.kept.get(i)
        if near:
            out.append([("TO_ADR" if is_sum else "INSTRUCTION", a)])
        elif is_sum and web:
            out.append([("INSTRUCTION", a), *(("INSTRUCTION", int(code.address[d])) for d in web)])
        else:
            out.append([])
    return out


def possible_operands(data: bytes, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nothing: words that are no instructions cannot hide others between them."""
    return []


def possible_targets(data: bytes, start: int, entries: np.ndarray) -> np.ndarray:
    """As possible_operands."""
    return np.zeros(0, dtype=np.int64)


def scaled_loads(code: Code) -> np.ndarray:
    """bool, one an instruction: loads a jump table entry of 1, 2 or 4 bytes at [base, index]."""
    parts: Parts = code.parts
    w = parts.word
    whole = ((w & np.uint32(0x3F200C00)) == 0x38200800) & ((w >> np.uint32(22)) & np.uint32(3) != 0)
    return whole & ((w >> np.uint32(30)) != 3)


def jump_tables(code: Code, contents: Callable[[int], bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Entries of compact jump tables: (index of an instruction in the function, address that an entry leads to).

    `ldrb/ldrh/ldr w, [table, index]; adr x, label; add x, x, w, sxtb #2; br x`: label + 4 * entry.  contents: what the
    file has from an address on.  Signed and unsigned entries are both tried, as far as they stay in the function."""
    parts: Parts = code.parts
    base = parts.found.base
    loads = np.flatnonzero(scaled_loads(code) & (base != NONE))
    jumps = np.flatnonzero(code.kind == Kind.JUMP_INDIRECT)
    source: list[int] = []
    target: list[int] = []
    starts = distinct(code.chains[:, 0])
    for i in loads.tolist():
        k = int(np.searchsorted(jumps, i))
        if k == len(jumps) or jumps[k] - i > 8:
            continue
        near = np.arange(max(i - 6, 0), int(jumps[k]))
        labels = near[(parts.word[near] & np.uint32(0x9F000000)) == 0x10000000]
        chain = int(np.searchsorted(starts, code.address[i], side="right"))
        low, high = int(starts[chain - 1]), int(starts[chain]) if chain < len(starts) else int(code.address[-1]) + 4
        size = 1 << int(parts.word[i] >> 30)
        data = contents(int(base[i]))[:size << 16]
        for dtype in (f"<i{size}", f"<u{size}"):
            entries = np.frombuffer(data[:len(data) // size * size], dtype=dtype).astype(np.int64)
            for label in labels.tolist():
                where = int(code.target[label]) + 4 * entries
                outside = np.flatnonzero((where < low) | (where >= high))
                where = where[:outside[0]] if len(outside) else where
                where = distinct(where[_index(code.address, where) != NONE])
                source += [i] * len(where)
                target += where.tolist()
    return np.array(source, dtype=np.int64), np.array(target, dtype=np.int64)


def stack_arguments(code: Code, register: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The indices of instructions that may touch their function's stack arguments: the CFA, or above it.

    register, offset: where the CFA is before each instruction (DWARF number, or -1 for "not known").  sp and x29 are
    followed; x29 from where the function sets it.  A copy of sp in another register counts where it is not below the
    CFA: compilers make it to reach the arguments (variadic functions)."""
    parts: Parts = code.parts
    w, ops = parts.word, parts.operations
    rn, rd = (w >> np.uint32(5)) & np.uint32(31), w & np.uint32(31)
    add = (w & np.uint32(0xFF800000)) == 0x91000000
    shift = np.where((w >> np.uint32(22)) & np.uint32(1) != 0, 12, 0)
    immediate = ((w >> np.uint32(10)).astype(np.int64) & 0xFFF) << shift
    reach = np.where(add, immediate, ops.offset)
    offset = np.maximum(offset, np.where(register == DWARF_SP, _prologue_depth(code), 0))
    frame = _frame_pointer(code, add & (rd == 29) & (rn == 31) & (register == DWARF_SP), offset - immediate)
    frame = np.where(register == DWARF_FP, offset, frame)
    # CFA - base.  Where x29 is the frame's register, compilers name arguments by it, and the frame's lower end by sp.
    below = np.where(rn == 31, np.where(register == DWARF_SP, offset, NONE), np.where(rn == 29, frame, NONE))
    uses = (ops.memory | ops.indexed | add & (rd != 31) & (rd != 29)) & ~parts.data
    touches = uses & (below != NONE) & ((reach >= below) | ops.indexed)
    unknown = (register != DWARF_SP) & (register != DWARF_FP) & ~np.isin(code.kind, (Kind.NOP, Kind.MARK, Kind.TRAP))
    return np.flatnonzero(touches | unknown)


def _prologue_depth(code: Code) -> np.ndarray:
    """By how much sp is below its value at the entry, in the straight line of code that a function begins with; 0 behind it.

    clang describes a prologue only at its end, unless it is asked for asynchronous tables."""
    ops, w = code.parts.operations, code.parts.word
    sub = (w & np.uint32(0xFF8003FF)) == 0xD10003FF
    pushed = np.where(sub, ((w >> np.uint32(10)).astype(np.int64) & 0xFFF) << np.where(w & np.uint32(1 << 22) != 0, 12, 0), 0)
    writes_back = ((w & np.uint32(0x3B800000)) == 0x29800000) | ((w & np.uint32(0x3B200C00)) == 0x38000C00)
    pushed = np.where(writes_back & ops.memory & (((w >> np.uint32(5)) & np.uint32(31)) == 31) & (ops.offset < 0),
                      -ops.offset, pushed)
    first = np.searchsorted(code.address, distinct(code.chains[:, 0]))
    first = distinct(first[first < len(w)])
    home = first[(np.searchsorted(first, np.arange(len(w)), side="right") - 1).clip(0)] if len(first) else np.arange(len(w))
    total, flows = (np.concatenate([[0], np.cumsum(x)]) for x in (pushed, code.kind > Kind.MARK))
    here = np.arange(len(w))
    return np.where(flows[here] == flows[home], total[here] - total[home], 0)


def _frame_pointer(code: Code, sets: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """CFA - x29 at each instruction, NONE where its function does not set x29 from sp in a way that is understood."""
    starts = distinct(code.chains[:, 0])
    chain = np.searchsorted(starts, code.address, side="right")
    out = np.full(len(starts) + 1, NONE, dtype=np.int64)
    at = np.flatnonzero(sets)
    out[chain[at[::-1]]] = distance[at[::-1]]
    return out[chain]


def switches_stack(code: Code) -> np.ndarray:
    """bool, one an instruction: gives sp a value that is not made of sp or x29, or makes a system call.

    A first look at much code: aarch64_stack.moves_stack has the last word."""
    w = code.parts.word
    rn = w >> 5 & 31
    into = ((w & 31) == 31) & (rn != 31) & (rn != 29) & (
        ((w & 0x3F800000) == 0x11000000) | ((w & 0x3FE00000) == 0x0B200000)          # add, sub: immediate, extended register
        | ((w & 0x1F800000) == 0x12000000) & ((w >> 29 & 3) != 3))                   # and, orr, eor with an immediate
    return (into | ((w & 0xFFE0001F) == 0xD4000001)) & ~code.parts.data               # svc


def stack_moves(code: Code, writes_sp: np.ndarray) -> np.ndarray:
    """uint8, StackMove of each instruction: none changes the alignment."""
    return np.full(len(code.address), StackMove.KEEPS, dtype=np.uint8)
