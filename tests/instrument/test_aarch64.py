"""AArch64 programs, rewritten on any machine and run under qemu-user: every reference goes through the slot (I1).

The programs and checks are those of test_ways.py, built in the ways that AArch64 programs are built.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from crossing import UNDER, binary_tool, cross_compiled, relr
from rewriting import check_form, instrument, run, tool
from test_ways import check, check_cxx, check_library, name

from psu_bin import descriptor
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import driver
from psu_bin.instrument.plan_types import Reroute

pytest_plugins = ["rewriting", "crossing"]

PROGRAMS = [
    ("gcc", "-O0"), ("gcc", "-O2"), ("gcc", "-O3"), ("gcc", "-Os -no-pie"), ("gcc", "-O2 -no-pie -Wl,--emit-relocs"),
    ("gcc", "-O2 -mbranch-protection=standard"),
    ("gcc", "-O2 -mbranch-protection=standard -nostartfiles start_aarch64.S"),
    ("gcc", "-O2 -mbranch-protection=standard -no-pie -nostartfiles start_aarch64.S"),
    ("gcc", "-O0 -mbranch-protection=standard -fno-pie -no-pie -nostartfiles start_aarch64.S"),
    ("gcc", "-O2 -flto -Wl,-z,now -Wl,-z,relro"), ("gcc", "-O2 -fno-plt"),
    ("gcc", "-O2 -Wl,-z,max-page-size=0x1000000"),        # stubs out of reach of adr
    ("gcc", "-O2 -mcmodel=tiny"), ("gcc", "-O2 -mcmodel=large -fno-pic -no-pie"),
    ("gcc", "-O2 -mfix-cortex-a53-843419 -mfix-cortex-a53-835769 -Wl,-z,separate-code"), ("gcc", "-O2 -fuse-ld=gold"),
    ("clang", "-O0 -fuse-ld=lld"), ("clang", "-O2 -fuse-ld=lld"), ("clang", "-Oz -fuse-ld=lld -mbranch-protection=standard"),
    ("clang", "-O2 -no-pie -Wl,--emit-relocs"), ("clang", "-O2 -fuse-ld=lld -no-pie -mcmodel=large -fno-pic"),
    ("clang", "-O3 -flto -fuse-ld=lld"), ("clang", "-O2 -fno-plt RELR"), ("clang", "-O2 -mbranch-protection=standard RELR"),
    ("gcc", "-O2 -DNO_IFUNC"),
    ("clang", "-O2 -DNO_IFUNC -fuse-ld=lld -mbranch-protection=standard"),
]


@pytest.mark.parametrize(("cc", "flags"), PROGRAMS, ids=[" ".join(x) for x in PROGRAMS])
def test_every_way_of_calling_goes_through_the_slot(cross: Path, cc: str, flags: str) -> None:
    words = [w for f in flags.split() for w in (relr() if f == "RELR" else (f,))]
    program = cross_compiled(cross / name(cc, flags), "ways.c", "target.c", *words, "-g", "-rdynamic", "-pthread", cc=cc)
    assert bool(len(Binary(program.read_bytes(), str(program)).relr)) == ("RELR" in flags)
    i = instrument(program)
    check_form(i)
    assert bool(i.descriptor.flags & descriptor.MODULE_IBT) == ("start_aarch64.S" in flags)
    if "max-page-size" in flags:
        planned = driver.analyze(program, (), None)
        kinds = {k for k, rows in planned.edits_by_kind.items() if len(rows)}
        assert Reroute.INSTRUCTION in kinds and Reroute.TO_ADR not in kinds
    check(i, i.path, program, cross / "change.so", {}, UNDER)


STRIPPED = [("gcc", "-O2"), ("gcc", "-O2 -mcmodel=large -fno-pic -no-pie"), ("clang", "-O2 -fuse-ld=lld -mbranch-protection=standard"),
            ("gcc", "-O2 far.c")]


@pytest.mark.parametrize(("cc", "flags"), STRIPPED, ids=[" ".join(x) for x in STRIPPED])
def test_a_stripped_program_with_its_debug_file(cross: Path, tmp_path: Path, cc: str, flags: str) -> None:
    program = cross_compiled(tmp_path / "program", "ways.c", "target.c", *flags.split(), "-g", "-rdynamic", "-pthread", cc=cc)
    stripped, debug = tmp_path / "stripped", tmp_path / "debug"
    tool(binary_tool("objcopy"), "--only-keep-debug", program, debug)
    tool(binary_tool("strip"), "-o", stripped, program)
    assert Binary.read(stripped).symtab is None, "mapping symbols ($d) are gone, too"
    whole, i = instrument(program), instrument(stripped, debug_file=debug)
    assert i.descriptor == whole.descriptor
    assert i.result.not_updatable == whole.result.not_updatable
    check(i, i.path, stripped, cross / "change.so", {}, UNDER)
    # Without it: the functions that are exported.
    alone = instrument(stripped, tmp_path / "alone")
    assert {f.name for f in alone.descriptor.functions} < {f.name for f in i.descriptor.functions}
    assert run(alone.path, under=UNDER) == run(stripped, under=UNDER)


LIBRARIES = [("gcc", "-O2"), ("gcc", "-O2 -mbranch-protection=standard -Wl,-Bsymbolic -Wl,-z,now"),
             ("clang", "-Os -fuse-ld=lld")]


@pytest.mark.parametrize(("cc", "flags"), LIBRARIES, ids=[" ".join(x) for x in LIBRARIES])
def test_every_way_of_calling_in_a_shared_library(cross: Path, tmp_path: Path, cc: str, flags: str) -> None:
    library = cross_compiled(tmp_path / "libways.so", "ways.c", "target.c", *flags.split(), "-DLIBRARY", "-shared",
                             "-fPIC", "-pthread", "-Wl,-soname,libways.so", cc=cc)
    user = cross_compiled(tmp_path / "user", "user.c", library)
    i = instrument(library)
    check_form(i)
    check_library(i, user, cross / "change.so", UNDER)


CXX = [("g++", "-O0"), ("g++", "-O2 -no-pie -mbranch-protection=standard"), ("clang++", "-O2 -fuse-ld=lld")]


def test_cxx_with_stubs_out_of_reach_of_branches(cross: Path, tmp_path: Path) -> None:
    i = instrument(cross_compiled(tmp_path / "program", "ways.cc", "far.c", "-O2", "-g", cc="g++"))
    assert i.descriptor.flags & descriptor.MODULE_FAR
    check_cxx(i, cross / "change.so", UNDER)


@pytest.mark.parametrize(("cc", "flags"), CXX, ids=[" ".join(x) for x in CXX])
def test_cxx(cross: Path, cc: str, flags: str) -> None:
    i = instrument(cross_compiled(cross / name(cc, flags), "ways.cc", *flags.split(), "-g", cc=cc))
    check_cxx(i, cross / "change.so", UNDER)


ERRATA = ("-Wl,--fix-cortex-a53-843419=adrp", "-Wl,--fix-cortex-a53-835769")


@pytest.mark.parametrize("flags", [(), ("-no-pie",), ("-mbranch-protection=standard",)], ids=" ".join)
def test_functions_that_leave_for_a_linker_s_stub(cross: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = cross_compiled(tmp_path / "program", "erratum_aarch64.c", "-O1", "-rdynamic", *ERRATA, *flags)
    assert {"e843419", "__erratum_835769_veneer_0"} <= stubs_in(program), "the linker made no stub"
    i = instrument(program)
    assert run(program, under=UNDER) == run(i.path, under=UNDER) == "before 7 135 135\nafter 7 135 135\n"
    changed = run(i.path, env=i.changes({"target": "other", "second": "third"}), preload=cross / "change.so", under=UNDER)
    assert changed == "before 7 135 135\nafter 1003 142 142\n"


AWAY = """
#include <stdio.h>
#define KEPT __attribute__((noipa, used))
void psu_test_change(const char *) __attribute__((weak));
KEPT __attribute__((section(".away"))) int away(int x) { return x + 7; }
KEPT __attribute__((section(".away"))) int other(int x) { return x + 70; }
KEPT int near(int x) { return x + 700; }
static int (*volatile pointer)(int) = away;
KEPT int calls(int x) { return away(x) + near(x); }
KEPT int jumps(int x) { return away(x + 1); }
int main(void)
{
    printf("before %d %d %d %d\\n", calls(1), jumps(1), pointer(1), pointer == away);
    if (psu_test_change)
        psu_test_change("away"), psu_test_change("near");
    printf("after %d %d %d %d\\n", calls(1), jumps(1), pointer(1), pointer == away);
}
"""


@pytest.mark.parametrize("flags", ["-O1", "-O2 -no-pie -Wl,--emit-relocs", "-O2 -mbranch-protection=standard"])
def test_a_linker_s_veneer_over_a_long_way(cross: Path, tmp_path: Path, flags: str) -> None:
    (tmp_path / "away.c").write_text(AWAY)
    program = cross_compiled(tmp_path / "program", tmp_path / "away.c", "far.c", *flags.split(), "-rdynamic",
                             "-Wl,--section-start=.away=0x10000000")
    assert "__away_veneer" in stubs_in(program), "the linker made no veneer"
    i = instrument(program)
    assert i.descriptor.flags & descriptor.MODULE_FAR
    assert run(program, under=UNDER) == run(i.path, under=UNDER) == "before 709 9 8 1\nafter 709 9 8 1\n"
    changed = run(i.path, env=i.changes({"away": "other", "near": "away"}), preload=cross / "change.so", under=UNDER)
    assert changed == "before 709 9 8 1\nafter 79 72 71 1\n"


def stubs_in(path: Path) -> set[str]:
    """The first words of the symbols' names, which linkers give their stubs."""
    b = Binary.read(path)
    return {b.symtab.name(n).split("@")[0] for n in range(len(b.symtab.entries))}


