"""What callers rely on beyond the psABI: volatile registers (GCC -fipa-ra), and a stack that is not aligned.

The first group reads plans; the last runs a program whose functions have been wrapped so that whatever the plan calls
free is destroyed on every call: a plan that claims too little breaks the program's output.
"""

from __future__ import annotations

import subprocess

import pytest

from psu_bin import descriptor
from tests.unit.planning import build, planned, source

RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11 = (1 << n for n in (0, 1, 2, 6, 7, 8, 9, 10, 11))
XMM = [1 << 16 + n for n in range(16)]

HEAD = r"""
    .macro fun name
    .globl \name
    .type \name, @function
    .p2align 4
    \name:
    .cfi_startproc
    .endm
    .macro end name
    .cfi_endproc
    .size \name, . - \name
    .endm
    .text
    fun main
      sub $8, %rsp
      .cfi_def_cfa_offset 16
      call user
      add $8, %rsp
      .cfi_def_cfa_offset 8
      ret
    end main
"""
FOOT = '\n.section .note.GNU-stack,"",@progbits\n'


def asm(tmp_path, text):
    return planned(build(tmp_path, source(tmp_path, HEAD + text + FOOT, "a.S")))


def preserve(tmp_path, user, leaf="mov $1, %eax\n ret", extra=""):
    """What is relied on of `leaf`, which `user` calls."""
    p = asm(tmp_path, f"fun user\n{user}\nend user\nfun leaf\n{leaf}\nend leaf\n{extra}")
    return p.function("leaf").preserve


def test_a_register_set_before_and_read_after_the_call_is_relied_on(tmp_path):
    assert preserve(tmp_path, "mov $3, %r9d\n call leaf\n add %r9d, %eax\n ret") & R9


def test_a_register_that_the_callee_changes_is_not(tmp_path):
    used = preserve(tmp_path, "mov $3, %r9d\n call leaf\n add %r9d, %eax\n ret", leaf="mov $1, %r9d\n mov $1, %eax\n ret")
    assert not used & R9


def test_a_register_replaced_before_it_is_read_is_not(tmp_path):
    assert not preserve(tmp_path, "mov $3, %r9d\n call leaf\n mov $4, %r9d\n add %r9d, %eax\n ret") & R9


def test_zeroing_a_register_is_not_reading_it(tmp_path):
    assert not preserve(tmp_path, "mov $3, %r9d\n call leaf\n xor %r9d, %r9d\n add %r9d, %eax\n ret") & R9


def test_a_write_to_part_of_a_register_does_not_replace_it(tmp_path):
    assert preserve(tmp_path, "mov $3, %r9d\n call leaf\n mov $4, %r9b\n add %r9d, %eax\n ret") & R9


@pytest.mark.parametrize("instruction,register", [
    ("cmovne %esi, %r9d\n mov %r9d, %eax", R9), ("xadd %r9d, (%rsp)", R9), ("cmpxchg %r9d, (%rsp)", R9),
    ("push %r9\n pop %r9", R9), ("mov (%rsp,%r9), %r11d", R9), ("rep stosb", RCX | RDI), ("div %r9", R9 | RDX),
    ("movd %xmm9, %r11d", XMM[9]), ("pxor %xmm9, %xmm1\n movd %xmm1, %r11d", XMM[9]),
    ("cvtsi2sd %eax, %xmm9\n movd %xmm9, %r11d", XMM[9]), ("syscall", R10 | R8 | R9 | RDX | RSI | RDI),
    ("shl %cl, %eax", RCX), ("test %r9, %r9\n sete %al", R9), ("movaps %xmm12, (%rsp)", XMM[12]),
])
def test_every_way_of_reading_counts(tmp_path, instruction, register):
    user = f"mov $3, %r9d\n movd %r9d, %xmm9\n movd %r9d, %xmm12\n mov %r9, %r10\n mov %r9, %r8\n mov %r9, %rcx\n mov %r9, %rdx\n" \
           f"call leaf\n {instruction}\n ret"
    assert preserve(tmp_path, user) & register == register


