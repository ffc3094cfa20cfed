"""Relocating AArch64 patch objects: each type's value, the refusal of one that does not fit, and patches that run.

The patches are real compilers' objects, linked into a process under qemu-user (linking_host.py)."""

from __future__ import annotations

import platform
import shutil
import struct

import capstone
import pytest

from psu_bin import descriptor
from psu_bin.arch import aarch64_link as link
from psu_bin.arch.aarch64_stack import stack_use
from psu_bin.arch.link_types import OutOfRange, Places
from psu_bin.attach.shim import PLAIN, SIDE
from tests.unit.linking_host import Host, compile_c, program

P = 0xAAAA_0000_1000
MD = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
NUMBER = {how.name.removeprefix("R_AARCH64_"): kind for kind, how in link.HOWTO.items()}
NATIVE = platform.machine() == "aarch64"
UNDER = () if NATIVE else ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
GCC = "gcc" if NATIVE else "aarch64-linux-gnu-gcc"
CLANG = "clang" if NATIVE else "clang --target=aarch64-linux-gnu"


def relocated(kind: str, word: int, v: int, places: Places = Places()) -> str:
    """The instruction `word` with the relocation filled in, as text; it must touch nothing else."""
    code = bytearray(b"\xEE" * 4 + struct.pack("<I", word) + b"\xEE" * 4)
    link.relocate(code, 4, NUMBER[kind], v, P, places)
    assert code[:4] == code[8:] == b"\xEE" * 4, "wrote outside its field"
    return " ".join(next((f"{i.mnemonic} {i.op_str}" for i in MD.disasm(bytes(code[4:8]), P)), "?").split())


ADRP, ADR, ADD, LDR, BL, B = 0x90000003, 0x10000003, 0x91000063, 0xF9400063, 0x94000000, 0x14000000
WORDS = [
    ("CALL26", BL, P + 0x1234, Places(), f"bl #{P + 0x1234:#x}"),
    ("CALL26", BL, P - (1 << 27), Places(), f"bl #{P - (1 << 27):#x}"),
    ("CALL26", BL, 0x1000, Places(branch=P + 0x500), f"bl #{P + 0x500:#x}"),
    ("JUMP26", B, P + (1 << 27) - 4, Places(branch=8), f"b #{P + (1 << 27) - 4:#x}"),
    ("CONDBR19", 0x54000001, P - (1 << 20), Places(), f"b.ne #{P - (1 << 20):#x}"),
    ("TSTBR14", 0x37180001, P + 0x7FFC, Places(), f"tbnz w1, #3, #{P + 0x7FFC:#x}"),
    ("ADR_PREL_LO21", ADR, P + 0xFFFFF, Places(), f"adr x3, #{P + 0xFFFFF:#x}"),
    ("ADR_PREL_PG_HI21", ADRP, P + 0x12345678, Places(), f"adrp x3, #{P + 0x12345678 & -4096:#x}"),
    ("ADR_PREL_PG_HI21", ADRP, P - (1 << 32) + 0x2FFF, Places(), f"adrp x3, #{P - (1 << 32) + 0x2FFF & -4096:#x}"),
    ("ADD_ABS_LO12_NC", ADD, P + 0x12345678, Places(), "add x3, x3, #0x678"),
    ("LDST8_ABS_LO12_NC", 0x39400063, 0x123, Places(), "ldrb w3, [x3, #0x123]"),
    ("LDST16_ABS_LO12_NC", 0x79400063, 0x122, Places(), "ldrh w3, [x3, #0x122]"),
    ("LDST32_ABS_LO12_NC", 0xB9400063, 0x124, Places(), "ldr w3, [x3, #0x124]"),
    ("LDST64_ABS_LO12_NC", LDR, 0xFF8, Places(), "ldr x3, [x3, #0xff8]"),
    ("LDST128_ABS_LO12_NC", 0x3DC00063, 0xFF0, Places(), "ldr q3, [x3, #0xff0]"),
    ("ADR_GOT_PAGE", ADRP, 0, Places(slot=P + 0x5008), f"adrp x3, #{P + 0x5000:#x}"),
    ("LD64_GOT_LO12_NC", LDR, 0, Places(slot=P + 0x5008), "ldr x3, [x3, #8]"),
    ("TLSIE_ADR_GOTTPREL_PAGE21", ADRP, 0, Places(slot=P + 0x5010), f"adrp x3, #{P + 0x5000:#x}"),
    ("TLSIE_LD64_GOTTPREL_LO12_NC", LDR, 0, Places(slot=P + 0x5010), "ldr x3, [x3, #0x10]"),
    ("LD_PREL_LO19", 0x58000003, P + 0xFFFFC, Places(), f"ldr x3, #{P + 0xFFFFC:#x}"),
    ("MOVW_UABS_G0_NC", 0xF2800003, 0x123456789ABCDEF0, Places(), "movk x3, #0xdef0"),
    ("MOVW_UABS_G1_NC", 0xF2A00003, 0x123456789ABCDEF0, Places(), "movk x3, #0x9abc, lsl #16"),
    ("MOVW_UABS_G3", 0xD2E00003, 0x123456789ABCDEF0, Places(), f"mov x3, #{0x1234 << 48:#x}"),
    ("TLSLE_ADD_TPREL_HI12", 0x91400063, 0x123456, Places(), "add x3, x3, #0x123, lsl #12"),
    ("TLSLE_ADD_TPREL_LO12_NC", ADD, 0x123456, Places(), "add x3, x3, #0x456"),
    ("TLSLE_LDST32_TPREL_LO12_NC", 0xB9400063, 0x454, Places(), "ldr w3, [x3, #0x454]"),
    ("TLSDESC_ADR_PAGE21", 0x90000000, 0x12345, Places(), "mov x0, #0x10000"),
    ("TLSDESC_LD64_LO12", 0xF9400001, 0x12345, Places(), "movk x0, #0x2345"),
    ("TLSDESC_ADD_LO12", 0x91000000, 0x12345, Places(), "nop"),
    ("TLSDESC_CALL", 0xD63F0020, 0x12345, Places(), "nop"),
]


