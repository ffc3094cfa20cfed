"""Relocating x86-64 patch objects: relocation arithmetic, thread-local relaxations, PLT entries, a survey of the code.

Letters as in the psABI: S the symbol's address, A the addend, P the address of the field; V here is S + A.  Each write
of fewer than 64 bits is checked.  The general GOT and thread-local models are kept or relaxed as follows:

- GOTPCREL(X): a slot of the object's own GOT, no relaxation; the slot may hold any 64-bit address.
- GOTTPOFF (initial exec): a GOT slot with the offset from the thread pointer.
- TLSGD, TLSLD, TLSDESC: relaxed to local exec, as a static linker would for an executable: all variables that a patch
  can bind to have a known offset from the thread pointer.  The call of __tls_get_addr disappears with its relocation.

Specification: System V psABI x86-64, 4.4 "Relocation" and 4.1; "ELF Handling For Thread-Local Storage", 4.4.6 and 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from psu_bin.arch import x86_64_decode as decode
from psu_bin.arch.link_types import (
    Access, CodeSurvey, Field, Found, Howto, Mark, OutOfRange, Part, Places, Resolved, ResultPart, Use)
from psu_bin.arch.x86_64_decode import Insn
from psu_bin.arch.x86_64_reach import THUNK_SIZE, rewrite
from psu_bin.arch.x86_64_stack import leaves, moves_stack, stack_use

__all__ = ["HOWTO", "SHORT", "THUNK_SIZE", "is_call", "is_thunk", "jump", "leaves", "moves_stack", "pack_slot", "padding", "plt_entry", "relocate",
           "repoint", "result_registers", "rewrite", "room_in_place", "span", "stack_use", "static_tls_offset", "survey", "trace"]

PLT_SIZE = 16
GOT_SLOT_SIZE = 8
JUMP_SIZE = 5
JUMP_REACH = 1 << 31
CODE_ALIGN = 16
# symbol + addend + one of these is what a PC-relative field means: it counts from the end of its instruction, which is 4
# bytes on, and up to 4 of an immediate.
PAST_FIELD = (4, 5, 6, 8)
# Volatile registers (bits as descriptor.Function.preserve) that PLAIN and SIDE gates change, by kind: shim gates.S.
GATE_CHANGES = (0, 1 << 11 | 1 << 6 | 1 << 1)             # none; r11, rsi, rcx
# Registers that may carry an argument and the result (same bits): all of them, and where integers up to 8 bytes and scalar
# floating point are.  rax carries no argument, so nobody takes it for one that was left alone.
RESULTS, INTEGER_RESULT, FLOAT_RESULT = 1 << 2 | 3 << 16, 0, 1 << 16       # rdx, xmm0, xmm1
_RDX, _XMM0, _XMM1 = 1 << 2, 1 << 16, 1 << 17
_SHORT_JUMP = 0xEB
_THUNKS = ("__x86_indirect_thunk", "__llvm_retpoline", "__x86_return_thunk", "__llvm_lvi_thunk")

(R_NONE, R_64, R_PC32, R_GOT32, R_PLT32, R_32, R_32S, R_16, R_PC16, R_8, R_PC8) = (
    0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 15)
(R_GOTPCREL, R_DTPOFF64, R_TPOFF64, R_TLSGD, R_TLSLD, R_DTPOFF32, R_GOTTPOFF, R_TPOFF32) = (
    9, 17, 18, 19, 20, 21, 22, 23)
(R_PC64, R_GOTOFF64, R_GOTPC32, R_GOT64, R_GOTPCREL64, R_GOTPC64, R_GOTPLT64, R_PLTOFF64) = (
    24, 25, 26, 27, 28, 29, 30, 31)
(R_SIZE32, R_SIZE64, R_GOTPC32_TLSDESC, R_TLSDESC_CALL, R_GOTPCRELX, R_REX_GOTPCRELX) = (32, 33, 34, 35, 41, 42)

HOWTO: dict[int, Howto] = {kind: Howto(f"R_X86_64_{name}", use, size, relative, narrow)
                           for kind, name, use, size, relative, narrow in (
    (R_NONE, "NONE", Use.NOTHING, 0, False, False),
    (R_64, "64", Use.ADDRESS, 8, False, False),
    (R_PC32, "PC32", Use.ADDRESS, 4, True, False),
    (R_GOT32, "GOT32", Use.GOT_SLOT_OFFSET, 4, False, False),
    (R_PLT32, "PLT32", Use.BRANCH, 4, True, False),
    (R_32, "32", Use.ADDRESS, 4, False, True),
    (R_32S, "32S", Use.ADDRESS, 4, False, True),
    (R_16, "16", Use.ADDRESS, 2, False, True),
    (R_PC16, "PC16", Use.ADDRESS, 2, True, False),
    (R_8, "8", Use.ADDRESS, 1, False, True),
    (R_PC8, "PC8", Use.ADDRESS, 1, True, False),
    (R_GOTPCREL, "GOTPCREL", Use.GOT, 4, True, False),
    (R_DTPOFF64, "DTPOFF64", Use.TLS_OFFSET, 8, False, False),
    (R_TPOFF64, "TPOFF64", Use.TLS_OFFSET, 8, False, False),
    (R_TLSGD, "TLSGD", Use.TLS_GENERAL, 4, True, False),
    (R_TLSLD, "TLSLD", Use.TLS_MODULE, 4, True, False),
    (R_DTPOFF32, "DTPOFF32", Use.TLS_OFFSET, 4, False, False),
    (R_GOTTPOFF, "GOTTPOFF", Use.TLS_GOT, 4, True, False),
    (R_TPOFF32, "TPOFF32", Use.TLS_OFFSET, 4, False, False),
    (R_PC64, "PC64", Use.ADDRESS, 8, True, False),
    (R_GOTOFF64, "GOTOFF64", Use.GOT_RELATIVE, 8, False, False),
    (R_GOTPC32, "GOTPC32", Use.GOT_BASE, 4, True, False),
    (R_GOT64, "GOT64", Use.GOT_SLOT_OFFSET, 8, False, False),
    (R_GOTPCREL64, "GOTPCREL64", Use.GOT, 8, True, False),
    (R_GOTPC64, "GOTPC64", Use.GOT_BASE, 8, True, False),
    (R_GOTPLT64, "GOTPLT64", Use.GOT_SLOT_OFFSET, 8, False, False),
    (R_PLTOFF64, "PLTOFF64", Use.GOT_RELATIVE, 8, False, False),
    (R_SIZE32, "SIZE32", Use.SIZE, 4, False, False),
    (R_SIZE64, "SIZE64", Use.SIZE, 8, False, False),
    (R_GOTPC32_TLSDESC, "GOTPC32_TLSDESC", Use.TLS_DESCRIPTOR, 4, True, False),
    (R_TLSDESC_CALL, "TLSDESC_CALL", Use.TLS_DESCRIPTOR_CALL, 0, False, False),
    (R_GOTPCRELX, "GOTPCRELX", Use.GOT, 4, True, False),
    (R_REX_GOTPCRELX, "REX_GOTPCRELX", Use.GOT, 4, True, False),
)}
TLS_CALLEE = "__tls_get_addr"      # its calls disappear in the relaxations
TLS_TAIL = 4                       # what the addend of a relative thread-local field makes up for
UNSIGNED_32 = frozenset((R_32,))
# Hold only addresses that a position-dependent program itself can have: attach/imports.py
SHORT = frozenset(k for k, how in HOWTO.items() if how.narrow)


def static_tls_offset(memsz: int, align: int, address: int) -> int:
    """Offset from the thread pointer to the TLS image of the executable (variant II: the block lies below it).

    memsz, align, address: of its PT_TLS."""
    # The block starts at an address congruent to p_vaddr, as close below the (aligned) thread pointer as it fits.
    return -(memsz + (-address - memsz & max(align, 1) - 1))


# ---- fields --------------------------------------------------------------------------------------------------------

def _write(code: bytearray | memoryview, at: int, size: int, value: int, signed: bool) -> None:
    low, high = (-(1 << 8 * size - 1), 1 << 8 * size - 1) if signed else (0, 1 << 8 * size)
    if size == 8:
        value &= (1 << 64) - 1
        low, high = 0, 1 << 64
    if not low <= value < high:
        raise OutOfRange(f"{value:#x} does not fit {size} bytes")
    code[at:at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def relocate(code: bytearray, at: int, kind: int, v: int, p: int, places: Places) -> None:
    """Fill in the field at code[at:] of relocation type `kind`; it will run at address `p`.

    v is S + A (an offset from the thread pointer where Howto.use is one of TLS_*), except for GOT slots: A.
    Raises OutOfRange when the value does not fit, ValueError for a TLS sequence that the ABI does not list."""
    how = HOWTO[kind]
    use = how.use
    if use is Use.NOTHING:
        return
    if use in (Use.ADDRESS, Use.BRANCH):
        value = v - p if how.relative else v
        if places.branch and not -1 << 31 <= value < 1 << 31:
            value = places.branch - 4 - p
        if kind in (R_8, R_16):     # the psABI leaves the sign open: accept what fits either way
            _write(code, at, how.size, value, value < 0)
        else:
            _write(code, at, how.size, value, kind not in UNSIGNED_32)
    elif use in (Use.GOT, Use.TLS_GOT):
        _write(code, at, how.size, places.slot + v - p, True)
    elif use is Use.GOT_SLOT_OFFSET:
        _write(code, at, how.size, places.slot + v - places.got, True)
    elif use is Use.GOT_BASE:
        _write(code, at, how.size, places.got + v - p, True)
    elif use is Use.GOT_RELATIVE:
        _write(code, at, how.size, v - places.got, True)
    elif use is Use.SIZE:
        _write(code, at, how.size, places.size + v, False)
    elif use is Use.TLS_OFFSET:
        _write(code, at, how.size, v, True)
    elif use is Use.TLS_GENERAL:
        _relax_general(code, at, v + 4)
    elif use is Use.TLS_MODULE:
        _relax_module(code, at)
    elif use is Use.TLS_DESCRIPTOR:
        _relax_descriptor(code, at, v + 4)
    elif use is Use.TLS_DESCRIPTOR_CALL:
        if code[at:at + 2] != b"\xff\x10":
            raise ValueError("not a call through a TLS descriptor")
        code[at:at + 2] = b"\x66\x90"                                    # xchg %ax,%ax


# mov %fs:0,%rax
_LOAD_TP = b"\x64\x48\x8b\x04\x25\x00\x00\x00\x00"


def _relax_general(code: bytearray, at: int, offset: int) -> None:
    """General dynamic to local exec; `at` is the field of the lea."""
    tail = bytes(code[at + 4:at + 8])
    if code[at - 4:at] == b"\x66\x48\x8d\x3d" and at >= 4 and tail in (
            b"\x66\x66\x48\xe8",             # data16 data16 rex.W call __tls_get_addr@PLT
            b"\x66\x48\xff\x15"):            # data16 rex.W call *__tls_get_addr@GOTPCREL(%rip)
        code[at - 4:at + 8] = _LOAD_TP + b"\x48\x8d\x80"                 # lea offset(%rax),%rax
        _write(code, at + 8, 4, offset, True)
    elif at >= 3 and code[at - 3:at] == b"\x48\x8d\x3d" and code[at + 4:at + 6] == b"\x48\xb8" and (
            code[at + 14:at + 19] in (b"\x48\x01\xd8\xff\xd0", b"\x4c\x01\xf8\xff\xd0")):
        # Large model: lea; movabs $__tls_get_addr@PLTOFF,%rax; add %rbx or %r15,%rax; call *%rax
        code[at - 3:at + 19] = _LOAD_TP + b"\x48\x8d\x80" + bytes(4) + b"\x66\x0f\x1f\x44\x00\x00"  # nopw 0(%rax,%rax)
        _write(code, at + 9, 4, offset, True)
    else:
        raise ValueError("not one of the psABI's general dynamic TLS sequences")


def _relax_module(code: bytearray, at: int) -> None:
    """Local dynamic to local exec: the block's address becomes the thread pointer."""
    if at < 3 or code[at - 3:at] != b"\x48\x8d\x3d":
        raise ValueError("not one of the psABI's local dynamic TLS sequences")
    if code[at + 4] == 0xE8:                                             # call __tls_get_addr@PLT
        code[at - 3:at + 9] = b"\x66\x66\x66" + _LOAD_TP
    elif code[at + 4:at + 6] == b"\xff\x15":                             # call *__tls_get_addr@GOTPCREL(%rip)
        code[at - 3:at + 10] = b"\x66\x66\x66\x66" + _LOAD_TP
    elif code[at + 4:at + 6] == b"\x48\xb8" and code[at + 14:at + 19] in (
            b"\x48\x01\xd8\xff\xd0", b"\x4c\x01\xf8\xff\xd0"):           # large model, as above
        code[at - 3:at + 19] = _LOAD_TP + b"\x66\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00" + b"\x66\x90"
    else:
        raise ValueError("not one of the psABI's local dynamic TLS sequences")


