"""Data outlives versions: constants are interned by content or are the program's own, tables stay with the code."""

import dataclasses

import pytest
from linking_host import Host, compile_c, program

PROGRAM = r"""
struct ops { int (*run)(int); const char *name; const struct ops *next; };
static int run_a(int x) { return x + 1; }
static int run_b(int x) { return x + 2; }
static const struct ops ops_b;
static const struct ops ops_a = { run_a, "a", &ops_b };
static const struct ops ops_b = { run_b, "b", &ops_a };
static const int numbers[4] = {1, 2, 3, 4};
const struct ops *current = &ops_a;
const char *text(int x) { return x ? "some text" : "other"; }
const void *table(int x) { return x == 0 ? (void *)&ops_a : x == 1 ? (void *)&ops_b : (void *)numbers; }
double number(int x) { return x * 2.5; }
int run(int x) { return current->run(x) + (current == &ops_a) * 100; }
int pick(int x) { return x; }
int total(int x) { int r = 0; for (const int *p = numbers; p < numbers + 4; p++) r += *p * x; return r; }
"""
PATCH = r"""
struct ops { int (*run)(int); const char *name; const struct ops *next; };
__attribute__((noinline)) static int run_a(int x) { return x + 10; }
__attribute__((noinline)) static int run_b(int x) { return x + 20; }
static const struct ops ops_b;
static const struct ops ops_a = { run_a, "a", &ops_b };
static const struct ops ops_b = { run_b, %s, &ops_a };
static const int numbers[4] = {1, 2, 3, %d};
struct node { const struct node *next; int value; };
static const struct node loop[3] = { {&loop[1], 1}, {&loop[2], 2}, {&loop[0], 3} };
extern const struct ops *current;
const char *text(int x) { return x ? "fresh text" : "other"; }
const void *table(int x) {
    return x == 0 ? (void *)&ops_a : x == 1 ? (void *)&ops_b : x == 2 ? (void *)numbers : (void *)&loop[x & 1]; }
double number(int x) { return x * 4.75; }
int run(int x) { return current->run(x) + (current == &ops_a) * 100; }
int total(int x) { int r = 0; for (const int *p = numbers; p < numbers + 4; p++) r += *p * x; return r; }
int pick(int x) {
    switch (x) { case 0: return run_a(1); case 1: return 17; case 2: return total(1); case 3: return run_b(x);
                 case 4: return x * x; }
    return 99;
}
"""
FLAGS = [("gcc", "-O0", "-fPIE"), ("gcc", "-O2", "-fPIC"), ("gcc", "-Os", "-fPIE"),
         ("gcc", "-O2", "-fPIE", "-fdata-sections"), ("clang", "-O2", "-fPIE"), ("clang", "-O0", "-fPIC")]


def running(cc="gcc", *flags):
    return Host(program(PROGRAM, "-O1", *(flags or ("-fPIE",)), cc=cc, name="p.c"))


def patch(flags, name='"b"', last=4):
    cc, *rest = flags
    return compile_c(PATCH % (name, last), *rest, cc=cc, name="p.c")


# gcc -O0 puts unnamed strings among other constants, where their ends cannot be told from padding: objects that point
# to one are then new.
@pytest.mark.parametrize("flags", FLAGS[1:], ids=" ".join)
def test_equal_constant_objects_are_the_programs_own(flags):
    with running() as host:
        before = [host.call("table", n) for n in range(3)]
        host.attach(patch(flags))
        assert [host.call("table", n) for n in range(3)] == before
        assert host.call("run", 1) == 111, "current still points to ops_a, and its function pointer to a stub"


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_changed_constant_objects_are_new(flags):
    with running() as host:
        before = [host.call("table", n) for n in range(3)]
        host.attach(patch(flags, '"bb"', 5))
        after = [host.call("table", n) for n in range(3)]
        assert not set(before) & set(after), "ops_a points to ops_b, which is new: so it is new as well"
        assert [host.call("total", 1), host.call("pick", 2)] == [11, 11]
        assert host.call("run", 1) == 11, "the program's ops_a is no longer the patch's"
        b = host.read(after[1], 24)
        assert host.text(int.from_bytes(b[8:16], "little")) == "bb"
        assert int.from_bytes(b[16:], "little") == after[0]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_the_same_patch_again_stores_nothing_more(flags):
    with running() as host:
        first = host.attach(patch(flags, '"bb"', 5))
        addresses = [host.call("text", 1), *(host.call("table", n) for n in range(5))]
        assert first.modules[0][1].constants_used > 0
        second = host.attach(patch(flags, '"bb"', 5))
        assert [second.modules[0][1].constants_used, second.modules[0][1].constants] == [0, ()]
        assert [host.call("text", 1), *(host.call("table", n) for n in range(5))] == addresses
        assert host.text(addresses[0]) == "fresh text"
        node = host.read(addresses[4], 8)
        assert int.from_bytes(node, "little") == addresses[4] + 16, "a constant that points to itself was found again"


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_jump_tables_stay_with_the_code_and_are_not_stored(flags):
    with running() as host:
        linked = host.attach(patch(flags))
        assert [host.call("pick", n) for n in range(-1, 6)] == [99, 11, 17, 10, 23, 16, 99]
        o = linked.modules[0][0][0]
        for r in linked.modules[0][1].regions:
            for n in range(len(r.data) - 7):
                assert not o.address <= int.from_bytes(r.data[n:n + 8], "little") < o.address + o.size, (
                    "stored data points into code that will be freed")


