"""What each x86-64 instruction reads and writes, from capstone, one question for each encoding that occurs.

Which registers an instruction uses follows from its bytes before the displacement; a program of millions of
instructions has some ten thousand different ones.  What the address of a memory operand is made of stands in ModRM, SIB
and REX; with that taken out some three thousand are left.  Each is decoded by capstone once, and its length compared
with what x86_64_boundaries.py found: so capstone confirms every encoding that the module has.

capstone's regs_access describes what the decoder tables say, not liveness; where that matters it is corrected here.
Each correction errs towards "read", against "killed" and, for what a function changes, against "written": a register that
wrongly counts as needed costs a gate two instructions, the opposite crashes the program.

Bits: 0 to 15 general registers by number, 16 to 31 xmm0 to xmm15 (ymm and zmm with them), 32 to 47 xmm16 to xmm31,
48 to 55 k0 to k7, 56 condition flags, 57 MMX.
"""

from __future__ import annotations

import bisect

import capstone
import numpy as np
from capstone import x86

from psu_bin.arch import x86_64_boundaries as boundaries
from psu_bin.arch.code import Code, Effects, Kind, RegisterFacts

FLAGS, MMX = 1 << 56, 1 << 57
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = (1 << n for n in range(12))
_XMM = 0xFFFF << 16

FACTS = RegisterFacts(
    volatile=RAX | RCX | RDX | RSI | RDI | R8 | R9 | R10 | R11 | _XMM | 0xFFFF << 32 | 0xFF << 48 | FLAGS | MMX,
    arguments=RDI | RSI | RDX | RCX | R8 | R9 | 0xFF << 16,
    variadic=RAX | R10,
    results=RAX | RDX | 3 << 16,
    representable=RAX | RCX | RDX | RSI | RDI | R8 | R9 | R10 | R11 | _XMM, preserve=lambda bits: bits,
    odd=FLAGS, spoiled=RCX | RSI | R11 | FLAGS, stub=0,
    dwarf_volatile=0b111100110111)         # rax rdx rcx . rsi rdi . . r8 to r11


def _names() -> dict[str, tuple[int, bool]]:
    """capstone's register name -> (bit, whether a write replaces the whole register)."""
    out: dict[str, tuple[int, bool]] = {}
    for n, name in enumerate(_GENERAL):
        bit = 1 << n
        out[name] = (bit, True)
        if n < 8:
            out["e" + name[1:]] = (bit, True)
            out[name[1:]] = (bit, False)
            out[name[1] + "l" if n < 4 else name[1:] + "l"] = (bit, False)
            if n < 4:
                out[name[1] + "h"] = (bit, False)
        else:
            out.update({name + "d": (bit, True), name + "w": (bit, False), name + "b": (bit, False)})
    for n in range(32):
        for kind in "xyz":
            out[f"{kind}mm{n}"] = (1 << 16 + n, True)
    out.update({f"k{n}": (1 << 48 + n, True) for n in range(8)})
    out.update({f"mm{n}": (MMX, False) for n in range(8)})
    out["rflags"] = (FLAGS, True)
    return out


_NAMES = _names()