def _relax_descriptor(code: bytearray, at: int, offset: int) -> None:
    """lea x@tlsdesc(%rip),%reg becomes mov $offset,%reg."""
    if at < 3 or code[at - 3] & 0xFB != 0x48 or code[at - 2] != 0x8D or code[at - 1] & 0xC7 != 5:
        raise ValueError("not a lea of a TLS descriptor")
    code[at - 3:at] = bytes((0x48 | (code[at - 3] & 4) >> 2, 0xC7, 0xC0 | code[at - 1] >> 3 & 7))
    _write(code, at, 4, offset, True)


def plt_entry(address: int, slot: int) -> bytes:
    """PLT_SIZE bytes that jump to the address in GOT slot `slot`; clobbers nothing."""
    displacement = bytearray(4)
    _write(displacement, 0, 4, slot - (address + 10), True)
    return (b"\xf3\x0f\x1e\xfa"                                          # endbr64
            b"\xff\x25" + bytes(displacement) +                          # jmp *slot(%rip)
            b"\x66\x0f\x1f\x44\x00\x00")                                 # nopw 0(%rax,%rax)


def jump(address: int, target: int) -> bytes:
    """JUMP_SIZE bytes: a direct jump from `address` to `target`."""
    displacement = bytearray(4)
    _write(displacement, 0, 4, target - (address + JUMP_SIZE), True)
    return b"\xe9" + bytes(displacement)