@pytest.mark.parametrize(("kind", "word", "v", "places", "text"), WORDS, ids=[f"{w[0]}-{n}" for n, w in enumerate(WORDS)])
def test_values(kind, word, v, places, text):
    assert relocated(kind, word, v, places) == text.strip()


@pytest.mark.parametrize(("kind", "word", "v"), [
    ("CALL26", BL, P + (1 << 27)), ("CALL26", BL, P - (1 << 27) - 4), ("CALL26", BL, P + 2), ("JUMP26", B, 0),
    ("CONDBR19", 0x54000001, P + (1 << 20)), ("TSTBR14", 0x37180001, P + 0x8000), ("ADR_PREL_LO21", ADR, P + (1 << 20)),
    ("ADR_PREL_PG_HI21", ADRP, P + (1 << 32)), ("ADR_PREL_PG_HI21", ADRP, P - (1 << 32) - 4096),
    ("LDST64_ABS_LO12_NC", LDR, 0x124), ("LD_PREL_LO19", 0x58000003, P + (1 << 20)), ("MOVW_UABS_G1", 0xD2A00003, 1 << 32),
    ("TLSLE_ADD_TPREL_LO12", ADD, 0x1000), ("ABS32", 0, 1 << 32), ("PREL32", 0, P + (1 << 31)),
    ("TLSDESC_ADR_PAGE21", 0x90000000, 1 << 32)])
def test_what_does_not_fit_is_refused(kind, word, v):
    with pytest.raises(OutOfRange):
        relocated(kind, word, v)


@pytest.mark.parametrize(("memsz", "align", "address", "offset"), [
    (4, 4, 0x1000, 16), (64, 64, 0x1000, 64), (64, 64, 0x1010, 16), (8, 8, 0x1008, 16), (8, 16, 0x1008, 24)])
def test_the_program_s_thread_local_block_begins_behind_the_thread_pointer(memsz, align, address, offset):
    assert link.static_tls_offset(memsz, align, address) == offset
    assert (offset - address) % align == 0 and offset >= 16


