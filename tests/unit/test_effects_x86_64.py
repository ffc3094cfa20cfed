"""What x86-64 instructions read, write and replace, where the disassembler's tables say something else.

Expected values from the instructions' pages in the Intel SDM, volume 2.  Reads must not be too few; writes must not be
too many: a caller that relies on a register which a function wrongly seems to change gets no gate that keeps it.
"""

import numpy as np
import pytest

from psu_bin.arch import x86_64_scan as scan
from psu_bin.arch.code import Region

NAMES = [*"rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(), *(f"xmm{n}" for n in range(32)),
         *(f"k{n}" for n in range(8)), "flags", "mmx"]


def effects(code):
    """(read, written, replaced) of one instruction, as names."""
    decoded = scan.decode((Region(0x1000, code, np.array([0x1000]), np.array([0x1000 + len(code)])),))
    e = scan.effects(decoded)
    row = e.shape[0]
    return tuple(" ".join(n for bit, n in enumerate(NAMES) if int(mask[row]) >> bit & 1)
                 for mask in (e.reads, e.writes, e.kills))


@pytest.mark.parametrize("code, text, reads, writes, kills", [
    ("85 37", "test %esi,(%rdi)", "rsi rdi", "flags", "flags"),
    ("48 85 f6", "test %rsi,%rsi", "rsi", "flags", "flags"),
    ("48 99", "cqo", "rax", "rdx", "rdx"),
    ("48 ab", "stosq", "rax rdi", "rdi", ""),
    ("f3 48 ab", "rep stosq", "rax rcx rdi", "rcx rdi", ""),
    ("a4", "movsb", "rsi rdi", "rsi rdi", ""),
    ("f3 a6", "repe cmpsb", "rcx rsi rdi", "rcx rsi rdi flags", ""),
    ("f0 48 0f b1 32", "lock cmpxchg %rsi,(%rdx)", "rax rdx rsi", "rax flags", ""),
    ("48 0f b1 f7", "cmpxchg %rsi,%rdi", "rax rsi rdi", "rax rdi flags", "rdi"),
    ("f6 f1", "div %cl", "rax rcx rdx", "rax flags", "flags"),
    ("48 f7 f1", "div %rcx", "rax rcx rdx", "rax rdx flags", "rax rdx flags"),
    ("f6 e1", "mul %cl", "rax rcx", "rax flags", "flags"),
    ("19 c9", "sbb %ecx,%ecx", "flags", "rcx flags", "rcx flags"),
    ("f5", "cmc", "flags", "flags", "flags"),
    ("f9", "stc", "", "flags", ""),
    ("c5 f8 77", "vzeroupper", "", "", ""),
    ("c4 e2 65 90 14 88", "vpgatherdd %ymm3,(%rax,%ymm1,4),%ymm2", "rax xmm1 xmm2 xmm3", "xmm2 xmm3", ""),
    ("62 f1 7d 0a 74 c9", "vpcmpeqb %xmm1,%xmm0,%k1{%k2}", "xmm0 xmm1 k2", "k1", ""),
])
def test_effects(code, text, reads, writes, kills):
    assert effects(bytes.fromhex(code)) == (reads, writes, kills), text