def span(code: bytes, ref: Resolved) -> int:
    """How many bytes from its end a branch that the assembler resolved may lead, both ways."""
    return 1 << 8 * ref.size - 1


def room_in_place(code: bytes, ref: Resolved, first: int, behind: int) -> int:
    """Where a jump() may be written over a short jump that the assembler resolved and the padding behind it; -1: there is no room.

    Nobody comes to that padding from in front of it: the jump always jumps.  Nor by an indirect jump in its function, code[first:behind],
    which has none: distances between labels (GCC manual, Labels as Values) have no relocations.  All other ways are for the caller
    to see."""
    start, at = ref.at - 1, ref.end
    if ref.size != 1 or code[start] != _SHORT_JUMP:
        return -1
    try:
        while at < start + JUMP_SIZE:
            i = decode.decode(code, at)
            if not _is_nop(i):
                return -1
            at = i.end
        if any(decode.is_indirect_jump(i) for i in decode.walk(code, first, behind)):
            return -1
    except (ValueError, IndexError):
        return -1
    return start


def repoint(code: bytearray | memoryview, ref: Resolved, displacement: int) -> None:
    """Set the displacement of a reference that the assembler had resolved.  Raises OutOfRange."""
    _write(code, ref.at, ref.size, displacement, True)


# ---- code ----------------------------------------------------------------------------------------------------------

