"""Where x86-64 instructions begin and end, for millions of them at once.

A disassembler spends its time on operands and text; whoever looks for references needs lengths and the places of
opcode, ModRM, displacement and immediate.  In x86 code these follow from the leading bytes alone:

    legacy prefixes | REX, VEX or EVEX | opcode (1 to 3 bytes) | ModRM | SIB | displacement | immediate

so `lengths` computes, with numpy and tables, the length that an instruction would have at *every* byte, `walk` follows
the chain of them from known starts, and `fields` takes the instructions on the chain apart.  x86_64_registers.py asks
capstone about one instruction of each encoding that occurs, and compares the length: that confirms all of them.

Specification: Intel SDM volume 2, chapter 2 and appendix A; AMD64 manual volume 3 for what Intel leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PADDING = 32          # bytes that must follow the code in the arrays given to these functions
LEGACY, VEX, EVEX = range(3)

_CHUNK = 1 << 19
_MAX_PREFIXES = 14    # an instruction has at most 15 bytes


def _bytes(*spans: int | tuple[int, int]) -> list[int]:
    """Opcode numbers: single ones, and (first, last) ranges."""
    return [n for s in spans for n in (range(s[0], s[1] + 1) if isinstance(s, tuple) else (s,))]


def _table(size: int, *marks: tuple[list[int], int]) -> np.ndarray:
    out = np.zeros(size, dtype=np.uint8)
    for where, value in marks:
        out[where] = value
    return out


_ALU = [row + column for row in range(0, 0x40, 8) for column in range(8)]
_PREFIX = _table(256, (_bytes(0x26, 0x2E, 0x36, 0x3E, (0x64, 0x67), 0xF0, 0xF2, 0xF3), 1))
# The tables below have one row an opcode map: one-byte, 0F, 0F 38, 0F 3A; VEX and EVEX use the numbers 1 to 3, too.
_INVALID = [_table(256, (_bytes(0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x82,
                                0x9A, 0xCE, (0xD4, 0xD6), 0xEA), 1)),
            _table(256, (_bytes(0x04, 0x0A, 0x0C, (0x20, 0x27), 0x36, 0x39, (0x3B, 0x3F), 0xA6, 0xA7), 1))]
_MODRM = [_table(256, ([n for n in _ALU if n & 7 < 4], 1),
                 (_bytes(0x63, 0x69, 0x6B, 0x80, 0x81, (0x83, 0x8F), 0xC0, 0xC1, 0xC6, 0xC7, (0xD0, 0xD3),
                         (0xD8, 0xDF), 0xF6, 0xF7, 0xFE, 0xFF), 1)),
          1 - _table(256, (_bytes((0x05, 0x09), 0x0B, 0x0E, (0x30, 0x35), 0x37, 0x77, (0x80, 0x8F), (0xA0, 0xA2),
                                  (0xA8, 0xAA), (0xC8, 0xCF)), 1)),
          _table(256, (_bytes((0, 255)), 1)), _table(256, (_bytes((0, 255)), 1))]
# Immediate bytes that do not depend on prefixes; Jz of calls and jumps is four bytes in 64-bit mode whatever they say.
_IMM = [_table(256, ([n for n in _ALU if n & 7 == 4], 1),
               (_bytes(0x6A, 0x6B, (0x70, 0x80), 0x83, 0xA8, (0xB0, 0xB7), 0xC0, 0xC1, 0xC6, 0xCD, (0xE0, 0xE7), 0xEB), 1),
               (_bytes(0xC2, 0xCA), 2), ([0xC8], 3), (_bytes(0xE8, 0xE9), 4), (_bytes((0xA0, 0xA3)), 8)),
        _table(256, (_bytes(0x0F, (0x70, 0x73), 0xA4, 0xAC, 0xBA, 0xC2, (0xC4, 0xC6)), 1), (_bytes((0x80, 0x8F)), 4))]
# Iz: four bytes, two with an operand-size prefix (and no REX.W); B8 to BF take eight with REX.W.
_IMM_Z = _table(256, ([n for n in _ALU if n & 7 == 5], 1), (_bytes(0x68, 0x69, 0x81, 0xA9, (0xB8, 0xBF), 0xC7), 1))
_MOV_IMM = _table(256, (_bytes((0xB8, 0xBF)), 1))
_XOP_IMM = np.array([1, 0, 4], dtype=np.uint8)             # XOP maps 8, 9, 10

_modrm = np.arange(256)
_SIB = ((_modrm < 0xC0) & (_modrm & 7 == 4)).astype(np.uint8)
_DISP = np.select([_modrm >> 6 == 1, _modrm >> 6 == 2, (_modrm >> 6 == 0) & (_modrm & 7 == 5)], [1, 4, 4], 0
                  ).astype(np.uint8)
_TAIL = 1 + _SIB + _DISP       # bytes of ModRM, SIB and displacement (disp32 without a base: 4 more)
_ONE = 1 + _IMM[0] + 4 * _IMM_Z


def lengths(code: np.ndarray) -> np.ndarray:
    """The length of the instruction that begins at each byte; 0 where none can.

    `code`: uint8, PADDING bytes longer than the code.  Returns uint8, one for each byte before the padding.
    """
    n = len(code) - PADDING
    out = np.empty(n, dtype=np.uint8)
    for at in range(0, n, _CHUNK):
        end = min(at + _CHUNK, n)
        out[at:end] = _lengths(code[at:end + PADDING])
    return out


def _lengths(b: np.ndarray) -> np.ndarray:
    n = len(b) - PADDING + _MAX_PREFIXES + 2   # what follows the prefixes of the last byte's instruction counts, too
    tail = _TAIL[b]
    no_base = ((b[:-1] & 0xC7) == 4) & ((b[1:] & 7) == 5)
    tail[:-1] += no_base.view(np.uint8) << 2
    # Without prefixes; `short` is how much an operand-size prefix takes off.
    plain = _ONE[b[:n]] + _MODRM[0][b[:n]] * tail[1:n + 1]
    plain[_INVALID[0][b[:n]] != 0] = 0
    short = _IMM_Z[b[:n]] << 1
    at = np.flatnonzero((b[:n] & 0xFE) == 0xF6)            # TEST has an immediate, the rest of its group has none
    test = at[(b[at + 1] & 0x38) <= 8]
    wide = (b[test] == 0xF7).view(np.uint8)
    plain[test] += 1 + 3 * wide
    short[test] = wide << 1
    at = np.flatnonzero(b[:n] == 0x0F)
    op = b[at + 1]
    size = 2 + _MODRM[1][op] * tail[at + 2] + _IMM[1][op]
    size = np.where(op == 0x38, 3 + tail[at + 3], np.where(op == 0x3A, 4 + tail[at + 3], size))
    plain[at] = np.where(_INVALID[1][op] != 0, 0, size)
    for lead, skip in ((0xC5, 2), (0xC4, 3), (0x62, 4)):
        at = np.flatnonzero(b[:n] == lead)
        table = np.ones(len(at), np.uint8) if lead == 0xC5 else b[at + 1] & (0x1F if lead == 0xC4 else 7)
        op = b[at + skip]
        imm = np.where(table == 1, _IMM[1][op] & 1, (table == 3).astype(np.uint8))
        modrm = np.where((table == 1) & (op == 0x77) & (lead != 0x62), 0, tail[at + skip + 1])
        known = (table >= 1) & (table <= 3) | (lead == 0x62) & ((table == 5) | (table == 6))
        plain[at] = np.where(known, skip + 1 + modrm + imm, 0)
    plain[np.flatnonzero((b[:n] == 0x8F) & ((b[1:n + 1] & 0x38) != 0))] = 0    # not POP: XOP, or nothing
    at = np.flatnonzero((b[:n] == 0x8F) & ((b[1:n + 1] & 0x1F) >= 8))
    table = b[at + 1] & 0x1F
    plain[at] = np.where(table <= 10, 4 + tail[at + 4] + _XOP_IMM[table.clip(8, 10) - 8], 0)
    # REX, which counts only next to the opcode; `cut` is the length under an operand-size prefix.
    rex = np.flatnonzero((b[:n - 1] & 0xF0) == 0x40)
    after, w = b[rex + 1], ((b[rex] & 8) != 0).view(np.uint8)
    size = np.where(plain[rex + 1] != 0, plain[rex + 1] + 1 + (w * _MOV_IMM[after] << 2), 0).astype(np.uint8)
    size[(_PREFIX[after] != 0) | ((after & 0xF0) == 0x40)] = 0
    full, cut = plain, plain - short
    rex_cut = np.where(size != 0, size - (1 - w) * short[rex + 1], 0)
    full[rex], cut[rex] = size, rex_cut
    # Legacy prefixes, from right to left: a run of them is resolved one byte a round.
    prefix = np.flatnonzero(_PREFIX[b[:n]])
    full[prefix] = cut[prefix] = 0
    prefix = prefix[prefix < n - 1]
    is_66 = b[prefix] == 0x66
    for _ in range(_MAX_PREFIXES):
        new_full, new_cut = full[prefix + 1], cut[prefix + 1]
        new_cut += new_cut != 0
        new_full = np.where(is_66, new_cut, new_full + (new_full != 0))
        if (new_full == full[prefix]).all() and (new_cut == cut[prefix]).all():
            break
        full[prefix], cut[prefix] = new_full, new_cut
    # mov with an absolute address under an address-size prefix: 4 bytes of it, which compilers never write.
    moffs = (b & 0xFC) == 0xA0
    full[np.flatnonzero((b[:n] == 0x67) & (moffs[1:n + 1] | ((b[1:n + 1] & 0xF0) == 0x40) & moffs[2:n + 2]))] = 0
    out = full[:len(b) - PADDING]
    out[out > 15] = 0
    return out


def walk(length: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow the chains of instructions from each of `starts` (ascending offsets) to its end in `ends`.

    Returns the offsets of the instructions, and the offsets where it went wrong: a byte that begins no instruction, or
    the last instruction before an end, which reaches beyond it and is left out.
    """
    steps = length.tobytes()
    found: list[int] = []
    wrong: list[int] = []
    append = found.append
    for p, end in zip(starts.tolist(), ends.tolist()):
        while p < end:
            step = steps[p]
            if step:
                append(p)
                p += step
            else:
                wrong.append(p)
                p += 1
        if p != end and found:
            wrong.append(found.pop())
    return np.array(found, dtype=np.int64), np.array(wrong, dtype=np.int64)