def test_one_changed_string_costs_one_string():
    source = "const char *text(int x) { return x == 0 ? \"%s\" : x == 1 ? \"the second one\" : \"the third one\"; }"
    with running() as host:
        host.attach(compile_c(source % "the first one", "-O2", "-fPIE", name="p.c"))
        kept = [host.call("text", n) for n in range(3)]
        linked = host.attach(compile_c(source % "another one", "-O2", "-fPIE", name="p.c"))
        assert [r.data for r in linked.modules[0][1].regions] == [b"another one\0"]
        assert host.text(host.call("text", 0)) == "another one"
        assert [host.call("text", n) for n in (1, 2)] == kept[1:]
        assert host.text(kept[0]) == "the first one", "what an old version handed out stays"


def test_a_stored_constant_of_too_little_alignment_is_not_used():
    source = ("typedef int v4 __attribute__((vector_size(16)));"
              "int total(int x) { v4 v = {1, 2, 3, %d}; v4 w = {x, x, x, x}; v *= w;"
              "return v[0] + v[1] + v[2] + v[3]; }")
    with running() as host:
        obj = compile_c(source % 4, "-O2", "-fPIE", "-msse4.1", name="p.c")
        host.attach(obj)
        assert host.call("total", 2) == 20
        stored = host.view.constants
        aligned = next(c for c in stored if c.size == 16)
        # The same content, eight bytes further: an aligned load from there would fault.
        at = host.map(4096) + 8
        host.write(at, host.read(aligned.address, 16))
        host.view = dataclasses.replace(host.view, constants=(aligned._replace(address=at),))
        host.attach(obj)
        assert host.call("total", 3) == 30


def test_wide_strings_and_unusual_sections():
    source = r"""
    #include <stddef.h>
    const wchar_t *text(int x) { return x ? L"wide" : L"other wide"; }
    __attribute__((section("my_consts"))) const int mine[2] = {40, 2};
    __attribute__((section("my_vars"))) int var = 6;
    int total(int x) { return mine[0] + mine[x] + ++var; }
    """
    with running() as host:
        host.attach(compile_c(source, "-O1", "-fPIE", name="p.c"))
        assert host.read(host.call("text", 1), 20) == "wide\0".encode("utf-32-le")
        assert [host.call("total", 1), host.call("total", 1)] == [49, 50]


def test_tables_of_offsets_to_strings():
    """As clang makes them of a switch that returns strings: each entry is a string minus the table's start."""
    source = r"""
    asm(".section .rodata.str1.1,\"aMS\",@progbits,1\n"
        ".L0: .string \"zero\"\n.L1: .string \"one\"\n.L2: .string \"two\"\n.L3: .string \"three\"\n"
        ".section .rodata\n.balign 4\n"
        "first: .long .L0-first, .L1-first, .L2-first\n"
        "second: .long .L3-second, .L1-second, .L0-second\n.text\n");
    const char *text(int x) { int *t; asm("lea first(%%rip),%0" : "=r"(t)); return (char *)t + t[x]; }
    const char *more(int x) { int *t; asm("lea second(%%rip),%0" : "=r"(t)); return (char *)t + t[x]; }
    int run(int x) { return more(x)[0]; }
    """
    obj = compile_c(source, "-O2", "-fPIC", name="p.c")
    with running() as host:
        for _ in range(2):
            linked = host.attach(obj)
            assert [host.text(host.call("text", n)) for n in range(3)] == ["zero", "one", "two"]
            assert [chr(host.call("run", n)) for n in range(3)] == list("toz")
        assert linked.modules[0][1].constants_used == 0