FAR = [("gcc", "-O0"), ("gcc", "-O2"), ("gcc", "-O3 -no-pie -Wl,--emit-relocs"),
       ("gcc", "-O2 -mbranch-protection=standard -nostartfiles start_aarch64.S"),
       ("clang", "-Os -fuse-ld=lld -Wl,--no-relax")]


@pytest.mark.parametrize(("cc", "flags"), FAR, ids=[" ".join(x) for x in FAR])
def test_stubs_out_of_reach_of_branches(cross: Path, cc: str, flags: str) -> None:
    program = cross_compiled(cross / ("far" + name(cc, flags)), "ways.c", "target.c", "far.c", *flags.split(), "-g", "-rdynamic",
                             "-pthread", cc=cc)
    i = instrument(program)
    assert i.descriptor.flags & descriptor.MODULE_FAR
    assert not any(f.flags & descriptor.DETOURED for f in i.descriptor.functions), "nothing moved"
    check_form(i)
    check(i, i.path, program, cross / "change.so", {}, UNDER)


def test_a_library_with_stubs_out_of_reach_of_branches(cross: Path, tmp_path: Path) -> None:
    library = cross_compiled(tmp_path / "libways.so", "ways.c", "target.c", "far.c", "-O2", "-DLIBRARY", "-shared",
                             "-fPIC", "-pthread", "-Wl,-soname,libways.so")
    user = cross_compiled(tmp_path / "user", "user.c", library)
    i = instrument(library)
    assert i.descriptor.flags & descriptor.MODULE_FAR
    check_library(i, user, cross / "change.so", UNDER)