def is_thunk(name: str) -> bool:
    """Whether a function of this name only jumps to an address in a register: compilers make them against speculation."""
    return name.startswith(_THUNKS)


def is_call(code: bytes, insn: int) -> bool:
    """The instruction at offset `insn` is a direct call."""
    return code[insn] == 0xE8


def trace(parts: list[Part], marks: Mapping[tuple[int, int], Mark], table: Callable[[int, int], bytes],
          landing_pads: bool) -> dict[tuple[int, int], Found]:
    """Nothing: compilers give each use of a variable its own relocation."""
    return {}


def survey(code: bytes, ranges: list[tuple[int, int]], relocs: dict[int, int], addends: dict[int, int],
           found: Mapping[int, Found]) -> CodeSurvey:
    """Walk over the functions at `ranges` (start, end) of a section.

    relocs, addends: by offset of a field, the relocation's type and addend; found: by the same, of `trace`.

    Raises ValueError where the bytes are no instructions, or a relocation is in none of an instruction's fields."""
    fields: dict[int, Field] = {}
    resolved: list[Resolved] = []
    breaks: list[int] = []
    for start, end in ranges:
        insns = decode.walk(code, start, end)
        for number, i in enumerate(insns):
            branch = decode.is_call(i) or decode.is_jump(i)
            if branch or decode.ends_path(i) or decode.is_indirect_call(i):
                breaks.append(i.at)
            if i.imm_at >= 0 and i.imm_at in relocs:
                use = HOWTO[relocs[i.imm_at]].use
                if branch and use is Use.ADDRESS:
                    use = Use.BRANCH
                access = Access.EXACT if branch else _immediate_access(code, insns, number)
                fields[i.imm_at] = Field(use, 4 if branch else 0, access, i.at)
            elif branch:
                resolved.append(Resolved(i.imm_at, i.imm_size, decode.branch_target(code, i), Use.BRANCH,
                                         decode.is_call(i), i.end))
            if i.disp_at >= 0 and i.disp_at in relocs:
                how = HOWTO[relocs[i.disp_at]]
                tail = i.end - i.disp_at if i.rip_relative else 0
                fields[i.disp_at] = Field(how.use, tail, _memory_access(code, insns, number, how), i.at)
            elif i.rip_relative and decode.is_lea(i):
                resolved.append(Resolved(i.disp_at, 4, i.end + decode.displacement(code, i),
                                         Use.ADDRESS, False, i.end))
        for at in relocs.keys() & range(start, end):
            if at not in fields and HOWTO[relocs[at]].use not in (Use.NOTHING, Use.TLS_DESCRIPTOR_CALL):
                raise ValueError(f"relocation {HOWTO[relocs[at]].name} at {at:#x} is in no field of an instruction")
    # The large model adds GOT - L to the address of a label L; a function whose entry is L is not meant.
    anchors = {at - addends[at] for at, kind in relocs.items() if HOWTO[kind].use is Use.GOT_BASE}
    return CodeSurvey(fields, tuple(x for x in resolved if x.use is Use.BRANCH or x.target not in anchors),
                      tuple(sorted(breaks)))


