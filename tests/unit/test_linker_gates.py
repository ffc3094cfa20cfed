"""Which gate a patched function gets: stack arguments of both versions, registers that callers rely on."""

import pytest
from linking_host import Host, compile_c, program

from psu_bin.attach.gates import FULL, MOVABLE, ORIGINAL_WILL_DO, PLAIN, SIDE

PROGRAM = r"""
#include <stdarg.h>
int six(int a, int b, int c, int d, int e, int f) { return a; }
int seven(int a, int b, int c, int d, int e, int f, int g) { return g; }
struct big { long x[5]; };
long by_value(struct big b) { return b.x[3]; }
int variadic(int n, ...) { va_list l; va_start(l, n); int r = va_arg(l, int); va_end(l); return r; }
int forwards(int a, int b, int c, int d, int e, int f, int g) { return seven(a, b, c, d, e, f, g); }
int tail_six(int a) { return six(a, 1, 2, 3, 4, 5); }
int tail_libc(const char *s) { return 0; }
int local_array(int i) { return i; }
int aligned(int i) { return i; }
int switched(int i) { return i; }
int through_pointer(int (*f)(int)) { return f(1); }
int calls_seven(int a) { return seven(a, 2, 3, 4, 5, 6, 7) + 1; }
int early_return(int a) { return a; }
int tail_first(int a, int b, int c, int d, int e, int f, int g) { return a; }
int tail_last(int a, int b, int c, int d, int e, int f, int g) { return a; }
"""

PATCH = r"""
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
__attribute__((noinline)) int six(int a, int b, int c, int d, int e, int f) { asm volatile(""); return a + f; }
__attribute__((noinline)) int seven(int a, int b, int c, int d, int e, int f, int g) { asm volatile(""); return g + 1; }
__attribute__((noinline)) static int one(int a) { asm volatile(""); return a; }
struct big { long x[5]; };
long by_value(struct big b) { return b.x[4]; }
int variadic(int n, ...) { va_list l; va_start(l, n); int r = 0; while (n--) r += va_arg(l, int); va_end(l); return r; }
int forwards(int a, int b, int c, int d, int e, int f, int g) { return seven(a, b, c, d, e, f, g); }
int tail_six(int a) { return six(a, 1, 2, 3, 4, 6); }
int tail_libc(const char *s) { return atoi(s); }
int local_array(int i) { volatile int a[100]; for (int k = 0; k < 100; k++) a[k] = k; return a[i]; }
int aligned(int i) { volatile char a[64] __attribute__((aligned(64))); a[i] = 1; return (long)a & 63; }
int switched(int i) {
    switch (i) { case 0: return 5; case 1: return rand(); case 2: return i * 7; case 3: return strlen("x");
                 case 4: abort(); case 5: return 9; }
    return 1; }
int through_pointer(int (*f)(int)) { return f(2); }
int calls_seven(int a) { return seven(a, 2, 3, 4, 5, 6, 7) + 2; }
int early_return(int a) {
    volatile int v[10]; v[2] = a;
    if (a > 3) return v[2];
    rand(); v[9] = rand(); return v[8] + v[9]; }
int tail_first(int a, int b, int c, int d, int e, int f, int g) {
    if (__builtin_expect(a, 1)) return seven(b, a, c, d, e, f, g);
    return one(b); }
int tail_last(int a, int b, int c, int d, int e, int f, int g) {
    if (__builtin_expect(a, 1)) return one(b);
    return seven(b, a, c, d, e, f, g); }
"""
TOUCHES = {"seven", "by_value", "variadic", "forwards", "tail_first", "tail_last"}
# Tail calls to unknown functions, a stack that is realigned: not decided.
MAY = {"tail_libc", "through_pointer", "aligned", "switched"}


@pytest.mark.parametrize("flags", [
    ("gcc", "-O0"), ("gcc", "-O2"), ("gcc", "-Os"), ("gcc", "-O2", "-fno-omit-frame-pointer"), ("clang", "-O0"),
    ("clang", "-O2"), ("gcc", "-O2", "-fno-asynchronous-unwind-tables")], ids=" ".join)
def test_stack_arguments_ask_for_a_side_frame(flags):
    cc, *flags = flags
    with Host(program(PROGRAM, "-O1", "-fPIE"), stack_args={"six"}) as host:
        linked = host.link(compile_c(PATCH, "-fPIE", *flags, cc=cc))
        kinds = {x.name: x.kind for x in linked.modules[0][0][0].replaced}
    assert kinds.pop("six") == SIDE, "the original touches stack arguments, says its descriptor"
    if "-fno-asynchronous-unwind-tables" in flags:
        assert set(kinds.values()) == {SIDE}, "nothing is known"
        return
    assert {n for n, k in kinds.items() if k == SIDE} - MAY - {"tail_six"} == TOUCHES
    assert FULL not in kinds.values()
    tail_call = "-O0" not in flags
    assert (kinds["tail_six"] == SIDE) == tail_call, "a tail call to six hands on what six may touch"


IPA_RA = r"""
__attribute__((noinline)) static int leaf(int x) { return x + 1; }
__attribute__((noinline)) static int deep(int x) { return x + 5; }
__attribute__((noinline)) static int inner(int x) { return deep(x) * 3; }
int user(int a, int b, int c) { return leaf(a) + b * c; }
int outer(int a, int b, int c) { return inner(a) + b * c; }
"""
NEW_LEAF = r"""
__attribute__((noinline)) static int leaf(int x) {
    asm volatile("mov $-1,%%rcx\n mov $-1,%%rdx\n mov $-1,%%rsi\n mov $-1,%%r8" ::: "rcx", "rdx", "rsi", "r8");
    return x + 2; }
int user(int a, int b, int c) { return leaf(a); }
"""


