"""AArch64: stubs, jumps, and the fields that instrument reroutes, encoded by hand with range checks.

keystone is not used here: it truncates branches that are out of range without an error, and has no bti.  What needs
numpy is in aarch64_words.py and imported where it is used, because attach needs this module and not numpy.

A stub changes x16, which the AAPCS64 gives to linkers for just this (their veneers and the PLT change it, too), so no
compiler keeps anything in it across a call.  Hand-written code may: instrument finds the callers that do.

Specification: Arm Architecture Reference Manual (DDI 0487), C6; AAPCS64, 6.1.1; AArch64 ELF, 5.7 and 6 (properties).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from psu_bin.arch import EM_AARCH64, Arch, FieldKind, Jump, SiteForm
from psu_bin.descriptor import MODULE_IBT
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    import numpy as np

REACH = 1 << 27              # of b and bl, both ways
DATA_REACH = 1 << 31         # of unwind tables; adrp reaches twice as far
JUMP_SIZE, FAR_PAD_SIZE = 4, 12
NOP = bytes.fromhex("1f2003d5")
RESOLVER_SIZE = 64
PAGE = 4096                  # what adrp counts in, whatever pages the kernel has
R_AARCH64_RELATIVE = 1027
PROT_BTI = 0x10              # Linux, arch/arm64/include/uapi/asm/mman.h
GNU_PROPERTY_AARCH64_FEATURE_1_AND, AARCH64_FEATURE_1_BTI = 0xC0000000, 1

BTI_C, BTI_JC = 0xD503245F, 0xD50324DF
PACIASP, PACIBSP = 0xD503233F, 0xD503237F
_ADRP_X16, _LDR_X16_X16, _BR_X16 = 0x90000010, 0xF9400210, 0xD61F0200
BRK = struct.pack("<I", 0xD4200000)                      # brk #0
# What the jump of a stub (br x16) may lead to where branches must meet marks; paciasp and pacibsp count as marks.
_LANDINGS = frozenset((BTI_C, BTI_JC, PACIASP, PACIBSP))

# DW_CFA_def_cfa sp+0: the return address is in x30
STUB_CFI = bytes((0x0C, 31, 0))


def stub_size(flags: int) -> int:
    """Bytes of one stub in a module with these flags: four instructions with bti, and as many without, so that no stub
    lies in two cache lines."""
    return 16


def stub(address: int, slot: int, flags: int) -> bytes:
    """The stub at `address` that jumps through `slot`, a multiple of 8.  Raises PsuError when the slot is out of reach.

    Erratum 843419 cannot concern it: the load behind adrp replaces the register that adrp set."""
    marked = bool(flags & MODULE_IBT)
    at = address + 4 * marked
    body = struct.pack("<3I", adrp(at, 16, slot),            # adrp x16, slot
                       _LDR_X16_X16 | (slot & 0xFFF) // 8 << 10,  # ldr x16, [x16, #:lo12:slot]
                       _BR_X16)                              # br x16
    return struct.pack("<I", BTI_C) + body if marked else body + BRK


def adrp(at: int, register: int, target: int) -> int:
    """`adrp register, target` at address `at`.  Raises PsuError when the page is out of reach."""
    pages = (target // PAGE) - (at // PAGE)
    if not -(1 << 20) <= pages < 1 << 20:
        raise PsuError(f"{at:#x}", f"out of reach of {target:#x}", "AArch64 code and data must lie within 4 GB")
    return _ADRP_X16 & ~31 | register | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def resolver(at: int, slots: int, count: int, result: int) -> bytes:
    """A function at `at` that adds the load bias to `count` slots and returns it plus `result`.  See relocations.py."""
    return struct.pack(
        "<14I", BTI_C,                                           #     bti c
        adrp(at + 4, 1, slots),                                  #     adrp x1, slots
        0x91000021 | (slots & 0xFFF) << 10,                      #     add x1, x1, #:lo12:slots
        adrp(at + 12, 2, 0),                                     #     adrp x2, 0             file address 0: the load bias
        0x52800003 | (count & 0xFFFF) << 5,                      #     mov w3, #count
        0x72A00003 | (count >> 16) << 5,                         #     movk w3, #count >> 16, lsl #16
        0xF9400024,                                              # 1:  ldr x4, [x1]
        0x8B020084,                                              #     add x4, x4, x2
        0xF8008424,                                              #     str x4, [x1], #8
        0x71000463,                                              #     subs w3, w3, #1
        0x54FFFF81,                                              #     b.ne 1b
        adrp(at + 44, 0, result),                                #     adrp x0, result
        0x91000000 | (result & 0xFFF) << 10,                     #     add x0, x0, #:lo12:result
        0xD65F03C0) + 2 * BRK                                    #     ret


def jump(at: int, to: int) -> bytes:
    """`b to` at address `at`.  Raises PsuError when it is out of reach."""
    distance = to - at
    if not -REACH <= distance < REACH or distance % 4:
        raise PsuError(f"{at:#x}", f"out of reach of {to:#x}", "AArch64 code must lie within 128 MB")
    return struct.pack("<I", 0x14000000 | distance >> 2 & 0x3FFFFFF)


def far_pad(at: int, to: int) -> bytes:
    """A jump from `at` to code `to` without a landing mark, 2 GiB away at most: only `ret` may go there.

    It takes the prediction of returns out of step, so it is for where hardly anybody comes by."""
    return struct.pack("<3I", adrp(at, 16, to),              # adrp x16, to
                       0x91000210 | (to & 0xFFF) << 10,      # add x16, x16, #:lo12:to
                       0xD65F0200)                           # ret x16


def is_padding(code: bytes) -> bool:
    """Whether `code` is NOPs and nothing else."""
    return code == NOP * (len(code) // 4)


def _is_branch(field: bytes) -> bool:
    """b and bl, which may be exchanged while they are executed; conditional branches may not (Arm ARM B2.2.5)."""
    return int.from_bytes(field, "little") & 0x7C000000 == 0x14000000


def _site_target(at: int, field: bytes) -> int:
    words = int.from_bytes(field, "little") & 0x3FFFFFF
    return at + 4 * (words - (words >> 25 << 26))


def _site_turned(at: int, field: bytes, to: int) -> bytes:
    return bytes((*jump(at, to)[:3], jump(at, to)[3] | field[3] & 0x80))


def landing(flags: int, code: bytes) -> bytes:
    """What must be in front of `code`, an original or its moved entry, so that `br x16` may lead there.

    Compilers leave out the mark where a function is only called directly, which instrument changes."""
    if not flags & MODULE_IBT or int.from_bytes(code[:4], "little") in _LANDINGS:
        return b""
    return struct.pack("<I", BTI_C)


def may_refer(code: bytes, address: int, low: int, high: int, absolute: bool) -> bool:
    """Whether some instruction of `code` at `address` may refer to [low, high), without following registers.

    Misses nothing that is relative: an adrp of a page of the range counts, whatever becomes of it.  absolute: addresses in
    words count, too."""
    import numpy as np

    from psu_bin.arch import aarch64_words as words
    word = np.frombuffer(code[:len(code) // 4 * 4], dtype="<u4")
    at = address + 4 * np.arange(len(word), dtype=np.int64)
    form = words.form(word)
    target, holds = words.target(at, word, form), words.holds(form)
    relative = (form != words.NONE) & (form != words.ADD)
    hit: np.ndarray = relative & (target >= low & holds) & (target < high)
    if hit.any():
        return True
    data: np.ndarray = np.ndarray((max(len(code) - 7, 0),), dtype="<i8", buffer=code, strides=(1,))
    return absolute and bool(((data >= low) & (data < high)).any())


def _words(field: np.ndarray) -> np.ndarray:
    return field.view("<u4")[:, 0]


def _instruction_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    from psu_bin.arch import aarch64_words as words
    return words.target(at, _words(field), words.form(_words(field)))


def _instruction_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from psu_bin.arch import aarch64_words as words
    new, fits = words.encode(at, _words(field), target)
    return new.astype("<u4").view("u1").reshape(-1, 4), fits


def _instruction_holds(field: np.ndarray) -> np.ndarray:
    from psu_bin.arch import aarch64_words as words
    return words.holds(words.form(_words(field)))


def _adr_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """adr with the destination of the add (or adr) that is there."""
    return _instruction_encode(at, (_words(field) & 31 | 0x10000000).astype("<u4").view("u1").reshape(-1, 4), target)


def _absolute64_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    return field.view("<i8")[:, 0]


def _absolute64_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return target.astype("<i8").view("u1").reshape(-1, 8), target >= 0


def _absolute32_target(at: np.ndarray, field: np.ndarray) -> np.ndarray:
    return field.view("<u4")[:, 0].astype("i8")


def _absolute32_encode(at: np.ndarray, field: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return target.astype("<u4").view("u1").reshape(-1, 4), (0 <= target) & (target < 1 << 32)


_ABSOLUTE64 = FieldKind(8, _absolute64_target, _absolute64_encode)

ARCH = Arch(
    name="aarch64", machine=EM_AARCH64, elf_class=64, page_size=1 << 16, reach=REACH, data_reach=DATA_REACH,
    stub_size=stub_size, stub=stub, stub_align=16, stub_cfi=STUB_CFI, return_column=30,
    jump=jump, jump_size=JUMP_SIZE, far_pad=Jump(FAR_PAD_SIZE, far_pad), padding=BRK,
    site_form=SiteForm("INSTRUCTION", _is_branch, _site_target, _site_turned, 0, stub),
    store_unit=4, is_padding=is_padding,
    fields={"INSTRUCTION": FieldKind(4, _instruction_target, _instruction_encode, _instruction_holds),
            "TO_ADR": FieldKind(4, _instruction_target, _adr_encode, _instruction_holds),
            "ABS32": FieldKind(4, _absolute32_target, _absolute32_encode),
            "ABS64": _ABSOLUTE64, "RELR_WORD": _ABSOLUTE64},
    moved_field="INSTRUCTION", landing=landing, relative=R_AARCH64_RELATIVE,
    resolver=resolver, resolver_size=RESOLVER_SIZE, may_refer=may_refer,
    branch_marks=(GNU_PROPERTY_AARCH64_FEATURE_1_AND, AARCH64_FEATURE_1_BTI), guarded_pages=("bt", PROT_BTI),
    returns_through_memory=False, system_call=struct.pack("<I", 0xD4000001),
    signal_return=struct.pack("<II", 0xD2801168, 0xD4000001))        # mov x8, #139; svc #0: in the vDSO