def _immediate_access(code: bytes, insns: tuple[Insn, ...], number: int) -> Access:
    """An address as an immediate: cmp $x, or mov and the like."""
    i = insns[number]
    if i.map == 0 and 0xB8 <= i.opcode < 0xC0:
        return _use_of_address(code, insns, number, i.opcode & 7 | (i.rex & 1) << 3)
    if i.map == 0 and i.opcode == 0xC7 and i.modrm >= 0xC0:
        return _use_of_address(code, insns, number, i.modrm & 7 | (i.rex & 1) << 3)
    compare = i.map == 0 and (i.opcode == 0x3D or i.opcode == 0x81 and i.modrm >> 3 & 7 == 7)
    return Access.COMPARED if compare else Access.ADDRESS


def _memory_access(code: bytes, insns: tuple[Insn, ...], number: int, how: Howto) -> Access:
    i = insns[number]
    if how.use in (Use.GOT, Use.GOT_SLOT_OFFSET):
        # The instruction reads the GOT slot: a call through it is a call, anything else takes the address.
        return Access.EXACT if decode.is_indirect_call(i) or decode.is_indirect_jump(i) else Access.ADDRESS
    if i.base >= 0 or i.index >= 0:
        if decode.is_indirect_jump(i) or i.index >= 0 and i.scale == 8 and _jumps_soon(insns, number):
            return Access.TABLE
        return Access.ADDRESS if decode.is_lea(i) else Access.INDEXED
    if decode.is_lea(i):
        return _use_of_address(code, insns, number, i.reg)
    return Access.WRITTEN if decode.may_write_memory(i) else Access.EXACT


def _jumps_soon(insns: tuple[Insn, ...], number: int) -> bool:
    """mov table(,%reg,8),%reg2 followed by jmp *%reg2 (retpolines and labels as values)."""
    return any(decode.is_indirect_jump(i) for i in insns[number + 1:number + 4])