def test_registers_that_a_patch_relies_on_are_reported_and_kept_by_later_gates():
    with Host(program(IPA_RA, "-O2", "-fPIE", name="ipa.c")) as host:
        linked = host.link(compile_c(IPA_RA, "-O2", "-fPIE", name="ipa.c"))
        o = linked.modules[0][0][0]
        relied = dict(o.relied)
        leaf, inner, deep, user = (host.symbol(n) for n in ("leaf", "inner", "deep", "user"))
        b_and_c = 1 << 6 | 1 << 2       # rsi, rdx carry b and c over the call: see the disassembly
        assert relied[leaf] & b_and_c == b_and_c
        assert relied[inner] & b_and_c == b_and_c
        assert relied[deep] & b_and_c == b_and_c, "what is relied on over inner, deep must keep, too"
        assert user not in relied
        assert {x.kind for x in o.replaced} == {PLAIN}, "as compiled, nothing changes these registers"
        assert not relied[leaf] & 1, "the result is no register to keep"
        import dataclasses
        host.view = dataclasses.replace(host.view, relied=relied)
        later = host.link(compile_c(NEW_LEAF, "-O2", "-fPIE", "-g", name="ipa.c"))
        gates = {x.name: (x.kind, x.preserve) for x in later.modules[0][0][0].replaced}
        assert gates == {"leaf": (FULL, relied[leaf] | MOVABLE), "user": (PLAIN, 0)}


SAME_PATCH = r"""
__attribute__((noinline, noclone)) static int sum(int a, int b, int c, int d, int e, int f, int g) {
    return a + b + c + d + e + f + g; }
int seven(int a, int b, int c, int d, int e, int f, int g) { return sum(a, b, c, d, e, f, g) + b * d; }
__attribute__((noinline, noclone)) static int pair(int a, int b) { return a + b; }
int two(int a, int b) { return pair(a, b) * b; }
"""


def test_a_caller_in_the_same_patch_finds_registers_that_the_gate_would_change():
    with Host(program(SAME_PATCH, "-O1", "-fno-ipa-ra", "-fPIE", name="sum.c")) as host:
        linked = host.link(compile_c(SAME_PATCH, "-O2", "-fPIE", name="sum.c"))
        gates = {x.name: (x.kind, x.preserve) for x in linked.modules[0][0][0].replaced}
        relied = dict(linked.modules[0][0][0].relied)
        rsi = 1 << 6
        assert relied[host.symbol("sum")] & rsi and relied[host.symbol("pair")] & rsi
        assert gates["sum"][0] == FULL and gates["sum"][1] & rsi, "SIDE would change rsi on the way back"
        assert not gates["sum"][1] & (MOVABLE | ORIGINAL_WILL_DO), "it has a stack argument, the program's callers rely on less"
        assert gates["pair"] == (PLAIN, 0), "PLAIN leaves rsi alone"


NEW_SUM = r"""
__attribute__((noinline, noclone)) static int sum(int a, int b, int c, int d, int e, int f, int g) {
    asm volatile("mov $-1,%%rsi\n mov $-1,%%rcx" ::: "rsi", "rcx");
    return a + b + c + d + e + f + g + 1; }
int seven(int a, int b, int c, int d, int e, int f, int g) { return sum(a, b, c, d, e, f, g); }
"""


def test_without_memory_the_original_will_do_where_callers_rely_on_what_it_leaves_alone():
    with Host(program(SAME_PATCH, "-O2", "-fPIE", name="sum.c")) as host:
        import dataclasses
        found = host.view.descriptor
        functions = tuple(dataclasses.replace(f, preserve=1 << 6 | 1 << 1) if f.name == "sum" else f
                          for f in found.functions)
        host.view = dataclasses.replace(host.view, descriptor=dataclasses.replace(found, functions=functions))
        linked = host.link(compile_c(NEW_SUM, "-O2", "-fPIE", name="sum.c"))
        gates = {x.name: (x.kind, x.preserve) for x in linked.modules[0][0][0].replaced}
        assert gates["sum"][0] == FULL and gates["sum"][1] & (MOVABLE | ORIGINAL_WILL_DO) == ORIGINAL_WILL_DO


NEW_DEEP = r"""
__attribute__((noinline)) static int leaf(int x) { return x + 3; }
int user(int a, int b, int c) { return leaf(a) + c; }
"""


def test_a_version_that_leaves_the_registers_alone_needs_no_full_gate():
    with Host(program(IPA_RA, "-O2", "-fPIE", name="ipa.c")) as host:
        import dataclasses
        leaf = host.symbol("leaf")
        for register, kind in ((6, PLAIN), (0, FULL), (11, PLAIN)):
            host.view = dataclasses.replace(host.view, relied={leaf: 1 << register})
            linked = host.link(compile_c(NEW_DEEP, "-O2", "-fPIE", name="ipa.c"))
            gates = {x.name: x.kind for x in linked.modules[0][0][0].replaced}
            assert gates["leaf"] == kind, f"register {register}: rax is the result, a plain gate keeps r11"