# Whole instructions that capstone describes wrongly: (reads, writes), in place of what it says about implicit operands.
_SYSCALL = (RAX | RDI | RSI | RDX | R10 | R8 | R9, RAX | RCX | R11)
_IMPLICIT = {
    "syscall": _SYSCALL, "sysenter": _SYSCALL,
    "int": (FACTS.volatile & 0xFFFF | RBX | RBP, RAX),
    "cpuid": (RAX | RCX, RAX | RBX | RCX | RDX),
    "rdtsc": (0, RAX | RDX), "rdtscp": (0, RAX | RDX | RCX), "rdpmc": (RCX, RAX | RDX),
    "xgetbv": (RCX, RAX | RDX), "xsetbv": (RCX | RAX | RDX, 0),
    "cwd": (RAX, RDX), "cdq": (RAX, RDX), "cqo": (RAX, RDX),
    "vzeroupper": (0, 0),                  # callers may keep values in the lower halves
    "xtest": (0, FLAGS), "xend": (0, 0), "wrfsbase": (0, 0), "wrgsbase": (0, 0),
    "monitor": (RAX | RCX | RDX, 0), "mwait": (RAX | RCX, 0),
    "rdpkru": (RCX, RAX | RDX), "wrpkru": (RAX | RCX | RDX, 0),
}
_ALSO_READS = {
    "cmpxchg": RAX, "cmpxchg8b": RAX | RDX | RCX | RBX, "cmpxchg16b": RAX | RDX | RCX | RBX,
    "xlatb": RAX | RBX, "cbw": RAX, "cwde": RAX, "cdqe": RAX, "cwd": RAX, "cdq": RAX, "cqo": RAX,
    "sahf": RAX, "maskmovdqu": RDI, "vmaskmovdqu": RDI, "maskmovq": RDI,
    "xsave": RAX | RDX, "xsavec": RAX | RDX, "xsaveopt": RAX | RDX, "xrstor": RAX | RDX,
    "mul": RAX, "div": RAX | RDX, "idiv": RAX | RDX, "mulx": RDX,
    "loop": RCX, "loope": RCX, "loopne": RCX, "jrcxz": RCX, "jecxz": RCX,
    "pcmpestri": RAX | RDX, "pcmpestrm": RAX | RDX, "vpcmpestri": RAX | RDX, "vpcmpestrm": RAX | RDX,
    "cmc": FLAGS,
    "blendvps": 1 << 16, "blendvpd": 1 << 16, "pblendvb": 1 << 16, "sha256rnds2": 1 << 16,
}
_ALSO_WRITES = {
    "cmpxchg": RAX | FLAGS, "cmpxchg8b": RAX | RDX | FLAGS, "cmpxchg16b": RAX | RDX | FLAGS, "xadd": FLAGS,
    "mul": RAX | RDX, "div": RAX | RDX, "idiv": RAX | RDX,
    "loop": RCX, "loope": RCX, "loopne": RCX,
    "pcmpestri": RCX, "pcmpistri": RCX, "vpcmpestri": RCX, "vpcmpistri": RCX,
    "pcmpestrm": 1 << 16, "pcmpistrm": 1 << 16, "vpcmpestrm": 1 << 16, "vpcmpistrm": 1 << 16,
}
_STRING = ("movs", "cmps", "stos", "lods", "scas", "ins", "outs")
# The old value does not matter when both sources are the same register.
_ZERO_IDIOMS = frozenset({"xor", "sub", "sbb", "pxor", "xorps", "xorpd", "vpxor", "vpxord", "vpxorq", "vxorps", "vxorpd",
                          *(v + "psub" + size for v in ("", "v") for size in "bwdq"),
                          *(v + "pcmp" + how + size for v in ("", "v") for how in ("eq", "gt") for size in "bwdq")})
# Legacy SSE instructions that leave part of the destination as it was.
_MERGES = frozenset({"cvtsi2ss", "cvtsi2sd", "cvtss2sd", "cvtsd2ss", "sqrtss", "sqrtsd", "rcpss", "rsqrtss", "roundss",
                     "roundsd", "movlps", "movhps", "movlpd", "movhpd", "movss", "movsd"})


def _is4(f: boundaries.Fields) -> np.ndarray:
    """Which instructions name a register in their immediate byte (VEX map 3: vblendv and others, FMA4)."""
    op = f.opcode
    return (f.encoding == boundaries.VEX) & (((f.map == 3) & (
        ((op >= 0x48) & (op <= 0x4C)) | ((op >= 0x5C) & (op <= 0x7F)))) | (f.map == 8))


# Memory operands that must have a SIB byte or may not be relative to rip: (map, opcodes).  Gathers, scatters and
# prefetches with a vector of indices; AMX; 3DNow (its opcode comes last); MPX.
_SPECIAL = ((2, tuple(range(0x90, 0x94)) + tuple(range(0xA0, 0xA4)) + (0xC6, 0xC7, 0x4B)), (1, (0x0F, 0x1A, 0x1B)))
_OPCODE_BYTES = np.array([1, 2, 3, 3], dtype=np.int64)   # by opcode map, without REX
_REX_XB = 3