# An adrp that registers keep over calls, and that an exception handler uses, too.
CAUGHT = """
#include <cstdio>
#define KEPT __attribute__((noipa))
typedef int fn(int);
KEPT static int given(int x) { return 3 * x; }
KEPT static int handed(int x) { return 4 * x; }
static fn *seen[4];
KEPT void take(fn *f, int n) { seen[n] = f; if (n & 1) throw n; }
KEPT int run(int n)
{
    for (int i = 0; i < n; i++) {
        try { take(given, 2 * i); take(given, 2 * i + 1); }
        catch (int x) { take(given, 2); return x; }
    }
    return 0;
}
KEPT int all(int n) { for (int i = 0; i < n; i++) take(handed, 2 * i); return n; }
int main(void)
{
    int caught = run(2);
    std::printf("%d %d %d %d\\n", caught, seen[0] == seen[1], seen[1] == seen[2], seen[2](5));
    all(2);
    std::printf("%d %d\\n", seen[0] == seen[2], seen[0](5));
}
"""


@pytest.mark.parametrize("level", ["-O1", "-O2", "-Os", "-O3"])
@pytest.mark.parametrize("how", ["-g", "-Wl,-z,max-page-size=0x1000000", "far.c"])      # in reach of adr, of branches, of neither
def test_addresses_that_exception_handlers_compute(tmp_path: Path, level: str, how: str) -> None:
    (tmp_path / "caught.cc").write_text(CAUGHT)
    program = cross_compiled(tmp_path / "program", tmp_path / "caught.cc", how, level, cc="g++")
    i = instrument(program)
    far = how == "far.c"
    assert bool(i.descriptor.flags & descriptor.MODULE_FAR) == far
    assert run(i.path, under=UNDER) == run(program, under=UNDER) == "1 1 1 15\n1 20\n"
    updatable = {f.name for f in i.descriptor.functions}
    assert "_ZL6handedi" in updatable and ("_ZL5giveni" in updatable or far), "no handler computes the address of handed"