def _use_of_address(code: bytes, insns: tuple[Insn, ...], number: int, register: int) -> Access:
    """What becomes of the register that an address is put into, as far as straight-line reading shows.

    A jump table's base is the base of a movslq (reg,index,4); an end of an array is only compared with, or counted down
    from; the base of an array that is indexed is the base of a memory operand.  The first use decides.  Reading goes on
    over branches (the loop that uses the register may come later) to the end of the function or until the register is
    set again."""
    compared = False
    for i in insns[number + 1:]:
        if i.map == 0 and i.opcode == 0x63 and i.base == register and i.index >= 0 and i.scale == 4:
            return Access.TABLE
        mentions_rm = i.modrm >= 0xC0 and ((i.modrm & 7) | (i.rex & 1) << 3) == register
        mentions_reg = i.modrm >= 0 and i.reg == register and not decode.reg_is_opcode(i)
        if i.map == 0 and i.opcode in (0x39, 0x3B) and (mentions_rm or mentions_reg):
            compared = True
            continue
        if i.base == register and decode.displacement(code, i) < 0:
            return Access.BELOW
        if mentions_rm and i.map == 0 and i.opcode in (0x81, 0x83):
            value = int.from_bytes(code[i.imm_at:i.end], "little", signed=True)
            extension = i.modrm >> 3 & 7
            return Access.BELOW if (extension, value > 0) in ((5, True), (0, False)) else Access.ADDRESS
        if (i.base == register or i.index == register and i.scale == 1) and not decode.is_lea(i):
            return Access.INDEXED
        if i.base == register or i.index == register:
            return Access.ADDRESS
        if mentions_reg and i.map == 0 and i.opcode in (0x8B, 0x8D, 0x63) or (
                mentions_rm and i.map == 0 and i.opcode == 0x89):
            break                                             # set anew
        if mentions_reg or mentions_rm:
            return Access.ADDRESS
        if i.map == 0 and (0x50 <= i.opcode < 0x58 or 0xB8 <= i.opcode < 0xC0) and (
                (i.opcode & 7) | (i.rex & 1) << 3) == register:
            if i.opcode >= 0xB8:
                break
            return Access.ADDRESS                             # pushed
        if 0 <= register <= 11 and register not in (3, 4, 5) and (
                decode.is_call(i) or decode.is_indirect_call(i) or i.opcode == 0xC3 and i.map == 0):
            if not compared:
                return Access.ADDRESS                         # an argument or the result
            break
    return Access.COMPARED if compared else Access.ADDRESS


def _is_nop(i: Insn) -> bool:
    """What assemblers pad with.  Not endbr64, which is there because somebody comes."""
    return (i.map == 0 and i.opcode == 0x90) or (i.map == 1 and i.opcode == 0x1F)


def padding(code: bytes, start: int, end: int) -> bool:
    """code[start:end] is what assemblers put between functions: nops, int3, zeros."""
    at = start
    try:
        while at < end:
            if code[at] in (0xCC, 0):
                at += 1
                continue
            i = decode.decode(code, at)
            if not _is_nop(i):
                return False
            at = i.end
    except (ValueError, IndexError):
        return False
    return at <= end


def pack_slot(value: int) -> bytes:
    """A GOT slot holding `value` (an address, or an offset from the thread pointer)."""
    return struct.pack("<Q", value & (1 << 64) - 1)


def result_registers(size: int, parts: tuple[ResultPart, ...]) -> int:
    """The registers of RESULTS in which a result of `size` bytes comes back.  psABI x86-64 1.0, 3.2.3 (classification, returning)."""
    if size > 16:                          # in memory, but for one vector, whose first bytes may be a number as well
        whole = any(p.size == size and p.kind == "vector" for p in parts)
        return _XMM0 if whole and all(p.size == size or p.kind == "float" and p.at + p.size <= 8 for p in parts) else 0
    if any(p.kind == "long double" or p.at % max(min(p.size, 16), 1) for p in parts):
        return 0                           # on the x87 stack, or in memory because it is not aligned
    integers = [any(p.kind == "integer" and p.at < 8 * n + 8 and p.at + p.size > 8 * n for p in parts) for n in (0, 1)]
    # The upper half of 16 bytes has no register of its own, unless the lower half is in a general one.
    others = [not integers[n] and any(8 * n <= p.at < 8 * n + 8 or n and integers[0] and p.size == 16 for p in parts)
              for n in (0, 1)]
    return (_RDX if all(integers) else 0) | (_XMM0 if any(others) else 0) | (_XMM1 if all(others) else 0)