def test_branches_and_loops_are_followed(tmp_path):
    assert preserve(tmp_path, """
      mov $3, %r9d
      1: call leaf
      test %eax, %eax
      jne 2f
      xor %eax, %eax
      ret
      2: cmp $5, %eax
      jb 3f
      jmp 1b
      3: lea (%rax,%r9), %eax
      ret""") & R9


@pytest.mark.parametrize("user, own", [
    ("call leaf\n mov %r11, %rax\n ret", True),
    ("call leaf\n lea (%rcx,%rsi), %rax\n ret", True),
    ("call leaf\n jc 1f\n inc %eax\n 1: ret", True),
    ("call leaf\n mov %r8, %rax\n ret", False),             # no gate changes it
    ("call leaf\n mov $1, %r11d\n mov %r11, %rax\n ret", False),
    ("call leaf\n setc %cl\n xor %esi, %esi\n movzbl %cl, %eax\n ret", True),
    ("call leaf\n test %eax, %eax\n setc %cl\n movzbl %cl, %eax\n ret", False),
    ("call leaf\n 1: mov %r11, %rax\n dec %edi\n jnz 1b\n ret", False),   # perhaps only on the way back
])
def test_a_result_in_a_register_that_gates_change_is_a_convention_of_its_own(tmp_path, user, own):
    p = asm(tmp_path, f"fun user\n{user}\nend user\n"
                      "fun leaf\n mov $1, %ecx\n mov $2, %esi\n mov $3, %r11d\n mov $4, %r8d\n cmp %ecx, %esi\n ret\n"
                      "end leaf\n")
    assert bool(p.function("leaf").flags & descriptor.OWN_CONVENTION) == own


@pytest.mark.parametrize("leaf, user, register", [
    ("lock cmpxchg %rsi, (%rdi)", "add %rsi, %rax", RSI),      # redis: hdr_record_values_atomic
    ("movzbl %al, %eax\n div %cl", "add %rdx, %rax", RDX),
    ("mov $1, %eax", "test %esi, (%rdi)\n setz %al", RSI),
    ("vzeroupper", "movq %xmm9, %rax", XMM[9]),
    ("mov $1, %eax", "vzeroupper\n movq %xmm9, %rax", XMM[9]),
])
def test_what_instructions_only_seem_to_change_or_not_to_read(tmp_path, leaf, user, register):
    set_all = "mov $8, %esi\n mov $9, %edx\n movq %rdx, %xmm9\n"
    assert preserve(tmp_path, f"{set_all} call leaf\n {user}\n ret", leaf=f"{leaf}\n ret") & register


def test_a_carry_that_is_complemented_was_an_argument(tmp_path):
    p = asm(tmp_path, "fun user\n stc\n call leaf\n ret\nend user\nfun leaf\n cmc\n sbb %eax, %eax\n ret\nend leaf\n")
    assert p.function("leaf").flags & descriptor.OWN_CONVENTION


def test_an_unknown_callee_may_read_arguments_that_stay_where_they_are(tmp_path):
    user = "mov $3, %esi\n call leaf\n call *pointer(%rip)\n ret"
    assert preserve(tmp_path, user, extra=".data\n pointer: .quad main\n.text\n") & (RSI | R11) == RSI


def test_a_known_callee_reads_what_it_reads(tmp_path):
    extra = "fun next\n lea (%rsi,%rdi), %eax\n ret\nend next\n"
    used = preserve(tmp_path, "mov $3, %esi\n mov $4, %r8d\n mov $5, %edi\n call leaf\n call next\n ret", extra=extra)
    assert used & (RSI | RDI | R8) == RSI | RDI


def test_a_register_that_was_never_set_is_not_relied_on(tmp_path):
    extra = ".data\n pointer: .quad main\n.text\n"
    assert not preserve(tmp_path, "call *pointer(%rip)\n call leaf\n call *pointer(%rip)\n ret", extra=extra) & (RSI | R9)
    assert preserve(tmp_path, "call leaf\n call *pointer(%rip)\n ret", extra=extra) & (RSI | R9) == RSI | R9