# A handler right behind a call that never returns: before that call the register has another page than where the exception comes from.
BEHIND = """
        .text
        .globl user
        .type user, %function
user:   .cfi_startproc
        .cfi_personality 0x9b, DW.ref.__gcc_personality_v0
        .cfi_lsda 0x1b, .Ltable
        stp x29, x30, [sp, -32]!
        .cfi_def_cfa_offset 32
        .cfi_offset 29, -32
        .cfi_offset 30, -24
        stp x19, x20, [sp, 16]
        .cfi_offset 19, -16
        .cfi_offset 20, -8
        adrp x19, given
        add x0, x19, :lo12:given
        bl take
        add x0, x19, :lo12:given
.Lcall: bl take
.Lback: cbz w0, .Lend
        ldp x19, x20, [sp, 16]
        ldp x29, x30, [sp], 32
        ret
.Lend:  adrp x19, text
        add x0, x19, :lo12:text
        bl ends
.Lpad:  mov x20, x0
        add x0, x19, :lo12:given
        bl take
        mov x0, x20
        bl _Unwind_Resume
        .cfi_endproc
        .size user, . - user
        .balign 4096
        .skip 2048
        .type text, %function
text:   ret
        .size text, . - text
        .balign 4096
        .skip 1040
        .globl given
        .type given, %function
given:  add w0, w0, w0, lsl 1
        ret
        .size given, . - given
        .section .gcc_except_table, "a"
.Ltable:
        .byte HEAD
        FORM .Lcall - user, .Lback - .Lcall, .Lpad - user
        .uleb128 0
        .hidden DW.ref.__gcc_personality_v0
        .weak DW.ref.__gcc_personality_v0
        .section .data.rel.local.DW.ref.__gcc_personality_v0, "awG", %progbits, DW.ref.__gcc_personality_v0, comdat
        .align 3
DW.ref.__gcc_personality_v0:
        .xword __gcc_personality_v0
        .section .note.GNU-stack, "", @progbits
"""
BEFORE = """
#include <cstdio>
#include <cstdlib>
typedef int fn(int);
extern "C" {
void user(void);
static fn *seen[4];
static int n;
int take(fn *f) { seen[n++] = f; if (n == 2) throw n; return 1; }
void ends(void *) { abort(); }
}
int main(void)
{
    try { user(); }
    catch (int) { std::printf("%d %d %d %d\\n", n, seen[0] == seen[1], seen[1] == seen[2], seen[2](5)); }
}
"""


