"""Relocating AArch64 patch objects: relocation arithmetic, thread-local relaxations, PLT entries, a survey of the code.

Letters as in the ABI: S the symbol's address, A the addend, P the address of the field, Page(x) = x & ~0xFFF; V here is
S + A.  Fields are immediates of 4-byte instructions, the rest of which stays.  Each write is checked unless the relocation
is one of those that hold a part of a value by definition (_NC).

- GOT: a slot of the object's own GOT, no relaxation.
- Initial exec: a GOT slot with the offset from the thread pointer.
- General dynamic and TLS descriptors are relaxed to local exec, as a static linker would for an executable: all variables
  that a patch can bind to have a known offset from the thread pointer.

Specification: ELF for the Arm 64-bit Architecture (AAELF64), 5.7 "Relocation"; relaxations as in its 5.7.11 and in
"ELF Handling For Thread-Local Storage", 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch import aarch64_uses as uses
from psu_bin.arch import aarch64_veneers as veneers
from psu_bin.arch.aarch64 import BRK, BTI_C, adrp
from psu_bin.arch.aarch64 import jump as _jump
from psu_bin.arch.aarch64_decode import NOP
from psu_bin.arch.aarch64_stack import leaves, moves_stack, stack_use
from psu_bin.arch.link_types import (
    Access, CodeSurvey, Cut, Field, Found, Howto, Mark, OutOfRange, Part, Places, Resolved, ResultPart, Use)
from psu_bin.errors import PsuError

__all__ = ["HOWTO", "SHORT", "THUNK_SIZE", "is_call", "is_thunk", "jump", "leaves", "moves_stack", "pack_slot", "padding", "plt_entry", "relocate",
           "repoint", "result_registers", "rewrite", "room_in_place", "span", "stack_use", "static_tls_offset", "survey", "trace", "veneer"]

PLT_SIZE = 16
GOT_SLOT_SIZE = 8
JUMP_SIZE = 4
JUMP_REACH = 1 << 27
CODE_ALIGN = 16
PAST_FIELD = (0,)            # symbol + addend is what an instruction means
THUNK_SIZE = 0               # nothing is rewritten to reach further: see rewrite
TLS_CALLEE = "__tls_get_addr"      # its calls disappear in the relaxations
TLS_TAIL = 0                 # what the addend of a relative thread-local field makes up for
# Volatile registers (bits as descriptor.Function.preserve) that PLAIN and SIDE gates change, by kind: shim gates.S.  x16
# and x17 have no bit: functions whose callers rely on them are not updatable.
GATE_CHANGES = (1 << 9 | 1 << 10, 1 << 9 | 1 << 10)
# Registers that may carry an argument and the result (same bits): all of them, and where integers up to 8 bytes and scalar
# floating point are.
RESULTS, INTEGER_RESULT, FLOAT_RESULT = 3 | 0xF << 16, 1, 1 << 16          # x0, x1, v0 to v3

_ABSOLUTE = {257: ("ABS64", 8), 258: ("ABS32", 4), 259: ("ABS16", 2)}
_RELATIVE = {260: ("PREL64", 8), 261: ("PREL32", 4), 262: ("PREL16", 2), 314: ("PLT32", 4)}
# (name, shift of the value, whether it is checked) of movz and movk
_MOVES = {263: ("MOVW_UABS_G0", 0, True), 264: ("MOVW_UABS_G0_NC", 0, False), 265: ("MOVW_UABS_G1", 16, True),
          266: ("MOVW_UABS_G1_NC", 16, False), 267: ("MOVW_UABS_G2", 32, True), 268: ("MOVW_UABS_G2_NC", 32, False),
          269: ("MOVW_UABS_G3", 48, True)}
_TLS_MOVES = {544: ("TLSLE_MOVW_TPREL_G2", 32, True), 545: ("TLSLE_MOVW_TPREL_G1", 16, True),
              546: ("TLSLE_MOVW_TPREL_G1_NC", 16, False), 547: ("TLSLE_MOVW_TPREL_G0", 0, True),
              548: ("TLSLE_MOVW_TPREL_G0_NC", 0, False)}
# (name, lowest bit of the immediate, its bits): counted in instructions from P
_BRANCHES = {279: ("TSTBR14", 5, 14), 280: ("CONDBR19", 5, 19), 282: ("JUMP26", 0, 26), 283: ("CALL26", 0, 26)}
_WORDS = {273: ("LD_PREL_LO19", Use.ADDRESS), 309: ("GOT_LD_PREL19", Use.GOT),
          543: ("TLSIE_LD_GOTTPREL_PREL19", Use.TLS_GOT)}
_PAGES = {275: ("ADR_PREL_PG_HI21", Use.ADDRESS), 276: ("ADR_PREL_PG_HI21_NC", Use.ADDRESS),
          311: ("ADR_GOT_PAGE", Use.GOT), 541: ("TLSIE_ADR_GOTTPREL_PAGE21", Use.TLS_GOT)}
# (name, log2 of what the immediate counts in, use)
_LOW12 = {277: ("ADD_ABS_LO12_NC", 0, Use.ADDRESS), 278: ("LDST8_ABS_LO12_NC", 0, Use.ADDRESS),
          284: ("LDST16_ABS_LO12_NC", 1, Use.ADDRESS), 285: ("LDST32_ABS_LO12_NC", 2, Use.ADDRESS),
          286: ("LDST64_ABS_LO12_NC", 3, Use.ADDRESS), 299: ("LDST128_ABS_LO12_NC", 4, Use.ADDRESS),
          312: ("LD64_GOT_LO12_NC", 3, Use.GOT), 542: ("TLSIE_LD64_GOTTPREL_LO12_NC", 3, Use.TLS_GOT)}
# (name, shift of the value, log2 of what the immediate counts in, whether it is checked)
_TLS_LOW12 = {549: ("TLSLE_ADD_TPREL_HI12", 12, 0, True), 550: ("TLSLE_ADD_TPREL_LO12", 0, 0, True),
              551: ("TLSLE_ADD_TPREL_LO12_NC", 0, 0, False),
              **{552 + 2 * n + nc: (f"TLSLE_LDST{8 << n}_TPREL_LO12{'_NC' * nc}", 0, n, not nc)
                 for n in range(4) for nc in (0, 1)},
              570: ("TLSLE_LDST128_TPREL_LO12", 0, 4, True), 571: ("TLSLE_LDST128_TPREL_LO12_NC", 0, 4, False)}
R_ADR_PREL_LO21, R_TLSGD_PAGE, R_TLSGD_ADD, R_DESC_PAGE, R_DESC_LD, R_DESC_ADD, R_DESC_CALL = (
    274, 513, 514, 562, 563, 564, 569)
_GOT_MODELS = {R_TLSGD_PAGE: "TLSGD_ADR_PAGE21", R_TLSGD_ADD: "TLSGD_ADD_LO12_NC", R_DESC_PAGE: "TLSDESC_ADR_PAGE21",
               R_DESC_LD: "TLSDESC_LD64_LO12", R_DESC_ADD: "TLSDESC_ADD_LO12"}


def _howtos() -> dict[int, Howto]:
    out = {0: ("NONE", Use.NOTHING, 0, False, False), 256: ("NONE", Use.NOTHING, 0, False, False),
           R_ADR_PREL_LO21: ("ADR_PREL_LO21", Use.ADDRESS, 4, True, False),
           R_DESC_CALL: ("TLSDESC_CALL", Use.TLS_DESCRIPTOR_CALL, 4, False, False)}
    out.update({k: (n, Use.ADDRESS, size, False, size < 8) for k, (n, size) in _ABSOLUTE.items()})
    out.update({k: (n, Use.BRANCH if k == 314 else Use.ADDRESS, size, True, False) for k, (n, size) in _RELATIVE.items()})
    out.update({k: (n, Use.ADDRESS, 4, False, False) for k, (n, _, _) in _MOVES.items()})
    out.update({k: (n, Use.TLS_OFFSET, 4, False, False) for k, (n, _, _) in _TLS_MOVES.items()})
    out.update({k: (n, Use.BRANCH, 4, True, False) for k, (n, _, _) in _BRANCHES.items()})
    out.update({k: (n, use, 4, True, False) for k, (n, use) in (*_WORDS.items(), *_PAGES.items())})
    out.update({k: (n, use, 4, False, False) for k, (n, _, use) in _LOW12.items()})
    out.update({k: (n, Use.TLS_OFFSET, 4, False, False) for k, (n, _, _, _) in _TLS_LOW12.items()})
    out.update({k: (n, Use.TLS_DESCRIPTOR if "DESC" in n else Use.TLS_GENERAL, 4, False, False)
                for k, n in _GOT_MODELS.items()})
    return {k: Howto(f"R_AARCH64_{v[0]}", *v[1:]) for k, v in out.items()}


HOWTO: dict[int, Howto] = _howtos()
# Hold only addresses that a position-dependent program itself can have: attach/imports.py
SHORT = frozenset((275, *(k for k, how in HOWTO.items() if how.narrow)))
_ADDRESSES = frozenset(k for k, how in HOWTO.items() if how.use is Use.ADDRESS and k not in _ABSOLUTE and k not in _RELATIVE)


def static_tls_offset(memsz: int, align: int, address: int) -> int:
    """Offset from the thread pointer to the TLS image of the executable (variant I: it lies behind 16 bytes of the libc).

    memsz, align, address: of its PT_TLS."""
    align = max(align, 1)
    skew = -(address & align - 1) & align - 1      # the block starts at an address congruent to p_vaddr
    start = -(-16 // align) * align
    if start - 16 < skew:
        start += align
    return start - skew


# ---- fields --------------------------------------------------------------------------------------------------------

def _word(code: bytes | bytearray | memoryview, at: int) -> int:
    value: int = struct.unpack_from("<I", code, at)[0]
    return value


def _put(code: bytearray | memoryview, at: int, word: int) -> None:
    struct.pack_into("<I", code, at, word)


def _immediate(code: bytearray | memoryview, at: int, low: int, bits: int, value: int) -> None:
    mask = (1 << bits) - 1 << low
    _put(code, at, _word(code, at) & ~mask | value << low & mask)


def _fits(value: int, bits: int, signed: bool = True) -> None:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    if not low <= value < high:
        raise OutOfRange(f"{value:#x} does not fit {bits} bits")


def _steps(value: int, size: int) -> int:
    """value / size, which must be whole."""
    if value % size:
        raise OutOfRange(f"{value:#x} is no multiple of {size}")
    return value // size


def _page(code: bytearray, at: int, v: int, p: int) -> None:
    try:
        word = adrp(p, 0, v)
    except PsuError:
        raise OutOfRange(f"{v - p:#x} is more than 4 GB away") from None
    _put(code, at, word | _word(code, at) & 31)


def relocate(code: bytearray, at: int, kind: int, v: int, p: int, places: Places) -> None:
    """Fill in the field at code[at:] of relocation type `kind`; it will run at address `p`.

    v is S + A (an offset from the thread pointer where Howto.use is one of TLS_*), except for GOT slots: A.
    Raises OutOfRange when the value does not fit, ValueError for a TLS sequence that the ABI does not list."""
    how = HOWTO[kind]
    if how.use is Use.NOTHING:
        return
    if how.use in (Use.GOT, Use.TLS_GOT):
        v += places.slot
    if kind in _ABSOLUTE or kind in _RELATIVE:
        value = v - p if how.relative else v
        if how.size < 8:                          # the ABI lets both signs fit
            bits = 8 * how.size
            if not -(1 << bits - 1) <= value < 1 << (bits - 1 if how.relative else bits):
                raise OutOfRange(f"{value:#x} does not fit {how.size} bytes")
        code[at:at + how.size] = (value & (1 << 8 * how.size) - 1).to_bytes(how.size, "little")
    elif kind in _BRANCHES:
        _, low, bits = _BRANCHES[kind]
        distance = v - p
        if places.branch and bits == 26 and not -(1 << 27) <= distance < 1 << 27:
            distance = places.branch - p
        _fits(_steps(distance, 4), bits)
        _immediate(code, at, low, bits, distance // 4)
    elif kind in _WORDS:
        _fits(_steps(v - p, 4), 19)
        _immediate(code, at, 5, 19, (v - p) // 4)
    elif kind == R_ADR_PREL_LO21:
        _fits(v - p, 21)
        _put(code, at, _word(code, at) & 0x9F00001F | (v - p & 3) << 29 | (v - p >> 2 & 0x7FFFF) << 5)
    elif kind in _PAGES:
        _page(code, at, v, p)
    elif kind in _LOW12:
        _immediate(code, at, 10, 12, _steps(v & 0xFFF, 1 << _LOW12[kind][1]))
    elif kind in _TLS_LOW12:
        _, shift, scale, checked = _TLS_LOW12[kind]
        if checked:
            _fits(v, 24 if shift else 12, False)
        _immediate(code, at, 10, 12, _steps(v >> shift & 0xFFF, 1 << scale))
    elif kind in _MOVES or kind in _TLS_MOVES:
        _, shift, checked = _MOVES.get(kind) or _TLS_MOVES[kind]
        value = v & (1 << 64) - 1
        if checked:
            _fits(value, shift + 16, False)
        _immediate(code, at, 5, 16, value >> shift & 0xFFFF)
    else:
        _relax(code, at, kind, v)


def _relax(code: bytearray, at: int, kind: int, offset: int) -> None:
    """General dynamic and descriptors to local exec.  x0 becomes the offset; the call and what it needed disappear."""
    word = _word(code, at)
    if kind == R_DESC_CALL:
        if word & 0xFFFFFC1F != 0xD63F0000:
            raise ValueError("not a call through a TLS descriptor")
        _put(code, at, NOP)
        return
    _fits(offset, 32, False)
    if kind in (R_DESC_PAGE, R_TLSGD_PAGE):
        if not decode.is_adrp(word) or word & 31:
            raise ValueError("not one of the ABI's thread-local sequences: adrp into another register than x0")
        _put(code, at, 0xD2A00000 | (offset >> 16) << 5)                 # movz x0, #hi, lsl #16
    elif kind == R_DESC_LD:
        _put(code, at, 0xF2800000 | (offset & 0xFFFF) << 5)              # movk x0, #lo
    elif kind == R_DESC_ADD:
        _put(code, at, NOP)
    else:
        # adrp x0; add x0, x0; bl __tls_get_addr; nop
        if word != 0x91000000 or not decode.is_call(_word(code, at + 4)) or _word(code, at + 8) != NOP:
            raise ValueError("not one of the ABI's general dynamic TLS sequences")
        _put(code, at, 0xF2800000 | (offset & 0xFFFF) << 5)
        _put(code, at + 4, 0xD53BD041)                                   # mrs x1, tpidr_el0
        _put(code, at + 8, 0x8B000020)                                   # add x0, x1, x0


def plt_entry(address: int, slot: int) -> bytes:
    """PLT_SIZE bytes that jump to the address in GOT slot `slot`; x16 is there for that."""
    return struct.pack("<4I", BTI_C, adrp(address + 4, 16, slot),
                       0xF9400210 | (slot & 0xFFF) // 8 << 10,           # ldr x16, [x16, #:lo12:slot]
                       0xD61F0200)                                       # br x16


def jump(address: int, target: int) -> bytes:
    """JUMP_SIZE bytes: a direct jump from `address` to `target`.  Raises OutOfRange."""
    try:
        return _jump(address, target)
    except PsuError as e:
        raise OutOfRange(str(e)) from None


def span(code: bytes, ref: Resolved) -> int:
    """How many bytes from its address a branch that the assembler resolved may lead, both ways."""
    return 2 << _branch_field(_word(code, ref.at))[1]


def room_in_place(code: bytes, ref: Resolved, first: int, behind: int) -> int:
    """-1: no jump that reaches farther takes the place of one of short reach, which are conditional."""
    return -1


def _branch_field(word: int) -> tuple[int, int]:
    """(lowest bit, bits) of a branch's distance in instructions."""
    return (0, 26) if word & 0x7C000000 == 0x14000000 else (5, 14) if word & 0x7E000000 == 0x36000000 else (5, 19)


