"""Addresses that are the end of one object and the start of another; tables that stay with the code."""

import pytest
from linking_host import Host, compile_c, program

from psu_bin.errors import PsuError

PROGRAM = r"""
static int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
int walk(const int *from, const int *to) { int r = 0; while (from != to) r += *from++; return r; }
int sum(int x) { table[x & 7]++; return walk(table, table + 8); }
int other(int x) { return x; }
int pick(int x) { return x; }
const int sizes[4] = {5, 6, 7, 8};
int sizes_sum(int x) { return walk(sizes, sizes + 4); }
"""
# table is the program's, fresh is new: so the end of one is not the start of the other any more.
BEFORE_NEW = r"""
static int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static int fresh[8] = {10, 20, 30, 40, 50, 60, 70, 80};
int walk(const int *from, const int *to);
int walk(const int *from, const int *to) { int r = 0; while (from != to) r += *from++; return r; }
int sum(int x) { %s }
int other(int x) { fresh[x & 7]++; table[x & 7]++; return x; }
"""
GCC = [("-O0",), ("-O1",), ("-O2",)]


def layout_has_table_before_fresh(obj):
    from psu_bin.attach import patch
    at = {s.name: (s.section, s.value) for s in patch.load(obj).symbols if s.name in ("table", "fresh")}
    return at["fresh"] == (at["table"][0], at["table"][1] + 32)


@pytest.mark.parametrize("flags", GCC, ids=" ".join)
@pytest.mark.parametrize("body,expected", [
    ("return fresh[0] + table[7];", 18),
    ("return walk(fresh, &fresh[1]) + table[0];", 11),
    ("int r = 0; for (const int *p = table; p != table + 8; p++) r += *p; return r;", 36),
    ("int r = 0; for (const int *p = fresh; p != fresh + 8; p++) r += *p; return r + table[1];", 362),
], ids=["load", "start", "end compared", "loop over the new one"])
def test_a_boundary_that_can_be_told(flags, body, expected):
    obj = compile_c(BEFORE_NEW % body, "-fPIE", "-fno-toplevel-reorder", "-fno-inline", *flags, name="p.c")
    assert layout_has_table_before_fresh(obj), "the compiler has them in this order"
    with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
        host.attach(obj)
        assert host.call_int("sum", 0) == expected


ALWAYS = ("-fPIE", "-fno-toplevel-reorder", "-fno-inline")


def test_a_boundary_that_cannot_be_told_is_refused():
    source = BEFORE_NEW % "return walk(table, table + 8);"
    with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
        with pytest.raises(PsuError) as e:
            host.link(compile_c(source, "-O0", *ALWAYS, name="p.c"))
        assert "cannot tell the end of table from the start of fresh" in e.value.what
        assert "-fdata-sections" in e.value.hint
        host.attach(compile_c(source, "-O0", "-fdata-sections", *ALWAYS, name="p.c"))
        assert host.call_int("sum", 0) == 36


@pytest.mark.parametrize("flags", [("-O1",), ("-O2",)], ids=" ".join)
@pytest.mark.parametrize("body", ["return walk(table, table + 8);",
                                  "int r = 0; for (const int *p = table + 8; p-- > table;) r += *p; return r;"],
                         ids=["start computed from the end", "counted down"])
def test_an_end_that_is_counted_down_from(flags, body):
    with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
        host.attach(compile_c(BEFORE_NEW % body, *flags, *ALWAYS, name="p.c"))
        assert host.call_int("sum", 0) == 36


def test_the_end_of_a_constant_array_of_the_program():
    source = r"""
    int walk(const int *from, const int *to) { int r = 0; while (from != to) r += *from++; return r; }
    const int sizes[4] = {5, 6, 7, 8};
    int sizes_sum(int x) { return walk(sizes, sizes + 4); }
    int pick(int x) {
        switch (x) { case 0: return walk(sizes, sizes); case 1: return 17; case 2: return 4; case 3: return 99;
                     case 4: return 6; }
        return -2; }
    """
    for flags in (("-O0",), ("-O2", "-fno-inline"), ("-O2", "-fno-inline", "-fdata-sections")):
        with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
            host.attach(compile_c(source, "-fPIE", *flags, name="p.c"))
            assert host.call_int("sizes_sum", 0) == 26
            assert [host.call_int("pick", n) for n in range(5)] == [0, 17, 4, 99, 6]


