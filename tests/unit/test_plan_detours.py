"""Entry detours: made where a reference cannot be edited and it is provably safe, refused with the reason elsewhere."""

from __future__ import annotations

import pytest

from psu_bin import descriptor
from psu_bin.instrument import image, verify
from psu_bin.instrument.plan_types import Reroute
from tests.unit.planning import ARCH, build, planned, source

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
"""
# `short` comes right behind target, so that the assembler makes its jump two bytes long.
TAIL = r"""
    fun short
      jmp target
    end short
    fun main
      call short
      call target
      xor %eax, %eax
      ret
    end main
    .section .note.GNU-stack,"",@progbits
"""


def one(tmp_path, body, extra="", after=""):
    text = HEAD + f"fun target\n{body}\nend target\n{extra}" + TAIL + after
    return planned(build(tmp_path, source(tmp_path, text, "a.S")))


def test_whole_instructions_move_and_unwind_rows_with_them(tmp_path):
    p = one(tmp_path, """
      push %rbp
      .cfi_def_cfa_offset 16
      .cfi_offset 6, -16
      mov %rsp, %rbp
      .cfi_def_cfa_register 6
      xor %eax, %eax
      pop %rbp
      .cfi_def_cfa 7, 8
      ret""")
    d = p.detour("target")
    assert d.copy == bytes.fromhex("55 4889e5 31c0")
    assert (d.length, d.skip, d.fixups) == (6, 0, ())
    # advance 1, CFA offset 16, rbp at CFA-16, advance 3, CFA register rbp
    assert d.cfi == bytes.fromhex("0201 0e10 8602 0203 0d06")
    assert p.function("target").flags & descriptor.DETOURED
    assert p.edits("target") == [Reroute.REL32]       # the call in main; short's jump stays


def test_an_endbr_stays_at_the_entry(tmp_path):
    p = one(tmp_path, "endbr64\n lea 1(%rdi), %eax\n add $2, %eax\n ret")
    d = p.detour("target")
    assert (d.skip, d.length, d.copy) == (4, 6, bytes.fromhex("8d4701 83c002"))


def test_relative_operands_get_fixups(tmp_path):
    p = one(tmp_path, """
      cmpl $7, value(%rip)
      jne elsewhere
      ret""", "fun elsewhere\n mov $3, %eax\n ret\nend elsewhere\n.data\nvalue: .long 5\n.text\n")
    d = p.detour("target")
    f = p.function("target")
    (at, target), = d.fixups
    assert (at, d.length) == (2, 7)
    # The field's end plus its value; one byte of immediate follows the field.
    assert target == f.address + 6 + int.from_bytes(d.copy[2:6], "little", signed=True)


def test_a_tail_jump_at_the_entry_moves(tmp_path):
    p = one(tmp_path, "jmp far", after=".text\n.skip 400, 0x90\nfun far\n mov $3, %eax\n ret\nend far\n")
    d = p.detour("target")
    assert d.copy[0] == 0xE9 and d.length == 5
    assert d.fixups == ((1, p.function("far").address),)


def test_a_short_branch_grows_and_unwind_rows_keep_their_places(tmp_path):
    p = one(tmp_path, """
      test %edi, %edi
      je 1f
      sub $0x108, %rsp
      .cfi_def_cfa_offset 0x110
      mov %edi, (%rsp)
      add $0x108, %rsp
      .cfi_def_cfa_offset 8
      1: mov $3, %eax
      ret""")
    d, f = p.detour("target"), p.function("target")
    assert d.length == 4 + 7
    assert d.copy == bytes.fromhex("85ff 0f8400000000 4881ec08010000")
    assert d.fixups == ((4, f.address + f.size - 6),)
    assert d.cfi == bytes.fromhex("020f 0e9002")
    data = image.build(p.binary, ARCH, p.plan, (), ())
    verify.verify(p.binary, ARCH, p.plan, (), (), data, "grown")


def test_a_call_moves_where_there_are_no_landing_pads(tmp_path):
    p = one(tmp_path, "call helper\n ret", "fun helper\n ret\nend helper\n")
    d = p.detour("target")
    assert d.copy[0] == 0xE8 and d.fixups == ((1, p.function("helper").address),)
    assert [e.at for e in p.plan.edits if p.plan.functions[e.function].name == "helper"] == [p.function("target").address + 1]


def test_padding_behind_a_short_function_is_room(tmp_path):
    p = one(tmp_path, "mov %edi, %eax\n ret")
    d = p.detour("target")
    assert d.copy[:3] == bytes.fromhex("89f8c3") and d.length >= 5


@pytest.mark.parametrize("body,extra,reason", [
    ("mov %edi, %ecx\n jrcxz elsewhere\n add $1, %eax\n ret", "fun elsewhere\n ret\nend elsewhere\n", "2-byte jump"),
    ("jne elsewhere\n lea last(%rip), %rax\n ret", "fun elsewhere\n ret\nend elsewhere\nfun last\n ret\nend last\n",
     "reference to another function"),
    ("test %edi, %edi\n 1: add $100000, %eax\n dec %edi\n jne 1b\n ret", "", "behind its entry"),
    (".cfi_lsda 0x1b, lsda\n call helper\n ret", "fun helper\n ret\nend helper\n.section .rodata\nlsda: .byte 255\n.text\n",
     "calls something"),
    ("dec %edi\n jne target\n nopl 0(%rax)\n ret", "", "jumps back to its own entry"),
    ("mov %edi, %eax\n inside: add $100000, %eax\n ret", "fun other\n lea inside(%rip), %rax\n ret\nend other\n",
     "behind its entry"),
    ("mov %edi, %eax\n inside: add $100000, %eax\n ret", ".data\n .quad inside\n .text\n", "behind its entry"),
    ("push %rax\n .cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x06\n mov $1, %ecx\n pop %rax\n ret", "", "unwind information"),
])
def test_what_cannot_be_moved_safely_is_refused(tmp_path, body, extra, reason):
    p = one(tmp_path, body, extra)
    assert reason in p.reason("target")
    assert "entered by a short jump" in p.reason("target")
    assert "target" not in p.names()


def test_a_function_run_into_by_the_code_before_it_is_detoured(tmp_path):
    text = HEAD + """
    fun first
      mov %edi, %eax
    end first
    .globl second
    .type second, @function
    second:
      add $1, %eax
      add $2, %eax
      ret
    .size second, . - second
    fun main
      call first
      call second
      ret
    end main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    assert p.detour("second").length == 6
    assert "second" in p.names()


def test_a_relative_pointer_in_data_is_seen_in_kept_relocations(tmp_path):
    text = HEAD + """
    fun pointed
      lea 1(%rdi), %eax
      ret
    end pointed
    .p2align 4
    .type other, @function
    other: ret
    .size other, . - other
    fun main
      call pointed
      ret
    end main
    .section .rodata
    .p2align 2
    .long pointed - .
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, "-Wl,--emit-relocs", source(tmp_path, text, "a.S")))
    assert p.detour("pointed")
    assert "main" in p.names()