@pytest.mark.parametrize(("head", "form"), [("0xff, 0xff, 1, 9", ".uleb128"), ("0xff, 0xff, 3, 13", ".4byte")], ids=["uleb128", "udata4"])
def test_a_handler_behind_a_call_that_never_returns(tmp_path: Path, head: str, form: str) -> None:
    (tmp_path / "behind.S").write_text(BEHIND.replace("HEAD", head).replace("FORM", form))
    (tmp_path / "before.cc").write_text(BEFORE)
    program = cross_compiled(tmp_path / "program", tmp_path / "before.cc", tmp_path / "behind.S", "-O2", cc="g++")
    i = instrument(program)
    assert run(i.path, under=UNDER) == run(program, under=UNDER) == "3 1 1 15\n"
    assert {"given", "user", "text"} <= {f.name for f in i.descriptor.functions}


PADS = """
#include <stdio.h>
void psu_test_change(const char *) __attribute__((weak));
__attribute__((noipa)) static int plain(int x) { return x + 1; }
__attribute__((noipa)) static int other(int x) { return x + 2; }
int main(void)
{
    printf("%d %d\\n", plain(1), other(1));
    if (psu_test_change)
        psu_test_change("plain"), psu_test_change("other");
    printf("%d %d\\n", plain(1), other(1));
}
"""


def test_a_stub_out_of_reach_leads_to_a_function_without_a_mark(cross: Path, tmp_path: Path) -> None:
    (tmp_path / "pads.c").write_text(PADS)
    program = cross_compiled(tmp_path / "program", tmp_path / "pads.c", "far.c", "start_aarch64.S", "-O2", "-rdynamic",
                             "-mbranch-protection=standard", "-nostartfiles")
    i = instrument(program)
    assert i.descriptor.flags & descriptor.MODULE_FAR and i.descriptor.flags & descriptor.MODULE_IBT
    assert {f.name for f in i.descriptor.functions if f.original != f.address} >= {"plain", "other"}
    assert run(i.path, under=UNDER) == "2 3\n2 3\n"
    changed = run(i.path, env=i.changes({"plain": "other", "other": "plain"}), preload=cross / "change.so", under=UNDER)
    assert changed == "2 3\n3 2\n"


@pytest.mark.parametrize(("size", "far"), [(100, False), (110, True), (120, True), (130, True), (1900, True)])
def test_patches_have_room_in_reach_unless_the_module_is_far(tmp_path: Path, size: int, far: bool) -> None:
    big = tmp_path / "big.c"
    big.write_text(f"char big[{size}ul << 20]; int use(long i) {{ return big[i]; }}")
    i = instrument(cross_compiled(tmp_path / "program", "small.c", big, "-O1"))
    assert bool(i.descriptor.flags & descriptor.MODULE_FAR) == far
    assert run(i.path, under=UNDER) == "100006 100010 -\n"


def test_what_needs_a_branch_to_its_stub_is_not_updatable(tmp_path: Path) -> None:
    program = cross_compiled(tmp_path / "program", "small.c", "far.c", "-O1", "-no-pie")
    i = instrument(program)
    assert run(i.path, under=UNDER) == run(program, under=UNDER) == "100006 100010 -\n"
    reasons = {n.name: n.reason for n in i.result.not_updatable}
    assert "a word in" in reasons["leaf"] and reasons["leaf"].endswith("no room for a jump at its entry: its stub is too far away")
    assert "middle" in {f.name for f in i.descriptor.functions}


@pytest.mark.parametrize(("text", "message"), [
    ("char big[3ul << 30]; int use(long i) { return big[i]; }", "too large: code and data span 3... MiB, addresses reach 2048 MiB"),
    ('int use(int x) { return x; } asm(".text\\n.skip 120 << 20\\n"); int again(int x) { return use(x + 1); }',
     "too large: its code spans 120 MiB, branches reach 128 MiB")])
def test_what_nothing_spans_is_refused(tmp_path: Path, text: str, message: str) -> None:
    big = tmp_path / "big.c"
    big.write_text(text)
    program = cross_compiled(tmp_path / "program", "small.c", "far.c", big, "-O1", "-fno-toplevel-reorder", "-fno-inline",
                             "-mcmodel=small")
    with pytest.raises(PsuError, match=message):
        instrument(program)