def test_a_value_to_return_may_wait_in_its_register(tmp_path):
    assert preserve(tmp_path, "mov $3, %eax\n call leaf\n ret", leaf="lea 1(%rdi), %ecx\n ret") & RAX


def test_functions_below_keep_what_functions_above_are_relied_on_for(tmp_path):
    text = """
    fun user
      mov $3, %r9d
      call middle
      add %r9d, %eax
      ret
    end user
    fun middle
      call leaf
      jmp last
    end middle
    fun leaf
      mov $2, %eax
      ret
    end leaf
    fun last
      mov $1, %eax
      ret
    end last
    """
    p = asm(tmp_path, text)
    assert all(p.function(name).preserve & R9 for name in ("middle", "leaf", "last"))


def test_jump_tables_are_followed(tmp_path):
    text = """
    fun user
      mov $3, %r9d
      call leaf
      lea table(%rip), %rdx
      movslq (%rdx,%rax,4), %rax
      add %rdx, %rax
      jmp *%rax
    here: add %r9d, %eax
      ret
    there: xor %eax, %eax
      ret
    end user
    fun leaf
      mov $1, %eax
      ret
    end leaf
    .section .rodata
    .p2align 2
    table: .long there - table, here - table
    """
    assert asm(tmp_path, text).function("leaf").preserve & R9


IPA_RA = r"""
#include <stdio.h>
#define N __attribute__((noinline))
N static int leaf(int x) { return x * 3 + 1; }
N static int middle(int x) { return leaf(x) ^ 5; }
N int keeps(int a, int b, int c) { int k = a * b; return leaf(a) + k * c; }
N int through(int a, int b, int c) { int k = a - b; return middle(a) + k * c; }
N double real(double x, int n) { double y = x * 2; return leaf(n) + y; }
int main(int argc, char **argv) {
    (void)argv;
    printf("%d %d %g\n", keeps(argc, 2, 3), through(argc, 3, 4), real(argc + 0.5, 3));
    return 0;
}
"""


def test_gcc_keeps_values_in_volatile_registers_and_the_plan_says_so(tmp_path):
    p = planned(build(tmp_path, "-O2", source(tmp_path, IPA_RA)))
    for name in ("leaf", "middle"):
        assert p.function(name).preserve & (RDI | RSI | RDX) == RDI | RSI | RDX
        assert not p.function(name).preserve & RAX
    assert p.function("leaf").preserve & XMM[0]
    assert not p.function("main").preserve


@pytest.mark.parametrize("frame", ["-fomit-frame-pointer", "-fno-omit-frame-pointer"])
def test_callers_that_do_not_align_the_stack_are_seen(tmp_path, frame):
    p = planned(build(tmp_path, "-O2", frame, source(tmp_path, IPA_RA)))
    marked = {f.name for f in p.plan.functions if f.flags & descriptor.MISALIGNED}
    disassembly = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(tmp_path / "a.out")], capture_output=True,
                                 text=True).stdout
    middle = disassembly.split("<middle>:")[1].split("ret")[0]
    pushes = middle.count("push") + middle.count("$0x8,%rsp")
    assert ("leaf" in marked) == (pushes % 2 == 0)
    assert "main" not in marked and "keeps" not in marked


def test_a_frame_that_is_aligned_by_hand_is_aligned(tmp_path):
    p = asm(tmp_path, """
    fun user
      push %rbp
      .cfi_def_cfa_offset 16
      .cfi_offset 6, -16
      mov %rsp, %rbp
      .cfi_def_cfa_register 6
      push %rbx
      call crooked
      and $-16, %rsp
      call straight
      push %rax
      call crooked_too
      lea -8(%rbp), %rsp
      pop %rbx
      pop %rbp
      .cfi_def_cfa 7, 8
      jmp straight_too
    end user
    fun crooked
      mov $1, %eax
      ret
    end crooked
    fun straight
      mov $1, %eax
      ret
    end straight
    fun crooked_too
      mov $1, %eax
      ret
    end crooked_too
    fun straight_too
      mov $1, %eax
      ret
    end straight_too
    """)
    assert {f.name for f in p.plan.functions if f.flags & descriptor.MISALIGNED} == {"crooked", "crooked_too"}