PROGRAM = r"""
#include <stdio.h>
#include <stdarg.h>
#include <string.h>
#include <errno.h>
int counter = 5; static int hidden = 7; static long table[4] = {1, 2, 3, 4};
__thread int local = 11; static __thread int inner = 22;
const char *name(void) { return "old"; }
__attribute__((noinline)) int helper(int x) { return x + 1; }
static __attribute__((noinline)) int quiet(int x) { return x + hidden; }
int work(int x) { return helper(x) + quiet(x) + (int)table[x & 3]; }
int pick(int x) { return x; }
void set(int x) { hidden = x; inner = x; table[0] = x; }
int sum(int n, ...) { va_list v; va_start(v, n); int s = 0; while (n--) s += va_arg(v, int); va_end(v); return s; }
int many(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j) { return a + i * 10 + j; }
int thread(void) { return local + inner; }
int (*chosen(int x))(int) { return x ? helper : quiet; }
int text(char *to) { strcpy(to, name()); return (int)strlen(to); }
"""
PATCH = r"""
#include <stdio.h>
#include <stdarg.h>
#include <string.h>
extern int counter; static int hidden; static long table[4] = {1, 2, 3, 4};
extern __thread int local; static __thread int inner;
int helper(int); int fresh_total;
void set(int x) { hidden = x; inner = x; table[0] = x; }
const char *name(void) { return counter ? "new" : "none"; }
static __attribute__((noinline)) int quiet(int x) { return 1000 * x + hidden++; }
static __attribute__((noinline)) int extra(int x) { return x * 2; }
int work(int x) { fresh_total += x; return helper(x) + quiet(x) + (int)table[x & 3] + fresh_total + counter; }
int pick(int x)
{
    switch (x) {
    case 0: return helper(40); case 1: return 7 * quiet(1); case 2: return extra(9); case 3: return counter;
    case 4: return (int)strlen(name()); case 5: return 55; case 6: return extra(66) + 1; default: return -1;
    }
}
int sum(int n, ...) { va_list v; va_start(v, n); int s = 7; while (n--) s += va_arg(v, int); va_end(v); return s; }
int many(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j) { return a + i * 100 + j; }
int thread(void) { local++; return local * 100 + inner; }
int (*chosen(int x))(int) { return x ? extra : quiet; }
"""

BUILDS = [(GCC, "-O2 -fPIE", "-O2"), (GCC, "-O0 -fPIE", "-O0"), (GCC, "-O2 -fPIC -mbranch-protection=standard", "-O2"),
          (GCC, "-Os -fno-pie", "-O2 -no-pie -fno-pie"), (GCC, "-O2 -fPIC -mtls-dialect=trad", "-O2"),
          (GCC, "-O2 -fPIE -ffunction-sections", "-O2"),
          (CLANG, "-O2 -fPIE", "-O2"), (CLANG, "-O1 -fPIC -fdata-sections", "-O2")]


