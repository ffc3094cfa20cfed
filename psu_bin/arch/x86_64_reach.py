"""Instructions that name something more than 2 GiB away, rewritten to go through a GOT slot.

Code compiled with -fPIE reaches the data of shared libraries (`stderr`, `environ`) by 32-bit displacements, because a
linker would have made a copy of it in the executable.  Where the program has no such copy, the patch's instruction is
rewritten:

- `lea x(%rip),%reg` becomes `mov slot(%rip),%reg`, in place;
- any other one moves to a thunk behind the code, which loads the address into a register first.  The register is the
  one that the instruction sets, or one that is saved around it below the red zone.  No flags change.

Control enters a thunk only by the jump that takes the instruction's place: nothing jumps into the middle of an
instruction."""

from __future__ import annotations

from psu_bin.arch import x86_64_decode as decode
from psu_bin.arch.x86_64_decode import RSP, Insn

THUNK_SIZE = 64
RBX, RSI, RDI = 3, 6, 7
_SAVE = b"\x48\x8d\x64\x24\x80"                    # lea -128(%rsp),%rsp: below the red zone
_RESTORE = b"\x48\x8d\xa4\x24\x80\x00\x00\x00"     # lea 128(%rsp),%rsp


def rewrite(code: bytearray, at: int, address: int, slot: int, thunk: int) -> bytes:
    """Rewrite the instruction at code[at:], which will run at `address`, to use the address in GOT slot `slot`.

    Returns what must go to `thunk` (at most THUNK_SIZE bytes; b"": nothing).  Raises ValueError for an instruction that
    cannot be rewritten."""
    i = decode.decode(code, at)
    if not i.rip_relative:
        raise ValueError("not a PC-relative operand")
    if decode.is_lea(i):
        code[i.modrm_at - 1] = 0x8B
        code[i.disp_at:i.disp_at + 4] = _rel32(slot, address + i.end - at)
        return b""
    if i.rex & 1 or decode.is_indirect_call(i) or decode.is_indirect_jump(i) or _moves_stack(i) or (
            i.reg == RSP and not decode.reg_is_opcode(i)):
        raise ValueError("an instruction that cannot go through a register")
    out = b""
    if _sets_whole_register(i):
        register = i.reg
    else:
        register = next(r for r in (RSI, RDI, RBX) if r not in (i.reg, i.vvvv))
        out += _SAVE + bytes((0x50 | register,))
    # mov slot(%rip),%register
    out += bytes((0x48 | (register & 8) >> 1, 0x8B, 0x05 | (register & 7) << 3))
    out += _rel32(slot, thunk + len(out) + 4)
    out += _with_base(code, i, register)
    if not _sets_whole_register(i):
        out += bytes((0x58 | register,)) + _RESTORE
    out += b"\xe9" + _rel32(address + i.end - at, thunk + len(out) + 5)
    code[at:i.end] = b"\xe9" + _rel32(thunk, address + 5) + b"\x90" * (i.end - at - 5)
    return out


def _rel32(target: int, end: int) -> bytes:
    value = target - end
    if not -1 << 31 <= value < 1 << 31:
        raise ValueError(f"{value:#x} does not fit 4 bytes")
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def _moves_stack(i: Insn) -> bool:
    """push or pop of a memory operand."""
    return i.map == 0 and (i.opcode == 0x8F or i.opcode == 0xFF and i.modrm >> 3 & 7 == 6)


def _sets_whole_register(i: Insn) -> bool:
    """A load whose only effect is to set all 64 bits of a general register other than rsp."""
    if i.vex or i.wide or i.reg == RSP:
        return False
    return i.map == 0 and i.opcode in (0x8B, 0x63) or i.map == 1 and i.opcode in (0xB6, 0xB7, 0xBE, 0xBF)


def _with_base(code: bytearray, i: Insn, register: int) -> bytes:
    """The instruction with (register) in place of its PC-relative operand."""
    head = bytearray(code[i.at:i.modrm_at])
    if register & 8:                                  # a load into r8 to r15: its REX gets the base's bit as well
        head[i.rex_at - i.at] |= 1
    modrm = i.modrm & 0x38 | register & 7
    if register & 7 == 4:                             # r12 as base needs a SIB byte
        operand = bytes((modrm, 0x24))
    elif register & 7 == 5:                           # rbp, r13 as base need a displacement
        operand = bytes((modrm | 0x40, 0))
    else:
        operand = bytes((modrm,))
    return bytes(head) + operand + bytes(code[i.disp_at + 4:i.end])
