"""What each AArch64 instruction reads and writes.

General registers and flags follow from the encoding, whose groups are few and regular, for a whole module at once.
Floating-point, vector and SVE data processing has hundreds of forms: those are capstone's, one question for each
word that occurs, with its immediate left out.  capstone's regs_access is not liveness (it misses operands of atomics, and
takes the destination of an instruction that inserts or accumulates for written only), so every error here is on the safe
side: a vector register counts as replaced only where that is certain, and as read elsewhere.  A register that wrongly
counts as needed costs a gate some instructions; the opposite crashes the program.

Bits: 0 to 15 x0 to x15, 16 to 31 v0 to v15, 32 to 47 v16 to v31, 48 to 62 x16 to x30, 63 condition flags and with them
predicates (p0 to p15) and ffr.  The stack pointer has none.  Of v8 to v15 the bit stands for the upper half, which alone a
callee may change: what reads d8 does not read it, what writes d8 clears it.

Specification: Arm Architecture Reference Manual (DDI 0487), C4.1; AAPCS64 (IHI 0055), 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import capstone
import numpy as np
from capstone import arm64

from psu_bin.arch.code import Code, Effects, Kind, RegisterFacts

FLAGS = 1 << 63
_V0_7, _V8_15, _V16_31 = 0xFF << 16, 0xFF << 24, 0xFFFF << 32
_X0_15, _X16, _X17, _X18 = 0xFFFF, 1 << 48, 1 << 49, 1 << 50


def _preserve(bits: int) -> int:
    """`bits` as descriptor.Function.preserve: 0 to 15 and 16 to 19 as they are; 20 v4 to v7; 21 v8 to v15; 22 x18; from 24
    on v16 and v17, and so on in pairs (shim/arch/aarch64/vectors.S)."""
    found = bits & (_X0_15 | 0xF << 16)
    for bit, together in ((20, 0xF << 20), (21, _V8_15), (22, _X18), *((24 + n, 3 << 32 + 2 * n) for n in range(8))):
        if bits & together:
            found |= 1 << bit
    return found


FACTS = RegisterFacts(
    volatile=_X0_15 | _X16 | _X17 | _X18 | _V0_7 | _V8_15 | _V16_31 | FLAGS,
    arguments=0x1FF | _V0_7,               # x8: where a large result goes
    variadic=0,                            # nested functions get their frame in x18, from callers that say so
    results=0b11 | 0xF << 16,              # v0 to v3: homogeneous aggregates
    representable=_X0_15 | _X18 | _V0_7 | _V8_15 | _V16_31, preserve=_preserve,
    odd=FLAGS, spoiled=1 << 9 | 1 << 10 | FLAGS, stub=_X16 | _X17,      # gates use x17, too
    dwarf_volatile=0x7FFFF)                # x0 to x18


@dataclass(frozen=True)
class Registers:
    """Of each word, one bit a register: uint32 for general registers x0 to x30, and bool."""
    reads: np.ndarray
    writes: np.ndarray
    reads_flags: np.ndarray
    writes_flags: np.ndarray
    vector: np.ndarray         # may use vector registers in a way that only capstone knows


def _bit(number: np.ndarray) -> np.ndarray:
    """The bit of general register `number`; none for 31, which is zero or the stack pointer."""
    return np.where(number == 31, 0, np.uint32(1) << (number & 31).astype(np.uint32)).astype(np.uint32)


def general(word: np.ndarray) -> Registers:
    """General registers and flags of `word` (uint32)."""
    w = word
    n = len(w)
    rd, rn, rm, ra = (_bit((w >> np.uint32(s)) & np.uint32(31)) for s in (0, 5, 16, 10))
    reads, writes = np.zeros(n, dtype=np.uint32), np.zeros(n, dtype=np.uint32)
    flags_in, flags_out = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)

    def like(mask: int, value: int) -> np.ndarray:
        return (w & np.uint32(mask)) == np.uint32(value)

    def bit(position: int) -> np.ndarray:
        return (w >> np.uint32(position)) & np.uint32(1) != 0

    # Data processing with an immediate: adr, adrp; add, sub (and with tags); logical; mov wide; bitfield; extract.
    group = like(0x1C000000, 0x10000000)
    writes[group] = rd[group]
    some = group & ~like(0x1F000000, 0x10000000) & ~like(0x1F800000, 0x12800000)
    reads[some] = rn[some]
    some = like(0x7F800000, 0x72800000) | like(0x7F800000, 0x33000000)       # movk, bfm
    reads[some] |= rd[some]
    some = like(0x1F800000, 0x13800000)                                      # extr
    reads[some] |= rm[some]
    flags_out |= like(0x3F800000, 0x31000000) | like(0x7F800000, 0x72000000)  # adds, subs; ands

    # Branches and system instructions.
    flags_in |= like(0xFF000000, 0x54000000)
    some = like(0x7C000000, 0x34000000)                                      # cbz, cbnz, tbz, tbnz
    reads[some] = rd[some]
    writes[like(0xFC000000, 0x94000000)] = 1 << 30                           # bl
    some = like(0xFE000000, 0xD6000000)                                      # br, blr, ret and their signed forms
    reads[some] = rn[some] | np.where(bit(24)[some], rd[some], 0)
    reads[like(0xFEFFF800, 0xD65F0800)] = 1 << 30                            # retaa, retab
    writes[some & ((w >> np.uint32(21)) & np.uint32(3) == 1)] = 1 << 30      # blr
    hint = like(0xFFFFF01F, 0xD503201F)
    number = (w >> np.uint32(5)) & np.uint32(0x7F)
    some = hint & ((number >= 24) & (number <= 31) | (number == 7))          # paciasp, autiasp, xpaclri
    reads[some] = writes[some] = 1 << 30
    some = hint & ((number == 8) | (number == 10) | (number == 12) | (number == 14))   # pacia1716 and others
    reads[some], writes[some] = 3 << 16, 1 << 17
    some = like(0xFFE0001F, 0xD4000001)                                      # svc
    reads[some], writes[some] = 0x1FF, 1
    some = like(0xFFF00000, 0xD5300000) | like(0xFFF80000, 0xD5280000)       # mrs, sysl
    writes[some] = rd[some]
    some = like(0xFFF00000, 0xD5100000) | like(0xFFF80000, 0xD5080000)       # msr, sys
    reads[some] = rd[some]
    flags_in |= like(0xFFFFFFE0, 0xD53B4200)                                 # mrs nzcv
    flags_out |= like(0xFFFFFFE0, 0xD51B4200)
    some = like(0xFFF8F01F, 0xD500401F)                                      # cfinv, xaflag, axflag; msr immediate
    flags_in |= some
    flags_out |= some

    # Data processing with registers.
    group = like(0x0E000000, 0x0A000000)
    low = group & ~bit(28)                                                   # logical, add, sub
    three = group & like(0x1F000000, 0x1B000000)                             # madd and others
    carry = like(0x1FE00000, 0x1A000000)                                     # adc, sbc; rmif, setf
    compare = like(0x1FE00000, 0x1A400000)                                   # ccmp, ccmn
    choose = like(0x1FE00000, 0x1A800000)                                    # csel and others
    two, one = like(0x5FE00000, 0x1AC00000), like(0x5FE00000, 0x5AC00000)
    odd = carry & ((w >> np.uint32(10)) & np.uint32(63) != 0)
    some = low | three | carry & ~odd | choose | two | one
    writes[some] = rd[some]
    some = low | three | carry | choose | two | one | compare
    reads[some] = rn[some]
    some = low | three | carry & ~odd | choose | two | compare & ~bit(11)
    reads[some] |= rm[some]
    reads[three] |= ra[three]
    signing = one & ((w >> np.uint32(16)) & np.uint32(31) == 1)              # pacia and others: rd is both
    reads[signing] |= rd[signing]
    flags_out |= low & bit(29) & (like(0x1F000000, 0x0B000000) | like(0x7F000000, 0x6A000000))
    flags_out |= carry & bit(29) | odd | compare | two & bit(29)
    flags_in |= carry | compare | choose

    # Loads and stores.
    group = like(0x0A000000, 0x08000000)
    simd = bit(26)
    gpr = group & ~simd
    exclusive = like(0x3F000000, 0x08000000)                                 # ldxr, stlr, cas
    cas = exclusive & bit(21) & (like(0x3FA07C00, 0x08A07C00) | like(0xBFA07C00, 0x08207C00))
    pair = like(0x3A000000, 0x28000000)
    literal = like(0x3B000000, 0x18000000)
    rest = like(0x3A000000, 0x38000000)                                      # all with one register and a base
    unscaled = like(0x3B000000, 0x19000000)                                  # ldapur, and tags, mops
    rt2 = ra
    base = group & ~literal
    reads[base] |= rn[base]
    load = bit(22) & exclusive
    some = exclusive & ~cas & bit(22)
    writes[some] |= rd[some] | np.where(bit(21)[some], rt2[some], 0)
    some = exclusive & ~cas & ~bit(22)
    reads[some] |= rd[some] | np.where(bit(21)[some], rt2[some], 0)
    writes[some] |= np.where(bit(23)[some], 0, rm[some])
    double = cas & ~bit(23)
    reads[cas] |= rd[cas] | rm[cas] | np.where(double[cas], rd[cas] << np.uint32(1) | rm[cas] << np.uint32(1), 0)
    writes[cas] |= rm[cas] | np.where(double[cas], rm[cas] << np.uint32(1), 0)
    some = pair & gpr
    load = some & bit(22)
    writes[load] |= rd[load] | rt2[load]
    store = some & ~bit(22)
    reads[store] |= rd[store] | rt2[store]
    back = pair & bit(23)                                                    # pre- and post-index
    writes[back] |= rn[back]
    some = literal & gpr & ~like(0xFF000000, 0xD8000000)                     # but prfm
    writes[some] |= rd[some]
    plain = rest & (bit(24) | ~bit(21))                                      # immediate offsets
    indexed = rest & ~bit(24) & bit(21) & like(0x00000C00, 0x00000800)       # register offset
    atomic = rest & ~bit(24) & bit(21) & ~bit(10) & ~bit(11) & ~simd         # ldadd, swp, ldapr
    authenticated = rest & ~bit(24) & bit(21) & bit(10) & ~simd              # ldraa
    reads[indexed] |= rm[indexed]
    opc = (w >> np.uint32(22)) & np.uint32(3)
    prefetch = (plain | indexed) & ((w >> np.uint32(30)) == 3) & (opc == 2)
    some = (plain | indexed) & gpr & (opc != 0) & ~prefetch
    writes[some] |= rd[some]
    some = (plain | indexed) & gpr & (opc == 0)
    reads[some] |= rd[some]
    back = rest & ~bit(24) & ~bit(21) & bit(10)
    writes[back] |= rn[back]
    reads[atomic] |= rm[atomic]
    writes[atomic] |= rd[atomic]
    writes[authenticated] |= rd[authenticated] | rn[authenticated]
    some = unscaled & gpr
    reads[some] |= rd[some] | rm[some]                                       # stores, and what is not known better
    ordered = some & ~bit(21) & ~bit(10) & ~bit(11)                          # ldapur, stlur
    some &= ~ordered
    writes[some] |= rd[some] | rn[some] | np.where(bit(21)[some], rm[some], 0)
    some = ordered & (opc != 0)
    writes[some] |= rd[some]
    flags_out |= unscaled & like(0x3F200C00, 0x19000400)                     # mops prologues set flags
    structures = like(0xBE000000, 0x0C000000)
    back = structures & bit(23)
    reads[back] |= rm[back]
    writes[back] |= rn[back]
    vector = like(0x0E000000, 0x0E000000) | like(0x1E000000, 0x04000000) | like(0x9E000000, 0x80000000)
    return Registers(reads, writes, flags_in, flags_out, vector)


def _wide(general_bits: np.ndarray) -> np.ndarray:
    """General registers in the bits of Effects."""
    bits = general_bits.astype(np.uint64)
    return bits & np.uint64(_X0_15) | (bits >> np.uint64(16)) << np.uint64(48)


def _vector_loads(word: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reads, writes, kills) of vector registers by loads and stores, in the bits of Effects."""
    v = np.array([1 << (16 + n) for n in range(32)], dtype=np.uint64)
    upper = np.uint64(_V8_15)
    rt, rt2 = v[word & np.uint32(31)], v[(word >> np.uint32(10)) & np.uint32(31)]
    zero = np.zeros(len(word), dtype=np.uint64)
    simd = (word & np.uint32(0x0E000000)) == 0x0C000000
    pair = simd & ((word & np.uint32(0x3A000000)) == 0x28000000)
    structure = (word & np.uint32(0xBE000000)) == 0x0C000000
    literal = (word & np.uint32(0x3B000000)) == 0x18000000
    store = np.where(pair, word & np.uint32(1 << 22), word & np.uint32(1 << 22)) == 0
    which = np.where(pair, rt | rt2, rt)
    whole = np.where(pair | literal, word >> np.uint32(30) == 2, word & np.uint32(1 << 23) != 0)       # 128 bits
    first = (word & np.uint32(31)).astype(np.int64)
    four = v[first] | v[(first + 1) & 31] | v[(first + 2) & 31] | v[(first + 3) & 31]
    plain = simd & ~structure
    store &= ~literal
    reads = np.where(plain & store, np.where(whole, which, which & ~upper), np.where(structure, four, zero))
    # Of one element (bit 24): opcode<0> and R count the registers; of all elements: the opcode does (Arm ARM, C4.1).
    opcode = (word >> np.uint32(12)) & np.uint32(15)
    single = (opcode >> np.uint32(1) & np.uint32(1)) * 2 + (word >> np.uint32(21) & np.uint32(1)) + 1
    count = np.where(word & np.uint32(1 << 24), single,
                     np.array([4, 1, 4, 1, 3, 1, 3, 1, 2, 1, 2, 1, 1, 1, 1, 1], dtype=np.uint32)[opcode])
    loaded = rt.copy()
    for n in range(1, 4):
        loaded |= np.where(count > n, v[(first + n) & 31], zero)
    writes = np.where(plain & ~store, which, np.where(structure & ~store, loaded, zero))
    return reads, writes, np.where(plain & ~store, which, zero)


