"""x86-64: stubs, jumps, and the fields that instrument reroutes, encoded by hand with range checks.

keystone is not used here: it turns some operands into other code without an error, and these few encodings are fixed.
numpy is imported where it is used, because attach needs this module and not numpy.

Specification: Intel SDM volume 2; psABI x86-64, 4.4 for the relocation number and 5 for the GNU property.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from psu_bin.arch import EM_X86_64, Arch, FieldKind, Jump, SiteForm
from psu_bin.descriptor import MODULE_IBT
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    import numpy as np

REACH = 1 << 31              # of a displacement of 4 bytes, both ways
INT3 = b"\xcc"
JUMP_SIZE = 5
# int3; nop; xchg %ax,%ax; nopl and nopw with any operand that GNU as and LLVM use, and their prefixes.
_PADDING = re.compile(rb"(?:\xcc|\x66*\x2e?(?:\x90|\x0f\x1f(?:\x00|\x40.|\x44..|\x80....|\x84.....)))*", re.DOTALL)
R_X86_64_RELATIVE = 8
RESOLVER_SIZE = 48
GNU_PROPERTY_X86_FEATURE_1_AND, X86_FEATURE_1_IBT = 0xC0000002, 1

# A stub touches no register and no flag (I2).  What follows the jump is never executed.
STUB = bytes((
    0xFF, 0x25, 0, 0, 0, 0,               # jmp *slot(%rip)
    0xCC, 0xCC,                           # int3
))
# Under indirect branch tracking: `notrack`, because an original that only direct calls reach has no endbr64.
STUB_IBT = bytes((
    0xF3, 0x0F, 0x1E, 0xFA,               # endbr64
    0x3E, 0xFF, 0x25, 0, 0, 0, 0,         # notrack jmp *slot(%rip)
    0xCC, 0xCC, 0xCC, 0xCC, 0xCC,         # int3
))
# Each with the position of its displacement.
_FORMS = {False: (STUB, 2), True: (STUB_IBT, 7)}

# DW_CFA_def_cfa rsp+8; DW_CFA_offset rip at cfa-8
STUB_CFI = bytes((0x0C, 7, 8, 0x90, 1))


def stub_size(flags: int) -> int:
    """Bytes of one stub in a module with these flags."""
    return len(_FORMS[bool(flags & MODULE_IBT)][0])


def stub(address: int, slot: int, flags: int) -> bytes:
    """The stub at `address` that jumps through `slot`.  Raises PsuError when the slot is out of reach."""
    form, at = _FORMS[bool(flags & MODULE_IBT)]
    return form[:at] + _displacement(address + at + 4, slot) + form[at + 4:]


def jump(at: int, to: int) -> bytes:
    """`jmp to` at address `at`.  Raises PsuError when it is out of reach."""
    return b"\xe9" + _displacement(at + JUMP_SIZE, to)


def jump_through(at: int, slot: int, flags: int) -> bytes:
    """A stub without the mark that only jumps through pointers need."""
    prefix = STUB_IBT[4:7] if flags & MODULE_IBT else STUB[:2]
    return prefix + _displacement(at + len(prefix) + 4, slot)


def resolver(at: int, slots: int, count: int, result: int) -> bytes:
    """A function at `at` that adds the load bias to `count` slots and returns it plus `result`.  See relocations.py."""
    def lea(opcode: bytes, position: int, target: int) -> bytes:
        return opcode + _displacement(at + position + 7, target)
    return b"".join((
        bytes.fromhex("f30f1efa"),                         #     endbr64
        lea(bytes.fromhex("488d15"), 4, slots),            #     lea slots(%rip), %rdx
        lea(bytes.fromhex("488d0d"), 11, 0),               #     lea 0(%rip), %rcx       file address 0: the load bias
        b"\xbe" + struct.pack("<I", count),                #     mov $count, %esi
        bytes.fromhex("48010a"),                           # 1:  add %rcx, (%rdx)
        bytes.fromhex("4883c208"),                         #     add $8, %rdx
        bytes.fromhex("ffce"),                             #     dec %esi
        bytes.fromhex("75f5"),                             #     jnz 1b
        lea(bytes.fromhex("488d05"), 34, result),          #     lea result(%rip), %rax
        b"\xc3",                                           #     ret
    )).ljust(RESOLVER_SIZE, INT3)


def is_padding(code: bytes) -> bool:
    """Whether `code` is NOPs of compilers and assemblers, and int3, and nothing else."""
    return _PADDING.fullmatch(code) is not None


def _displacement(end: int, target: int) -> bytes:
    """P-relative: target - end, `end` being the address behind the field."""
    distance = target - end
    if not -REACH <= distance < REACH:
        raise PsuError(f"{end:#x}", f"out of reach of {target:#x}", "x86-64 code and data must lie within 2 GB")
    return struct.pack("<i", distance)


def _site_target(at: int, field: bytes) -> int:
    return at + 4 + int.from_bytes(field, "little", signed=True)


def _relative_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    target: np.ndarray = at + 4 + field.view("<i4")[:, 0]
    return target


def _relative_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = target - (at + 4)
    return distance.astype("<i4").view("u1").reshape(-1, 4), (-REACH <= distance) & (distance < REACH)


def _absolute32_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    return field.view("<u4")[:, 0].astype("i8")


def _absolute32_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The instruction may extend it with zeros or with its sign: below 2 GB both give the same.
    return target.astype("<u4").view("u1").reshape(-1, 4), (0 <= target) & (target < REACH)


def _absolute64_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    return field.view("<i8")[:, 0]


def _absolute64_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return target.astype("<i8").view("u1").reshape(-1, 8), target >= 0


def may_refer(code: bytes, address: int, low: int, high: int, absolute: bool) -> bool:
    """Whether some bytes of `code` at `address` look like an operand that leads into [low, high).

    absolute: 4-byte addresses count, too.  Without decoding: misses nothing, may take an accident for an operand."""
    import numpy as np
    for start in range(0, len(code) - 4, 1 << 20):        # in parts: 8 bytes of memory a byte of code, and more
        part = code[start:start + (1 << 20) + 4]
        words: np.ndarray = np.ndarray((len(part) - 4,), dtype="<i4", buffer=part, offset=1, strides=(1,))
        after = np.arange(len(words), dtype=np.int64) + (address + start + 5)
        # The ModRM byte of a RIP-relative operand precedes the field; up to 4 bytes of immediate follow it.
        relative = np.frombuffer(part, dtype=np.uint8, count=len(words)) & 0xC7 == 0x05
        target = after + words
        if (relative & (target >= low - 4) & (target < high)).any():
            return True
        if absolute and ((words >= low) & (words < high)).any():
            return True
    return False


_ABSOLUTE64 = FieldKind(8, _absolute64_target, _absolute64_encode)

ARCH = Arch(
    name="x86_64", machine=EM_X86_64, elf_class=64, page_size=4096, reach=REACH, data_reach=REACH,
    stub_size=stub_size, stub=stub, stub_align=16, stub_cfi=STUB_CFI, return_column=16,
    jump=jump, jump_size=JUMP_SIZE, far_pad=Jump(JUMP_SIZE, jump), padding=INT3,
    # A displacement may lie across two words.  In steps of 16 MiB only its highest byte changes.
    site_form=SiteForm("REL32", lambda field: True, _site_target, lambda at, field, to: _displacement(at + 4, to), 1 << 24,
                       jump_through),
    store_unit=8, is_padding=is_padding,
    fields={"REL32": FieldKind(4, _relative_target, _relative_encode),
            "ABS32": FieldKind(4, _absolute32_target, _absolute32_encode),
            "ABS64": _ABSOLUTE64, "RELR_WORD": _ABSOLUTE64},
    moved_field="REL32", landing=lambda flags, code: b"",        # stubs jump with `notrack`
    relative=R_X86_64_RELATIVE, resolver=resolver, resolver_size=RESOLVER_SIZE, may_refer=may_refer,
    branch_marks=(GNU_PROPERTY_X86_FEATURE_1_AND, X86_FEATURE_1_IBT), guarded_pages=("", 0),
    returns_through_memory=True, system_call=b"\x0f\x05",
    signal_return=b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05")              # mov $15, %rax; syscall: in the C library