@dataclass(frozen=True)
class Fields:
    """Parts of instructions, one array element each.  Sizes and positions inside the instruction are bytes."""
    encoding: np.ndarray    # uint8: LEGACY, VEX, EVEX
    map: np.ndarray         # uint8: opcode map
    opcode: np.ndarray      # uint8
    modrm: np.ndarray       # int16: the ModRM byte, -1 where there is none
    sib: np.ndarray         # int16: the SIB byte, -1
    rex: np.ndarray         # uint8: the REX byte, 0; for VEX and EVEX 0x48 where W is set
    mandatory: np.ndarray   # uint8: bit 0: 66, bit 1: F2, bit 2: F3, bit 3: FS or GS, bit 4: 67
    disp_at: np.ndarray     # uint8: position of the displacement, also where its size is 0
    disp_size: np.ndarray   # uint8
    imm_size: np.ndarray    # uint8: the immediate (or branch displacement) is the last so many bytes


def fields(code: np.ndarray, starts: np.ndarray, length: np.ndarray) -> Fields:
    """Take the instructions at `starts` apart; `length` is that of each."""
    columns = [_fields(code, starts[i:i + _CHUNK], length[i:i + _CHUNK]) for i in range(0, max(len(starts), 1), _CHUNK)]
    return Fields(*(np.concatenate(c) for c in zip(*columns)))


