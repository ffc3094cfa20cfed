"""Just enough x86-64 decoding to walk over compiled code: where an instruction ends, which fields it has.

Attach reads the code of patch objects (which calls did the assembler resolve by itself, which instruction does a
relocated field belong to, does the function touch stack arguments), and must start fast: importing capstone costs
more than everything else attach does.  So this is a length decoder with the operand fields that those questions need;
what registers an instruction reads and writes is capstone's business (x86_64_reliance.py).

An opcode that 64-bit code cannot contain raises ValueError: a walk that lost its place must stop, never guess.
tests/unit/test_link_x86_64_decode.py holds this decoder against capstone over whole libraries.

Specification: Intel SDM volume 2, chapter 2 (formats) and appendix A (opcode maps); AMD APM volume 3 for XOP.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

RSP, RBP = 4, 5

# Immediate kinds of the opcode tables; Z: 2 bytes with a 66 prefix and 4 otherwise, V: 8 bytes with REX.W, else as Z.
_NONE, _B, _W, _Z, _V, _D, _MOFFS, _WB = 0, 1, 2, 3, 4, 5, 6, 7
_MODRM, _BAD, _GROUP3 = 0x10, 0x20, 0x40


class Insn(NamedTuple):
    """One instruction.  Offsets count from the start of the decoded bytes; -1: the instruction has no such field."""
    at: int
    end: int
    map: int        # 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A; VEX, EVEX, XOP maps by their own number
    opcode: int
    modrm: int
    modrm_at: int   # offset of the ModRM byte
    rex_at: int     # offset of the REX prefix
    wide: bool      # has an operand-size prefix (66)
    rex: int        # W 8, R 4, X 2, B 1 (also from VEX, EVEX: already inverted)
    base: int       # register number of the memory operand's base; -1: none
    index: int      # register number of its index; -1: none
    scale: int      # 1, 2, 4, 8
    disp_at: int    # offset of the displacement
    disp_size: int  # 0, 1, 4, 8
    imm_at: int     # offset of the first immediate (a branch's displacement is an immediate here)
    imm_size: int
    vex: bool       # VEX, EVEX or XOP
    vvvv: int       # register in VEX.vvvv; -1: none

    @property
    def rip_relative(self) -> bool:
        return self.modrm >= 0 and self.modrm & 0xC7 == 5

    @property
    def memory(self) -> bool:
        """Has a ModRM memory operand."""
        return 0 <= self.modrm < 0xC0

    @property
    def reg(self) -> int:
        """Register number in ModRM.reg."""
        return (self.modrm >> 3 & 7) | (self.rex & 4) << 1


def _one_byte_map() -> bytes:
    t = bytearray(256)
    for op in range(0, 0x40, 8):
        t[op:op + 8] = bytes([_MODRM, _MODRM, _MODRM, _MODRM, _B, _Z, _BAD, _BAD])
    for op in (0x26, 0x2E, 0x36, 0x3E, *range(0x40, 0x50), 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3):
        t[op] = _BAD                                       # prefixes come before the one REX, which comes last
    for op in (0x60, 0x61, 0x82, 0x9A, 0xCE, 0xD4, 0xD5, 0xD6, 0xEA):
        t[op] = _BAD
    t[0x63] = _MODRM
    t[0x68], t[0x69], t[0x6A], t[0x6B] = _Z, _MODRM | _Z, _B, _MODRM | _B
    for op in range(0x70, 0x80):
        t[op] = _B
    t[0x80], t[0x81], t[0x83] = _MODRM | _B, _MODRM | _Z, _MODRM | _B
    for op in range(0x84, 0x90):
        t[op] = _MODRM
    for op in range(0xA0, 0xA4):
        t[op] = _MOFFS
    t[0xA8], t[0xA9] = _B, _Z
    for op in range(0xB0, 0xB8):
        t[op], t[op + 8] = _B, _V
    t[0xC0] = t[0xC1] = t[0xC6] = _MODRM | _B
    t[0xC7] = _MODRM | _Z
    t[0xC2] = t[0xCA] = _W
    t[0xC8], t[0xCD] = _WB, _B
    for op in (*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xFE, 0xFF):
        t[op] = _MODRM
    for op in range(0xE0, 0xE8):
        t[op] = _B
    t[0xE8] = t[0xE9] = _D
    t[0xEB] = _B
    t[0xF6], t[0xF7] = _MODRM | _GROUP3 | _B, _MODRM | _GROUP3 | _Z
    return bytes(t)


def _two_byte_map() -> bytes:
    t = bytearray([_MODRM]) * 256
    for op in (0x04, 0x0A, 0x0C, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, *range(0x3B, 0x40), 0x7A, 0x7B, 0xA6, 0xA7):
        t[op] = _BAD
    for op in (0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, *range(0x30, 0x36), 0x37, 0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9,
               0xAA, *range(0xC8, 0xD0)):
        t[op] = _NONE
    for op in range(0x80, 0x90):
        t[op] = _D
    for op in (0x0F, 0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6):
        t[op] = _MODRM | _B
    return bytes(t)


_MAP0 = _one_byte_map()
_MAP1 = _two_byte_map()
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


def decode(code: bytes | bytearray | memoryview, at: int) -> Insn:
    """The instruction at offset `at`.  Raises ValueError when there is none, IndexError when it is cut short."""
    i = at
    wide = rex = 0
    rex_at = vvvv = -1
    vex = False
    op = code[i]
    while op in _PREFIXES:
        if op == 0x66:
            wide = 1
        i += 1
        op = code[i]
    if op & 0xF0 == 0x40:
        rex = op & 15
        rex_at = i
        i += 1
        op = code[i]
    i += 1
    if op == 0x0F:
        op = code[i]
        i += 1
        if op == 0x38 or op == 0x3A:
            number = 2 if op == 0x38 else 3
            op = code[i]
            i += 1
            form = _MODRM if number == 2 else _MODRM | _B
        else:
            number, form = 1, _MAP1[op]
    elif op == 0xC5 or op == 0xC4 or op == 0x62 or (op == 0x8F and code[i] & 31 >= 8):
        vex = True
        escape, b0 = op, code[i]
        if escape == 0xC5:
            number, rex, vvvv = 1, (~b0 >> 5) & 4, (~b0 >> 3) & 15
            i += 1
        else:
            b1 = code[i + 1]
            number, rex, vvvv = b0 & (7 if escape == 0x62 else 31), (~b0 >> 5 & 7) | (b1 >> 4 & 8), (~b1 >> 3) & 15
            i += 3 if escape == 0x62 else 2
        op = code[i]
        i += 1
        if escape == 0x8F:
            form = {8: _MODRM | _B, 9: _MODRM, 10: _MODRM | _D}.get(number, _BAD)
        elif number == 1:
            form = _NONE if op == 0x77 and escape != 0x62 else _MAP1[op] & ~_BAD | _MODRM
        else:
            form = {2: _MODRM, 3: _MODRM | _B, 5: _MODRM, 6: _MODRM}.get(number, _BAD)
    else:
        number, form = 0, _MAP0[op]
    if form & _BAD:
        raise ValueError(f"no x86-64 instruction at {at:#x}: {bytes(code[at:at + 8]).hex()}")

    modrm = modrm_at = base = index = disp_at = -1
    scale, disp_size = 1, 0
    if form & _MODRM:
        modrm, modrm_at = code[i], i
        i += 1
        # Moves to and from control and debug registers have no memory form whatever ModRM.mod says.
        if modrm < 0xC0 and not (number == 1 and 0x20 <= op <= 0x23):
            mod, rm = modrm >> 6, modrm & 7
            if rm == 4:
                sib = code[i]
                i += 1
                scale = 1 << (sib >> 6)
                index = (sib >> 3 & 7) | (rex & 2) << 2
                if index == RSP:
                    index = -1
                rm = sib & 7
                if rm == 5 and mod == 0:
                    disp_size = 4
                else:
                    base = rm | (rex & 1) << 3
            elif rm == 5 and mod == 0:
                disp_size = 4
            else:
                base = rm | (rex & 1) << 3
            if mod:
                disp_size = 1 if mod == 1 else 4
            if disp_size:
                disp_at = i
                i += disp_size
        if form & _GROUP3 and modrm & 0x30:
            form = _MODRM                                  # only TEST, /0 and /1, has an immediate
    kind = form & 7
    imm_at, size = -1, 0
    if kind:
        if kind == _B:
            size = 1
        elif kind == _D:
            size = 4
        elif kind == _Z:
            size = 2 if wide and not rex & 8 else 4
        elif kind == _V:
            size = 8 if rex & 8 else 2 if wide else 4
        elif kind == _W:
            size = 2
        elif kind == _WB:
            size = 3
        else:
            size = 4 if 0x67 in code[at:i - 1] else 8      # moffs
        imm_at = i
        i += size
    if i > len(code):
        raise IndexError(f"instruction at {at:#x} is cut short")
    return Insn(at, i, number, op, modrm, modrm_at, rex_at, bool(wide), rex, base, index, scale, disp_at, disp_size,
                imm_at, size, vex, vvvv)


def reg_is_opcode(i: Insn) -> bool:
    """ModRM.reg extends the opcode instead of naming a register."""
    return i.map == 0 and (i.opcode in (0x80, 0x81, 0x83, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF)
                           or 0xD0 <= i.opcode < 0xD4) or i.map == 1 and i.opcode == 0xBA


_STORES_0 = frozenset((0x86, 0x87, 0x88, 0x89, 0x8C, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7, 0xD0, 0xD1, 0xD2, 0xD3, 0xFE))
_STORES_1 = frozenset((0x11, 0x13, 0x17, 0x29, 0x2B, 0x7E, 0x7F, *range(0x90, 0xA0), 0xA4, 0xA5, 0xAB, 0xAC, 0xAD,
                       0xB0, 0xB1, 0xB3, 0xBA, 0xBB, 0xC0, 0xC1, 0xC3, 0xC7, 0xD6, 0xE7))


def may_write_memory(i: Insn) -> bool:
    """The instruction may store to its memory operand; says yes for a few that do not (bt, vector loads by 7E)."""
    if not i.memory:
        return False
    if i.map == 0:
        extension = i.modrm >> 3 & 7
        if i.opcode < 0x38:
            return i.opcode & 6 == 0                      # arithmetic with memory as destination
        if i.opcode in (0x80, 0x81, 0x83):
            return extension != 7                         # cmp
        if i.opcode in (0xF6, 0xF7):
            return extension in (2, 3)
        if i.opcode == 0xFF:
            return extension in (0, 1)
        return i.opcode in _STORES_0 or 0xD8 <= i.opcode < 0xE0
    return i.map == 1 and i.opcode in _STORES_1 or i.map > 3


@lru_cache(maxsize=1 << 14)
def walk(code: bytes, start: int, end: int) -> tuple[Insn, ...]:
    """All instructions of code[start:end], in order; remembered, because several questions are asked of each function.

    Raises ValueError where there is none, or when the last one reaches beyond `end`."""
    out: list[Insn] = []
    at = start
    try:
        while at < end:
            insn = decode(code, at)
            out.append(insn)
            at = insn.end
    except IndexError:
        raise ValueError(f"instruction at {at:#x} is cut short") from None
    if at != end:
        raise ValueError(f"instruction at {out[-1].at:#x} reaches beyond its function, {end:#x}")
    return tuple(out)


def is_call(insn: Insn) -> bool:
    return insn.map == 0 and insn.opcode == 0xE8


def is_jump(insn: Insn) -> bool:
    """Direct jump, conditional or not, any size."""
    op = insn.opcode
    if insn.map == 0:
        return op == 0xE9 or op == 0xEB or 0x70 <= op < 0x80 or 0xE0 <= op < 0xE4
    return insn.map == 1 and 0x80 <= op < 0x90 and not insn.vex


def is_indirect_jump(insn: Insn) -> bool:
    return insn.map == 0 and insn.opcode == 0xFF and insn.modrm >> 3 & 7 == 4


def is_indirect_call(insn: Insn) -> bool:
    return insn.map == 0 and insn.opcode == 0xFF and insn.modrm >> 3 & 7 == 2


def is_lea(insn: Insn) -> bool:
    return insn.map == 0 and insn.opcode == 0x8D


def branch_target(code: bytes | bytearray | memoryview, insn: Insn) -> int:
    """Where a direct call or jump goes, as an offset; the displacement is the last field of the instruction."""
    return insn.end + int.from_bytes(code[insn.imm_at:insn.end], "little", signed=True)


def displacement(code: bytes | bytearray | memoryview, insn: Insn) -> int:
    """The signed displacement of the memory operand, 0 without one."""
    if insn.disp_at < 0:
        return 0
    return int.from_bytes(code[insn.disp_at:insn.disp_at + insn.disp_size], "little", signed=True)


def ends_path(insn: Insn) -> bool:
    """Control never reaches the next instruction: jmp, ret, ud2, hlt."""
    op = insn.opcode
    if insn.map == 0:
        return op in (0xE9, 0xEB, 0xC2, 0xC3, 0xCA, 0xCB, 0xF4) or is_indirect_jump(insn)
    return insn.map == 1 and op == 0x0B and not insn.vex