def test_a_jump_back_to_the_top_is_a_loop():
    """Neither a direct jump nor a table entry to a function's own entry leaves the version that runs."""
    source = r"""
    asm(".text\n.type pick,@function\n.globl pick\n"
        "pick: .Lpick: cmp $2,%edi\n ja 3f\n mov %edi,%eax\n mov $9,%edi\n jmp *.Ltab(,%rax,8)\n"
        "1: mov $11,%eax\n ret\n2: mov $22,%eax\n ret\n3: mov $33,%eax\n ret\n.size pick,.-pick\n"
        ".section .rodata\n.balign 8\n.Ltab: .quad .Lpick, 1b, 2b\n.text\n"
        ".globl other\n.type other,@function\n"
        "other: .Lother: dec %edi\n jns .Lother\n mov %edi,%eax\n ret\n.size other,.-other\n");
    """
    with Host(program(PROGRAM, "-O1", "-fno-pic", "-no-pie", name="p.c")) as host:
        linked = host.attach(compile_c(source, "-O1", "-fno-pic", name="p.c"))
        assert [host.call_int("pick", n) for n in range(4)] == [33, 11, 22, 33]
        assert host.call_int("other", 5) == -1
        data = linked.modules[0][0][0].regions[0].data
        bodies = {x.name: x.body for x in linked.modules[0][0][0].replaced}
        assert bodies["pick"].to_bytes(8, "little") in data, "the table entry is the body"
        assert host.symbol("pick").to_bytes(8, "little") not in data, "and not the stub"
        assert b"\xff\xcf\x79\xfc" in data, "dec; jns to itself, as it was"


def test_tables_of_tables_of_labels_stay_with_the_code():
    source = r"""
    int pick(int x) {
        static const void *const low[] = { &&a, &&b };
        static const void *const high[] = { &&b, &&c };
        static const void *const *const both[] = { low, high };
        goto *both[x >> 1 & 1][x & 1];
    a: return 10; b: return 20; c: return 30; }
    int other(int x) {
        static void *writable[] = { &&a, &&b };
        writable[0] = x ? writable[0] : writable[1];
        goto *writable[x & 1];
    a: return 1; b: return 2; }
    """
    for flags in (("-O0",), ("-O2",), ("-O2", "-fdata-sections")):
        with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
            linked = host.attach(compile_c(source, "-fPIE", *flags, name="p.c"))
            assert [host.call_int("pick", n) for n in range(4)] == [10, 20, 20, 30]
            assert [host.call_int("other", n) for n in (1, 0)] == [2, 2]
            o, store = linked.modules[0][0][0], linked.modules[0][1]
            assert {r.what for r in o.regions} == {"code", "tables"}
            for r in store.regions:
                for n in range(len(r.data) - 7):
                    assert not o.address <= int.from_bytes(r.data[n:n + 8], "little") < o.address + o.size


def test_alignment_is_kept():
    source = r"""
    __attribute__((aligned(128))) int sum(int x) { return x + 1; }
    __attribute__((aligned(64))) int other(int x) { return x + 2; }
    static double wide[4] __attribute__((aligned(256))) = {1, 2, 3, 4};
    static const int constants[5] __attribute__((aligned(512))) = {1, 2, 3};
    char odd_size = 1;
    long pick(int x) {
        return x == 0 ? (long)&wide[0] & 255 : x == 1 ? (long)constants & 511 : odd_size++ + wide[x & 3]; }
    """
    for flags in ((), ("-ffunction-sections", "-fdata-sections")):
        with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as host:
            linked = host.attach(compile_c(source, "-O1", "-fPIE", *flags, name="p.c"))
            code = {name: at for name, at, _ in linked.modules[0][0][0].code}
            assert (code["sum"] % 128, code["other"] % 64) == (0, 0)
            assert [host.call("pick", n) for n in (0, 1)] == [0, 0]
            assert host.call("pick", 2) == 4