def _fields(code: np.ndarray, starts: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, ...]:
    at = starts.copy()
    mandatory = np.zeros(len(at), dtype=np.uint8)
    active = np.flatnonzero(_PREFIX[code[at]])
    while len(active):
        byte = code[at[active]]
        mandatory[active] |= ((byte == 0x66) | ((byte == 0xF2) << 1) | ((byte == 0xF3) << 2)
                              | (((byte & 0xFE) == 0x64) << 3) | ((byte == 0x67) << 4)).astype(np.uint8)
        at[active] += 1
        active = active[(_PREFIX[code[at[active]]] != 0) & (at[active] - starts[active] < _MAX_PREFIXES)]
    byte = code[at]
    has_rex = (byte & 0xF0) == 0x40
    rex = np.where(has_rex, byte, 0).astype(np.uint8)
    at += has_rex
    lead = code[at]
    table = np.zeros(len(at), dtype=np.uint8)
    encoding = np.zeros(len(at), dtype=np.uint8)
    two = np.flatnonzero(lead == 0x0F)
    second = code[at[two] + 1]
    table[two] = np.where(second == 0x38, 2, np.where(second == 0x3A, 3, 1))
    at[two] += np.where(table[two] == 1, 1, 2)
    for byte, skip, kind in ((0xC5, 2, VEX), (0xC4, 3, VEX), (0x62, 4, EVEX)):
        some = np.flatnonzero(lead == byte)
        first = code[at[some] + 1]
        if byte != 0xC5:
            rex[some] = np.where((code[at[some] + 2] & 0x80) != 0, 0x48, 0)
        table[some] = 1 if byte == 0xC5 else first & (0x1F if byte == 0xC4 else 7)
        pp = code[at[some] + (1 if byte == 0xC5 else 2)] & 3
        mandatory[some] |= np.array([0, 1, 4, 2], dtype=np.uint8)[pp]
        encoding[some] = kind
        at[some] += skip
    xop = np.flatnonzero((lead == 0x8F) & ((code[at + 1] & 0x1F) >= 8))
    table[xop] = code[at[xop] + 1] & 0x1F
    encoding[xop] = VEX
    at[xop] += 3
    opcode = code[at]
    has_modrm = np.stack(_MODRM)[np.minimum(table, 3), opcode] != 0
    has_modrm |= (encoding == EVEX) | (encoding == VEX) & ((opcode != 0x77) | (table != 1))
    modrm = np.where(has_modrm, code[at + 1].astype(np.int16), -1)
    at += 1 + has_modrm
    has_sib = has_modrm & (modrm < 0xC0) & ((modrm & 7) == 4)
    sib = np.where(has_sib, code[at].astype(np.int16), -1)
    at += has_sib
    disp = np.where(has_modrm, _DISP[modrm & 0xFF], 0).astype(np.uint8)
    disp += ((has_sib & (modrm < 0x40) & ((sib & 7) == 5)) << 2).astype(np.uint8)
    disp_at = (at - starts).astype(np.uint8)
    return encoding, table, opcode, modrm, sib, rex, mandatory, disp_at, disp, length - disp_at - disp
