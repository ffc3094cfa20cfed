"""Patches made by real compilers, linked into a running program, do what their source says, however compiled."""

import itertools

import pytest
from linking_host import Host, compile_c, program

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <errno.h>
int counter = 5;                       /* global */
static int hidden = 7;                 /* file static */
__thread int per_thread = 3;
static __thread int own_thread = 4;
struct ops { int (*run)(int); const char *name; };
int visits(void) { static int count = 100; return ++count; }
static int other_visits(void) { static int count = 900; return ++count; }
int others(void) { return other_visits(); }
__attribute__((noinline)) int twice(int x) { return x * 2; }
__attribute__((noinline)) static int helper(int x) { return x + hidden; }
const struct ops default_ops = { twice, "twice" };
static int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static int later[8];
__attribute__((noinline)) int sum(void) {
    int r = 0; for (int *p = table; p < table + 8; p++) r += *p; return r + later[0]; }
int classify(int x) { return helper(x) + counter; }
const char *name(int x) { return x ? "one" : "zero"; }
int many(int a, int b, int c, int d, int e, int f, int g) { return a + b + c + d + e + f + g; }
int fact(int n) { return n <= 1 ? 1 : n * fact(n - 1); }
void set(int h, int t) { hidden = h; own_thread = t; later[1] = h; table[h] = 1; }
int get_hidden(void) { return hidden + own_thread * 10 + per_thread * 1000; }
int use(const struct ops *o) { return o == &default_ops; }
"""

PATCH = r"""
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <errno.h>
extern int counter;
static int hidden = 7;
extern __thread int per_thread;
static __thread int own_thread = 4;
struct ops { int (*run)(int); const char *name; };
static int fresh = 11;                 /* new */
int fresh_global = 21;
static int fresh_zero[4];
__attribute__((noinline)) int twice(int x) { return x * 2 + 1; }
__attribute__((noinline)) static int helper(int x) { return x + hidden * 2; }
__attribute__((noinline)) static int brand_new(int x) { return x + ++fresh; }
extern const struct ops default_ops;
static int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static int later[8];
void set(int h, int t) { hidden = h; own_thread = t; later[1] = h; table[h] = 1; }
int visits(void) { static int count = 100; count += 10; return count; }
__attribute__((noinline)) int sum(void) {
    int r = 0; for (int *p = table; p < table + 8; p++) r += *p * 2; return r + later[0]; }
int classify(int x) {
    hidden++; counter = counter * 2; fresh_zero[x & 3]++;
    switch (x) {
    case 0: return strlen("zero zero");
    case 1: return abs(-31);
    case 2: return brand_new(100);
    case 3: return (errno = 0, getenv("NO_SUCH_VARIABLE_HERE") == 0) ? 77 : 78;
    case 4: return twice(4) + helper(1);
    case 5: { int (*volatile p)(int) = brand_new; return p(200); }
    case 6: return (per_thread++, own_thread += 2, per_thread * 10 + own_thread);
    case 7: return fresh_global++ + fresh_zero[3];
    }
    return -1;
}
const char *name(int x) {
    switch (x) { case 0: return "null"; case 1: return "eins"; case 2: return "zwei"; case 3: return "drei";
                 case 4: return "vier"; }
    return "viele";
}
int many(int a, int b, int c, int d, int e, int f, int g) { return g - a; }
int fact(int n) { return n <= 1 ? 1 : 10 * n * fact(n - 1); }
int threaded(int n) {
    static const void *const tab[] = { &&add, &&sub, &&end };
    static const unsigned char prog[] = { 0, 0, 1, 0, 2 };
    int acc = n, pc = 0;
    goto *tab[prog[pc++]];
add: acc += 3; goto *tab[prog[pc++]];
sub: acc -= 1; goto *tab[prog[pc++]];
end: return acc;
}
int others(void) { return threaded(40); }
double scale(double d) { return d * 2.5 + 0.125; }
int get_hidden(void) { return scale(2.0) * 8; }
int use(const struct ops *o) { return (o == &default_ops) * 2 + (o->run == twice); }
"""

VARIANTS = [(cc, opt, model, *extra)
            for cc, opt, model in itertools.product(("gcc", "clang"), ("-O0", "-O2", "-Os"), ("-fPIC", "-fPIE"))
            for extra in ((), ("-ffunction-sections", "-fdata-sections", "-fcf-protection"))]
VARIANTS += [("gcc", "-O2", "-fPIC", "-fno-plt"), ("gcc", "-O2", "-fPIC", "-mtls-dialect=gnu2"),
             ("gcc", "-O3", "-fPIE", "-mavx2"),
             ("gcc", "-O2", "-fPIC", "-mcmodel=large"), ("clang", "-O2", "-fPIC", "-fno-plt"),
             ("gcc", "-O1", "-fPIE"), ("gcc", "-O2", "-fPIE", "-fno-jump-tables"),
             ("gcc", "-O2", "-fPIE", "-fno-omit-frame-pointer")]

def check(host, obj):
    assert host.call("visits") == 101
    linked = host.attach(obj)
    assert host.call("visits") == 111
    assert host.call("visits") == 121, "the static local of the program goes on counting"
    assert host.call("sum") == 72
    assert [host.call("classify", 0), host.read_int("counter")] == [9, 10]
    assert host.call("classify", 1) == 31
    assert host.call("classify", 2) == 112
    assert host.call("classify", 3) == 77
    assert host.call("classify", 4) == 9 + 1 + 2 * 12, "hidden was 7, and counted five times by now"
    assert host.call("classify", 5) == 213
    assert host.call("classify", 6) == 40 + 6
    assert host.call("classify", 7) == 23, "fresh_zero[3] counted classify(3) and classify(7)"
    assert host.read_int("counter") == 5 << 8
    assert [host.text(host.call("name", i)) for i in range(6)] == ["null", "eins", "zwei", "drei", "vier", "viele"]
    assert host.call("many", 5, 0, 0, 0, 0, 0, 7) == 2
    assert host.call("fact", 3) == 600
    assert host.call("others") == 40 + 3 + 3 - 1 + 3
    assert host.call("get_hidden") == 41
    assert host.call("use", host.symbol("default_ops")) & 2
    return linked


class ReadingHost(Host):
    def read_int(self, name):
        return int.from_bytes(self.read(self.symbol(name), 4), "little")


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_a_patch_for_a_position_independent_program_runs(variant):
    cc, *flags = variant
    with ReadingHost(program(PROGRAM, "-O1", "-fPIE")) as host:
        check(host, compile_c(PATCH, *flags, cc=cc, name="program.c"))


FIXED = [(cc, opt, model, *extra) for cc, opt in itertools.product(("gcc", "clang"), ("-O0", "-O2", "-Os"))
         for model, extra in (
             ("-fno-pic", ()), ("-fno-pic", ("-ffunction-sections", "-fdata-sections")), ("-fPIE", ()))]


@pytest.mark.parametrize("variant", FIXED, ids=" ".join)
def test_a_patch_for_a_position_dependent_program_runs(variant):
    cc, *flags = variant
    with ReadingHost(program(PROGRAM, "-O1", "-fno-pic", "-no-pie")) as host:
        check(host, compile_c(PATCH, *flags, cc=cc, name="program.c"))