def effects(code: Code) -> Effects:
    """The register effects of all instructions of `code`."""
    word: np.ndarray = code.parts.word
    g: Registers = code.parts.registers
    flag = np.uint64(FLAGS)
    reads, writes = _wide(g.reads), _wide(g.writes)
    reads |= np.where(g.reads_flags, flag, np.uint64(0))
    writes |= np.where(g.writes_flags, flag, np.uint64(0))
    kills = writes.copy()
    for total, more in zip((reads, writes, kills), _vector_loads(word)):
        total |= more
    refused = np.zeros(len(word), dtype=bool)
    ask = np.flatnonzero(g.vector & ~code.parts.data)
    key, first_of, shape = np.unique(word[ask], return_index=True, return_inverse=True)
    reader = _Reader()
    rows = np.array([reader.read(int(k)) for k in key.tolist()], dtype=np.uint64).reshape(-1, 4)
    for total, column in zip((reads, writes, kills), rows.T):
        total[ask] |= column[shape]
    refused[ask] = rows[shape, 3] != 0
    # What a call or return does to registers is the business of those who ask.
    for total in (reads, writes, kills):
        total[np.isin(code.kind, (Kind.NOP, Kind.MARK, Kind.CALL, Kind.JUMP, Kind.TRAP))] = 0
    leaves = np.isin(code.kind, (Kind.RETURN, Kind.CALL_INDIRECT, Kind.JUMP_INDIRECT))
    writes[leaves] = kills[leaves] = 0
    return Effects(np.arange(len(word), dtype=np.uint32), reads, writes, kills, refused)


