"""The function that relocates all slots, as machine code: disassembled and compared."""

from __future__ import annotations

import capstone
import pytest

from psu_bin.arch import aarch64, x86_64
from psu_bin.errors import PsuError

X86_64 = """endbr64
lea rdx, [rip - 0xffb]
lea rcx, [rip - 0x5022]
mov esi, 0x12345
add qword ptr [rdx], rcx
add rdx, 8
dec esi
jne 0x5027
lea rax, [rip - 0x1ff1]
ret"""
AARCH64 = """bti c
adrp x1, #0x4000
add x1, x1, #0x20
adrp x2, #0
mov w3, #0x2345
movk w3, #1, lsl #16
ldr x4, [x1]
add x4, x4, x2
str x4, [x1], #8
subs w3, w3, #1
b.ne #0x5028
adrp x0, #0x3000
add x0, x0, #0x48
ret"""


@pytest.mark.parametrize(("machine", "decoder", "text"), [
    (x86_64, capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64), X86_64),
    (aarch64, capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM), AARCH64)], ids=["x86_64", "aarch64"])
def test_the_function_that_relocates_slots(machine: object, decoder: capstone.Cs, text: str) -> None:
    arch = machine.ARCH     # type: ignore[attr-defined]
    code = arch.resolver(0x5010, 0x4020, 0x12345, 0x3048)
    assert len(code) == arch.resolver_size and not arch.resolver_size % arch.stub_align
    lines = [f"{i.mnemonic} {i.op_str}".strip() for i in decoder.disasm(code, 0x5010)]
    assert lines[:len(text.splitlines())] == text.splitlines()
    size = sum(i.size for i in list(decoder.disasm(code, 0x5010))[:len(text.splitlines())])
    assert code[size:] == arch.padding * ((len(code) - size) // len(arch.padding))
    with pytest.raises(PsuError, match="out of reach"):
        arch.resolver(0x5010, 1 << 40, 1, 0)