def repoint(code: bytearray | memoryview, ref: Resolved, displacement: int) -> None:
    """Set the displacement of a reference that the assembler had resolved.  Raises OutOfRange."""
    word = _word(code, ref.at)
    if decode.is_adr(word):
        _fits(displacement, 21)
        _put(code, ref.at, word & 0x9F00001F | (displacement & 3) << 29 | (displacement >> 2 & 0x7FFFF) << 5)
        return
    low, bits = _branch_field(word)
    _fits(_steps(displacement, 4), bits)
    _immediate(code, ref.at, low, bits, displacement // 4)


def rewrite(code: bytearray, at: int, address: int, slot: int, thunk: int) -> bytes:
    """adrp reaches 4 GB and is one of two instructions: there is nothing to rewrite.  Raises ValueError."""
    raise ValueError("an address more than 4 GB away")


def is_thunk(name: str) -> bool:
    """Whether a linker made the function, to reach another one (veneer) or to avoid an erratum."""
    return name.startswith(("__erratum_", "__AArch64AbsLongThunk_", "__AArch64ADRPThunk_", "__AArch64BTIThunk_",
                            "__AArch64AbsXOLongThunk_")) or name.startswith("__") and name.endswith("_veneer")


def is_call(code: bytes, insn: int) -> bool:
    """The instruction at offset `insn` is a direct call."""
    return decode.is_call(_word(code, insn))


# ---- code ----------------------------------------------------------------------------------------------------------

def trace(parts: list[Part], marks: Mapping[tuple[int, int], Mark], table: Callable[[int, int], bytes],
          landing_pads: bool) -> dict[tuple[int, int], Found]:
    """What a function does with each address that a relocation puts into a register: see aarch64_uses.

    Raises ValueError where the bytes are no instructions."""
    return uses.trace(parts, marks, _ADDRESSES, table, landing_pads)


def veneer(parts: list[Part], cut: Cut) -> tuple[bytes, list[tuple[int, int, int, int]]]:
    """(code, its relocations as (offset, type, symbol, addend)) that does what the instruction at `cut` does, with the
    address that this says.  parts: the function that it is in."""
    words = [w for p in parts if not p.veneers for w in decode.walk(p.code, p.start, p.end)]
    code = next(p.code for p in parts if p.section == cut.section)
    return veneers.veneer(_word(code, cut.at), cut, veneers.free_registers(words))


def survey(code: bytes, ranges: list[tuple[int, int]], relocs: dict[int, int], addends: dict[int, int],
           found: Mapping[int, Found]) -> CodeSurvey:
    """Walk over the functions at `ranges` (start, end) of a section.

    relocs, addends: by offset of a field, the relocation's type and addend; found: by the same, of `trace`.

    Raises ValueError where the bytes are no instructions, or a relocation is in none of an instruction's fields."""
    fields: dict[int, Field] = {}
    resolved: list[Resolved] = []
    breaks: list[int] = []
    for start, end in ranges:
        words = decode.walk(code, start, end)
        data = uses.literals(words, start)
        for k, word in enumerate(words):
            at = start + 4 * k
            kind = relocs.get(at)
            branch = decode.is_call(word) or decode.is_jump(word)
            if at in data:
                continue
            if branch or decode.ends_path(word) or decode.is_indirect_call(word):
                breaks.append(at)
            if kind is not None:
                use = HOWTO[kind].use
                fields[at] = Field(use, 0, Access.EXACT if use is Use.BRANCH else Access.ADDRESS, at)
                if at in found:
                    fields[at] = fields[at]._replace(access=found[at].access, reaches=found[at].reaches)
                elif use is Use.GOT and _called_soon(words, k, word):
                    fields[at] = fields[at]._replace(access=Access.EXACT)
            elif branch:
                resolved.append(Resolved(at, 4, start + decode.branch_target(word, 4 * k), Use.BRANCH,
                                         decode.is_call(word), at))
            elif decode.is_adr(word):
                resolved.append(Resolved(at, 4, decode.adr_target(word, at), Use.ADDRESS, False, at))
        for at in relocs.keys() & range(start, end):
            if at not in fields and at not in data and HOWTO[relocs[at]].use is not Use.NOTHING and at % 4:
                raise ValueError(f"relocation {HOWTO[relocs[at]].name} at {at:#x} is in no field of an instruction")
    return CodeSurvey(fields, tuple(resolved), tuple(sorted(breaks)))


def _called_soon(words: tuple[int, ...], k: int, word: int) -> bool:
    """The register that gets a GOT slot's value is only called through: `adrp; ldr; blr`."""
    register = word & 31
    for w in words[k + 1:k + 6]:
        if (decode.is_indirect_call(w) or decode.is_indirect_jump(w)) and w >> 5 & 31 == register:
            return True
        m = decode.memory(w)
        if m is not None and m.base == register and decode.is_adrp(word) and not m.store:
            register = w & 31
        elif decode.writes(w) >> register & 1 or decode.is_call(w):
            return False
    return False


def padding(code: bytes, start: int, end: int) -> bool:
    """code[start:end] is what assemblers put between functions: nops, zeros."""
    return all(code[at:at + 4] in (b"\0\0\0\0", struct.pack("<I", NOP), BRK) for at in range(-(-start // 4) * 4, end - 3, 4))


def pack_slot(value: int) -> bytes:
    """A GOT slot holding `value` (an address, or an offset from the thread pointer)."""
    return struct.pack("<Q", value & (1 << 64) - 1)


def result_registers(size: int, parts: tuple[ResultPart, ...]) -> int:
    """The registers of RESULTS in which a result of `size` bytes comes back.  AAPCS64, 5.9.5 (homogeneous aggregates), 6.9 (result return)."""
    places = {p.at for p in parts}
    kinds = {(p.size, "vector" if p.kind == "vector" else "integer" if p.kind == "integer" else "float") for p in parts}
    if len(kinds) == 1 and not any(kind == "integer" for _, kind in kinds) and len(places) <= 4:
        [(each, _)] = kinds
        if len(places) * each == size and each <= 16:
            return ((1 << len(places)) - 1) << 16
    return 0 if size > 16 or not size else 3 if size > 8 else 1