# Replace the whole of the vector register that they name first, and read it only when it is named again.
_REPLACE = frozenset((
    "fmov", "movi", "mvni", "dup", "fadd", "fsub", "fmul", "fnmul", "fdiv", "fneg", "fabs", "fsqrt", "fmadd", "fmsub",
    "fnmadd", "fnmsub", "fmax", "fmin", "fmaxnm", "fminnm", "fcsel", "fcvt", "scvtf", "ucvtf", "fcvtzs", "fcvtzu", "fcvtas",
    "fcvtms", "fcvtps", "fcvtns", "frinta", "frintm", "frintp", "frintz", "frintn", "frintx", "frinti", "fabd", "add", "sub",
    "mul", "and", "orr", "eor", "bic", "orn", "shl", "sshr", "ushr", "sshl", "ushl", "neg", "abs", "not", "mvn", "cmeq", "cmgt",
    "cmge", "cmhi", "cmhs", "cmlt", "cmle", "cmtst", "fcmeq", "fcmgt", "fcmge", "zip1", "zip2", "uzp1", "uzp2", "trn1", "trn2",
    "ext", "rev16", "rev32", "rev64", "tbl", "cnt", "addp", "addv", "faddp", "uaddlv", "umaxv", "uminv", "smaxv", "sminv",
    "umax", "umin", "smax", "smin", "umaxp", "uminp", "xtn", "sxtl", "uxtl", "sshll", "ushll", "shrn", "uaddlp", "saddlp",
    "umull", "smull", "saddl", "uaddl", "ssubl", "usubl", "saddw", "uaddw"))