def effects(code: Code) -> Effects:
    """The register effects of all instructions of `code`."""
    f, parts = code.parts.fields, code.parts
    # The bytes up to the displacement, in two words.
    low, high = (np.zeros(len(code.address), dtype=np.uint64) for _ in range(2))
    for region, padded, first, last in zip(parts.regions, parts.padded, parts.first, parts.first[1:]):
        here = slice(first, last)
        words: np.ndarray = np.ndarray((len(padded) - 7,), dtype="<u8", buffer=padded.data, strides=(1,))
        at = code.address[here] - region.address
        low[here] = words[at]
        high[here] = words[at + 8]
    size = np.where(_is4(f), code.length, f.disp_at).astype(np.int64)
    plain = _plain_memory(f) & (code.kind != Kind.NOP) & (code.kind != Kind.TRAP)
    bits = np.array([(1 << 8 * n) - 1 for n in range(9)] + [0xFFFFFFFFFFFFFFFF] * 8, dtype=np.uint64)
    size[plain] -= f.sib[plain] >= 0
    low &= bits[size]
    high &= bits[np.maximum(size, 8) - 8]
    _without_registers(low, high, size, f, plain)
    key = low * np.uint64(0x9E3779B97F4A7C15) + (high ^ size.astype(np.uint64)) * np.uint64(0xD6E8FEB86659FD93)
    key ^= key >> np.uint64(29)
    _, first_of, core = np.unique(key, return_index=True, return_inverse=True)
    reader = _Reader()
    rows = []
    for i in first_of.tolist():
        region_number = bisect.bisect_right(parts.first, i) - 1
        at = int(code.address[i]) - parts.regions[region_number].address
        length = int(code.length[i])
        data = parts.padded[region_number][at:at + 15].tobytes()
        if plain[i]:
            raw = int(low[i]).to_bytes(8, "little") + int(high[i]).to_bytes(8, "little")
            data = raw[:int(size[i])] + bytes(4) + data[length - int(f.imm_size[i]):length]
            length = len(data)
        rows.append(reader.read(data, length, Kind(int(code.kind[i])), i, f))
    # What addresses are made of, beside what the rest does.
    base, index = _address_registers(f, plain)
    combined, shape = np.unique((core.astype(np.int64) * 17 + base) * 17 + index, return_inverse=True)
    table = np.array(rows, dtype=np.uint64).reshape(-1, 4)[combined // (17 * 17)]
    one = np.array([1 << n for n in range(16)] + [0], dtype=np.uint64) & np.uint64(~RSP & 0xFFFF)
    reads = table[:, 0] | one[combined // 17 % 17] | one[combined % 17]
    return Effects(shape.astype(np.uint32), reads, table[:, 1], table[:, 2], table[:, 3] != 0)


def _plain_memory(f: boundaries.Fields) -> np.ndarray:
    """Which instructions have a memory operand that could as well be relative to rip, and no VEX or EVEX prefix."""
    out = (f.encoding == boundaries.LEGACY) & (f.modrm >= 0) & (f.modrm < 0xC0) & (f.mandatory & 16 == 0)
    for number, opcodes in _SPECIAL:
        out &= ~((f.map == number) & np.isin(f.opcode, opcodes))
    return out


def _without_registers(low: np.ndarray, high: np.ndarray, size: np.ndarray, f: boundaries.Fields,
                       plain: np.ndarray) -> None:
    """Turn the memory operands of `plain` into [rip + disp32]; `size` counts the bytes up to ModRM."""
    def change(at: np.ndarray, clear: int, put: int, which: np.ndarray) -> None:
        for word, first in ((low, 0), (high, 8)):
            here = which & (at >= first) & (at < first + 8)
            shift = (8 * (at[here] - first)).astype(np.uint64)
            word[here] = word[here] & ~(np.uint64(clear) << shift) | np.uint64(put) << shift
    change(size - 1, 0xC7, 0x05, plain)
    rex = plain & (f.rex & _REX_XB != 0)
    change(size - 2 - _OPCODE_BYTES[f.map.clip(0, 3)], _REX_XB, 0, rex)


def _address_registers(f: boundaries.Fields, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(base, index) of the memory operands of `plain`; 16: none."""
    none = np.int64(16)
    mod, rm, b = f.modrm.astype(np.int64) >> 6, f.modrm.astype(np.int64) & 7, (f.rex.astype(np.int64) & 1) << 3
    sib, x = f.sib.astype(np.int64), (f.rex.astype(np.int64) & 2) << 2
    with_sib = f.sib >= 0
    low = np.where(with_sib, sib & 7, rm)
    base = np.where((low == 5) & (mod == 0), none, low | b)
    index = np.where(with_sib & ((sib >> 3 & 7 | x) != 4), sib >> 3 & 7 | x, none)
    return np.where(plain, base, none), np.where(plain, index, none)


class _Reader:
    """Asks capstone about one instruction at a time."""

    def __init__(self) -> None:
        self._cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._cs.detail = True
        self._bits: dict[int, tuple[int, bool]] = {}

    def _register(self, number: int) -> tuple[int, bool]:
        if number not in self._bits:
            self._bits[number] = _NAMES.get(self._cs.reg_name(number) or "", (0, False))
        return self._bits[number]

    def read(self, data: bytes, length: int, kind: Kind, i: int, f: boundaries.Fields) -> tuple[int, int, int, int]:
        """(reads, writes, kills, refused) of the instruction that `data` begins with."""
        if kind in (Kind.NOP, Kind.MARK, Kind.TRAP):
            return 0, 0, 0, 0
        if kind in (Kind.CALL, Kind.JUMP):
            return 0, 0, 0, 0
        insn = next(self._cs.disasm(data, 0, 1), None)
        if insn is None or insn.size != length:
            return FACTS.volatile, 0, 0, 1
        name = insn.mnemonic.split()[-1]
        try:
            read_numbers, written_numbers = insn.regs_access()
        except capstone.CsError:
            return FACTS.volatile, 0, 0, 1
        reads = writes = kills = 0
        for number in read_numbers:
            reads |= self._register(number)[0]
        for number in written_numbers:
            bit, whole = self._register(number)
            writes |= bit
            kills |= bit if whole else 0
        if name in _IMPLICIT:
            explicit = [(self._register(o.reg), o.access) for o in insn.operands if o.type == x86.X86_OP_REG]
            reads = sum(b for (b, _), access in explicit if access & capstone.CS_AC_READ) | _IMPLICIT[name][0]
            writes = kills = _IMPLICIT[name][1]
        reads |= _ALSO_READS.get(name, 0)
        writes |= _ALSO_WRITES.get(name, 0)
        if name in ("xadd", "xchg", "cmpxchg"):
            for n, o in enumerate(insn.operands):
                if o.type == x86.X86_OP_REG:
                    bit = self._register(o.reg)[0]
                    reads |= bit
                    # Callers may well rely on what cmpxchg only compares with.
                    writes = writes | bit if n == 0 or name != "cmpxchg" else writes & ~bit | _ALSO_WRITES[name] & bit
        if name == "imul" and len(insn.operands) == 1:
            reads, writes = reads | RAX, writes | RAX | RDX
        if name in ("mul", "imul", "div", "idiv") and len(insn.operands) == 1 and insn.operands[0].size == 1:
            writes &= ~RDX                                        # all in ax
        if name.startswith("cmov") or name in ("bsf", "bsr"):     # the destination may stay as it was
            reads |= self._register(insn.operands[0].reg)[0]
            kills = 0
        if name[:-1] in _STRING and insn.opcode[0] in range(0x6C, 0xB0) and f.map[i] == 0:
            reads |= RSI | RDI if name[:-1] in ("movs", "cmps") else RSI if name[:-1] in ("lods", "outs") else RDI
            reads |= RAX if name[:-1] in ("stos", "scas") else 0
            reads = reads & ~(RCX | FLAGS) | (RCX if f.mandatory[i] & 6 else 0)
            writes = writes & FLAGS | reads & (RSI | RDI | RCX) | (RAX if name[:-1] == "lods" else 0)
            kills = 0
        for n, o in enumerate(insn.operands):                     # of some, capstone does not know the access
            if o.type == x86.X86_OP_REG and (n or name == "test") and name != "mulx":
                reads |= self._register(o.reg)[0]
        if name == "test":
            writes = kills = FLAGS
        if "gather" in name:                                      # merges by a mask, which it clears
            registers = [self._register(o.reg)[0] for o in insn.operands if o.type == x86.X86_OP_REG]
            reads, writes, kills = reads | registers[0], writes | registers[0] | registers[-1], 0
        sources = [o.reg for o in insn.operands if o.type == x86.X86_OP_REG]
        if name in _ZERO_IDIOMS and len(sources) == len(insn.operands) and len(set(sources[-2:])) == 1:
            reads &= ~self._register(sources[-1])[0]
        if name in ("stc", "clc", "cld", "std"):                  # one flag of all
            kills = 0
        if f.encoding[i] == boundaries.LEGACY and name in _MERGES and not (
                name in ("movss", "movsd") and any(o.type == x86.X86_OP_MEM for o in insn.operands)):
            kills &= 0xFFFF
        if f.encoding[i] == boundaries.EVEX:
            third = data[data.index(0x62) + 3]
            if third & 7:
                reads |= 1 << 48 + (third & 7)
                if not third & 0x80:
                    kills = 0
        if kind in (Kind.CALL_INDIRECT, Kind.JUMP_INDIRECT, Kind.RETURN):
            writes = kills = 0
        # What is not fully written keeps its old value; what is read is read before anything is written.
        return reads & ~RSP, writes, kills & writes & ~RSP, 0
