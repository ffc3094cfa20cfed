"""x86-64: stubs, jumps and rerouted fields, encoded by hand with range checks.

keystone is not used here: it turns some operands into other code without an error, and these few encodings are fixed.
Specification: Intel SDM volume 2; psABI x86-64 4.4 for the relocation number.
"""

from __future__ import annotations

import struct

from psu_bin.arch import EM_X86_64, Arch
from psu_bin.descriptor import MODULE_IBT
from psu_bin.errors import PsuError
from psu_bin.instrument.plan_types import Reroute

ENDBR64 = bytes.fromhex("f30f1efa")
NOTRACK_JMP_SLOT = bytes.fromhex("3eff25")   # notrack jmp *disp32(%rip): the original need not begin with endbr64
JMP_SLOT = bytes.fromhex("ff25")             # jmp *disp32(%rip)
JMP = 0xE9
JUMP_SIZE = 5
PADDING = 0xCC
R_X86_64_RELATIVE = 8


def _disp32(field_end: int, target: int) -> bytes:
    distance = target - field_end
    if not -(1 << 31) <= distance < 1 << 31:
        raise PsuError("stubs", f"out of reach: {target:#x} from {field_end:#x}")
    return struct.pack("<i", distance)


def stub_size(flags: int) -> int:
    """Bytes of one stub in a module with these flags."""
    return 16 if flags & MODULE_IBT else 8


def stub(address: int, slot: int, flags: int) -> bytes:
    """The stub at `address` that jumps through `slot`; touches no register and no flag (I2)."""
    head = ENDBR64 + NOTRACK_JMP_SLOT if flags & MODULE_IBT else JMP_SLOT
    code = head + _disp32(address + len(head) + 4, slot)
    return code.ljust(stub_size(flags), bytes([PADDING]))


def jump(at: int, to: int) -> bytes:
    """`jmp rel32` at address `at`."""
    return bytes([JMP]) + _disp32(at + JUMP_SIZE, to)


def reroute(kind: Reroute, at: int, target: int, old: int, expected: int) -> bytes:
    """The new bytes of the field at address `at`, which holds `old` now and must lead to `expected`.

    Raises PsuError when it does not, or when `target` does not fit."""
    if kind is Reroute.REL32:
        led_to = at + 4 + (old - (1 << 32) if old >> 31 else old)
        new = _disp32(at + 4, target)
    else:
        led_to = old
        size = 4 if kind is Reroute.ABS32 else 8
        # Sign- or zero-extended: both are the same below 2 GiB, where position-dependent programs lie.
        if target >> (31 if size == 4 else 63):
            raise PsuError("stubs", f"address {target:#x} does not fit {size} bytes at {at:#x}")
        new = target.to_bytes(size, "little")
    if led_to != expected:
        raise PsuError("plan", f"internal defect: the field at {at:#x} leads to {led_to:#x}, not to {expected:#x}")
    return new


ARCH = Arch(name="x86_64", machine=EM_X86_64, elf_class=64, page_size=4096, stub_size=stub_size, stub=stub, jump=jump,
            jump_size=JUMP_SIZE, padding=bytes([PADDING]), reroute=reroute, relative=R_X86_64_RELATIVE,
            # def_cfa rsp+8; return address at cfa-8
            stub_cfi=bytes.fromhex("0c07089001"))