class _Reader:
    """Asks capstone about one floating-point, vector or SVE instruction at a time."""

    def __init__(self) -> None:
        self._cs = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._cs.detail = True
        self._bits: dict[int, tuple[int, int]] = {}

    def _both(self, number: int) -> tuple[int, int]:
        """(what is read, what is written) where the register is."""
        if number not in self._bits:
            name = self._cs.reg_name(number) or ""
            bit = _bit_of(name)
            self._bits[number] = (bit & ~_V8_15 if name[:1] in "bhsd" else bit, bit)
        return self._bits[number]

    def read(self, word: int) -> tuple[int, int, int, int]:
        """(reads, writes, kills, refused)."""
        insn = next(self._cs.disasm(word.to_bytes(4, "little"), 0, 1), None)
        if insn is None:
            return FACTS.volatile, 0, 0, 1        # callers may know better than we what it leaves alone
        try:
            read_numbers, written_numbers = insn.regs_access()
        except capstone.CsError:
            return FACTS.volatile, 0, 0, 1
        reads = writes = 0
        for number in read_numbers:
            reads |= self._both(number)[0]
        for number in written_numbers:
            writes |= self._both(number)[1]
        named = [self._both(o.reg)[0] for o in insn.operands if o.type == arm64.ARM64_OP_REG]
        name = insn.mnemonic
        if name in ("fcmp", "fcmpe", "fccmp", "fccmpe"):
            for bit in named:
                reads |= bit
            return reads | (FLAGS if name.startswith("fcc") else 0), FLAGS, FLAGS, 0
        if name == "fcsel":
            reads |= FLAGS
        for bit in named[1:]:
            reads |= bit
        kills = 0
        first = insn.operands[0] if insn.operands else None
        if first is not None and first.type == arm64.ARM64_OP_REG and first.vector_index < 0 and _whole(name, word):
            kills = self._both(first.reg)[1]
            writes |= kills
            for bit in (named[0], kills):
                if bit not in named[1:]:
                    reads &= ~bit
        elif named:
            reads |= named[0]                 # inserts, accumulates, or is not known: the old value may matter
            target = next(o.reg for o in insn.operands if o.type == arm64.ARM64_OP_REG)
            writes |= self._both(target)[1] if not name.startswith("st") else 0
        if insn.group(arm64.ARM64_GRP_SVE2) or word & 0x1E000000 == 0x04000000:
            kills = 0
            for bit in named:
                reads |= bit
        return reads, writes, kills, 0


def _whole(name: str, word: int) -> bool:
    """Whether the instruction replaces all of its first operand."""
    moves = name in ("umov", "smov", "mov")       # mov of a vector, or of an element to a general register
    return name in _REPLACE or moves


def _bit_of(name: str) -> int:
    """The bit of capstone's register `name` in Effects; 0 for the stack pointer and zero."""
    kind, number = name[:1], name[1:]
    if name == "fp":
        kind, number = "x", "29"
    elif name == "lr":
        kind, number = "x", "30"
    if not number.isdigit():
        return FLAGS if name in ("nzcv", "ffr") else 0
    n = int(number)
    if kind in "wx":
        return 1 << n if n < 16 else 1 << 32 + n if n < 31 else 0
    if kind in "vbhsdqz":
        return 1 << 16 + n
    return FLAGS if kind == "p" else 0