def needed() -> None:
    """Skip the test where a tool is missing."""
    missing = [w for w in (GCC, CLANG.split()[0], *UNDER[:1]) if not shutil.which(w)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: scripts/setup.sh installs what AArch64 needs")


def host(flags: str, **options) -> Host:
    needed()
    return Host(program(PROGRAM, *flags.split(), cc=GCC), UNDER, **options)


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize(("cc", "flags", "host_flags"), BUILDS, ids=[f"{b[0].split('-')[-1]} {b[1]}" for b in BUILDS])
def test_a_patch_runs(cc, flags, host_flags, far):
    with host(host_flags, stack_args={"sum", "many"}, far=far) as h:
        before = [h.call_int("work", 1), h.call_int("pick", 3), h.call_int("sum", 3, 2, 2, 2), h.call_int("thread")]
        assert before == [2 + 8 + 2, 3, 6, 33]
        patch = compile_c(PATCH, "-fno-section-anchors" if cc == GCC else "-g0", *flags.split(), cc=cc, name="program.c")
        linked = h.attach(patch)
        gates = {x.view.descriptor.functions[x.function].name: x.kind for o in linked.modules[0][0] for x in o.replaced}
        assert gates["many"] == gates["sum"] == SIDE
        assert not far or not any(o.calls[1] for o in linked.modules[0][0]), "calls inside it could be turned to nothing near"
        if "-O0" not in flags:
            assert gates["work"] == gates["pick"] == gates["thread"] == PLAIN
        assert h.call_int("work", 1) == 2 + 1007 + 2 + 1 + 5
        assert [h.call_int("pick", n) for n in range(8)] == [41, 7 * 1008, 18, 5, 3, 55, 133, -1]
        assert h.call_int("sum", 3, 2, 2, 2) == 13
        assert h.call_int("thread") == 1222
        assert h.call_int(h.call("chosen", 1), 100) == 200 and h.call_int(h.call("chosen", 0), 100) == 100009
        to = h.symbol("counter")
        assert h.text(h.call("name")) == "new"
        h.write(to, bytes(4))
        assert h.text(h.call("name")) == "none"


ANCHORED = r"""
struct s { int a; long b; char c; };
static int a = 1, b = 2; static struct s many[2]; static long numbers[3]; static int *pointer = &a; static char text[9];
void take(int *p) { *p += 5; }
int pair(int x) { return a + 10 * b + x; }
int indexed(int x) { many[x & 1].b += x; return (int)many[x & 1].b + (int)numbers[x & 1]; }
int store(int x) { pointer = &b; *pointer += x; return b; }
int choose(int x) { switch (x & 7) { case 0: a++; break; case 1: return b; case 2: a = 3; case 3: b += 2; break;
    case 4: return text[1]; case 5: numbers[1] = 4; break; case 6: many[1].c++; break; default: b--; } return a + b; }
int loop(int x) { int r = 0; for (int i = 0; i < 3; i++) { numbers[i] += x; r += (int)numbers[i]; } return r + a; }
int state(void) { return a + 3 * b + 5 * (int)numbers[1] + 7 * (int)many[1].b + 11 * text[1] + 13 * many[1].c; }
"""
ANCHORED_PATCH = r"""
struct s { int a; long b; char c; };
static long numbers[3]; static int fresh = 50; static int b = 2; static char text[9]; static long fresh2[2];
static struct s many[2]; static int a = 1; static int *pointer = &a; static char fresh3[5];
void take(int *);
int pair(int x) { fresh += a; return a + 100 * b + fresh++ + x; }
int indexed(int x) { many[x & 1].b += x; fresh2[x & 1] += 3; many[x & 1].c++;
    return (int)many[x & 1].b + (int)numbers[x & 1] + (int)fresh2[x & 1]; }
int store(int x) { pointer = x & 1 ? &b : &fresh; *pointer += x; take(&fresh); take(&a); return b + fresh; }
int choose(int x) { switch (x & 7) { case 0: a++; break; case 1: return b; case 2: a = 3; fresh++; case 3: b += 2; break;
    case 4: return text[1] + fresh3[2]; case 5: numbers[1] = 4; fresh3[2]++; break; case 6: many[1].c++; break;
    default: b--; fresh2[1]++; } return a + b + fresh; }
int loop(int x) { int r = 0; for (int i = 0; i < 3; i++) { numbers[i] += x; r += (int)numbers[i] + fresh3[i]++; }
    return r + a + fresh; }
"""


@pytest.mark.parametrize("flags", ["-O2", "-O1", "-Os", "-O3", "-O0"])
def test_variables_reached_through_an_anchor_are_the_program_s_and_new_ones(flags):
    """The patch has another order of its variables than the program, and new ones between them."""
    needed()
    results = []
    for more in ("", "-fno-section-anchors"):
        with Host(program(ANCHORED, "-O2", cc=GCC), UNDER) as h:
            h.call("indexed", 3)
            h.attach(compile_c(ANCHORED_PATCH, flags, "-fPIE", "-w", *more.split(), cc=GCC, name="program.c"))
            found = []
            for x in range(9):
                found += [h.call_int(f, x) for f in ("pair", "indexed", "store", "choose", "loop", "state")]
            results.append(found)
    assert results[0] == results[1]


def test_an_anchor_s_variables_are_the_program_s():
    old = "static int a = 1, b = 2; int get(void) { return a + 10 * b; } void set(int x) { a = x; b = x + 1; }"
    new = ("static int a = 1, fresh = 50, b = 2; int get(void) { return a + 10 * b + fresh++; }"
           "void set(int x) { a = x; b = x + 1; fresh = x; }")
    needed()
    with Host(program(old, "-O2", cc=GCC), UNDER) as h:
        linked = h.attach(compile_c(new, "-O2", "-fPIE", cc=GCC, name="program.c"))
        assert {x.kind for o in linked.modules[0][0] for x in o.replaced} == {PLAIN}, "veneers touch no stack arguments"
        h.call("set", 3)
        assert h.call_int("get") == 3 + 40 + 3
        assert h.call_int("get") == 3 + 40 + 4
    swapped = "static int b = 2, a = 1; " + old.split(";", 1)[1]
    for patch, result in ((old.replace("10 *", "100 *"), 403), (swapped.replace("10 *", "100 *"), 403)):
        with Host(program(old, "-O2", cc=GCC), UNDER) as h:
            h.attach(compile_c(patch, "-O2", "-fPIE", cc=GCC, name="program.c"))
            h.call("set", 3)
            assert h.call_int("get") == result


STACK = {"ldr x0, [sp, #16]": (0xF9400BE0, 16, True), "ldr x0, [sp, #8]": (0xF94007E0, 16, False),
         "add x0, sp, #16": (0x910043E0, 16, True), "mov x0, sp": (0x910003E0, 16, False),
         "ldr w0, [sp, x1]": (0xB86168E0 | 0x3E0, 16, True), "add sp, sp, #16": (0x910043FF, 16, False)}


@pytest.mark.parametrize("text", STACK)
def test_stack_arguments(text):
    word, offset, touched = STACK[text]
    assert next(MD.disasm(struct.pack("<I", word), 0)).mnemonic in text
    code = struct.pack("<II", word, 0xD65F03C0)
    assert stack_use(code, 0, 8, ((0, 31, offset),), ()).touched is touched
    assert stack_use(code, 0, 8, (), ()).touched
    assert descriptor.STACK_ARGS


@pytest.mark.parametrize("first, flags", [("int tail(int x) { return leaf(x); }", ()),
                                          ("int (*pick(void))(int) { return leaf; }", ("-mcmodel=tiny",))], ids=["b", "adr"])
def test_a_reference_by_the_first_instruction_of_a_section_goes_through_the_stub(first, flags):
    needed()
    leaf = "__attribute__((noipa)) static int leaf(int x) %s\n"
    # Calls are counted: one of these functions could leave the stack.
    away = "int sigaltstack(void *, void *), _setjmp(void *); void away(void) { if (sigaltstack(0, 0)) _setjmp(0); }"
    with Host(program(leaf % "{ return x + 1; }" + "int tail(int x) { return leaf(x); } int (*pick(void))(int) { return 0; }",
                      "-O1", "-fPIE", cc=GCC), UNDER) as h:
        h.attach(compile_c(leaf % ";" + first + leaf % "{ return x + 10; }" + away, "-O2", "-fno-toplevel-reorder", *flags, cc=GCC,
                           name="program.c"))
        called = "tail" if "tail" in first else h.call("pick")
        assert h.call_int(called, 5) == 15
        h.attach(compile_c(leaf % "{ return x + 50; }" + "int (*kept)(int); int other(int x) { return leaf(x); }", "-O2", cc=GCC,
                           name="program.c"))
        assert h.call_int(called, 5) == 55


def test_conditional_branches_to_another_function_go_through_trampolines():
    """They reach 1 MiB and 32 KiB, and may not be changed while they are executed: a jump between the functions may."""
    patch = r"""
    asm(".text\n.globl twice\n.type twice,%function\ntwice: .Ltwice: add w0, w0, #100\n ret\n.size twice,.-twice\n"
        ".globl tail\n.type tail,%function\ntail: cbnz w0, .Ltwice\n ret\n.size tail,.-tail\n nop\n"
        ".globl bit\n.type bit,%function\nbit: tbnz w0, #0, .Ltwice\n mov w0, #-1\n ret\n.size bit,.-bit\n");
    """
    needed()
    with Host(program("int twice(int x) { return 2 * x; } int tail(int x) { return x; } int bit(int x) { return x; }", "-O2",
                      cc=GCC), UNDER) as h:
        linked = h.attach(compile_c(patch, cc=GCC))
        assert [h.call_int(f, 5) for f in ("twice", "tail", "bit")] == [105, 105, 105]
        assert linked.modules[0][0][0].calls[1], "the trampolines lead to the body"
        h.attach(compile_c("int twice(int x) { return x * 7; }", "-O1", cc=GCC))
        assert [h.call_int(f, 5) for f in ("twice", "tail", "bit")] == [35, 35, 35]
        assert h.call_int("bit", 4) == -1
