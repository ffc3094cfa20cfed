"""References to functions: everything that the linker knows of is found, and nothing else.

The programs are compiled with -ffunction-sections and linked with --emit-relocs, planned once with the kept relocations
and once without (as every stripped or ordinary program), and both plans are held against the relocations.
"""

from __future__ import annotations

import subprocess

import pytest

from psu_bin.elf import Binary
from psu_bin.instrument import plan
from psu_bin.instrument.plan_types import Reroute
from tests.unit.planning import ARCH, Planned, build, edited_fields, planned, recorded, source

SHAPES = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define N __attribute__((noinline))
typedef int (*fn)(int);
static N int leaf(int x) { return x * 3 + 1; }
static N int counted(int x) { static int count; count += x; return count; }
N int recursive(int n) { return n <= 1 ? 1 : n * recursive(n - 1); }
N int tail(int x) { return leaf(x + 1); }
N int loop(int n) { int s = 0; do s += counted(n); while (--n > 0); return s; }
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
N int chosen(int x) {
    switch (x) {
    case 0: return leaf(1);
    case 1: return tail(2);
    case 2: return 17;
    case 3: return counted(3);
    case 4: return recursive(4);
    case 5: return loop(2);
    default: return -x;
    }
}
static const fn table[] = {leaf, tail, recursive, chosen};
static fn writable[] = {counted, loop};
struct ops { const char *name; fn f; } ops = {"leaf", leaf};
N fn get(int i) { return i & 1 ? leaf : counted; }
__attribute__((cold, noinline)) void fail(int x) { fprintf(stderr, "bad %d\n", x); exit(3); }
__attribute__((weak)) int weak(int x) { return leaf(x); }
int aliased(int x) __attribute__((alias("weak")));
__attribute__((constructor)) static void early(void) { writable[0](1); }
N double mixed(int n, double a, double b, int c, int d, int e, int f, int g, int h) {
    if (n < 0) fail(n);
    return n + a * b + c + d + e + f + g + h;
}
int main(int argc, char **argv) {
    int v[] = {3, 1, 2}, sum = 0;
    (void)argv;
    qsort(v, 3, sizeof *v, compare);
    for (int i = 0; i < argc + 3; i++) sum += table[i & 3](i) + writable[i & 1](i) + get(i)(i) + ops.f(i) + chosen(i);
    printf("%d %d %.1f %d\n", sum, v[0], mixed(argc, 1, 2, 3, 4, 5, 6, 7, 8), aliased(3) + weak(4));
    return 0;
}
"""

BUILDS = [(cc, level, extra, linker)
          for cc in ("gcc", "clang")
          for level, extra, linker in (
              ("-O0", "-fPIE -pie", ""), ("-O1", "-fPIE -pie", ""), ("-O2", "-fPIE -pie", ""), ("-O3", "-fPIE -pie", ""),
              ("-Os", "-fPIE -pie", ""), ("-O2", "-no-pie -fno-pie", ""), ("-O0", "-no-pie -fno-pie", ""),
              ("-O2", "-fPIE -pie -fcf-protection=full", ""), ("-O2", "-fPIE -pie -fno-plt", ""),
              ("-O2", "-fPIE -pie", "-Wl,-z,pack-relative-relocs"), ("-O2", "-fPIE -pie -fuse-ld=lld", ""),
              ("-O2", "-no-pie -fno-pie -fuse-ld=lld", ""), ("-O2", "-fPIE -pie -fuse-ld=gold", ""),
              ("-O2", "-fPIC -shared", ""), ("-O2", "-fPIC -shared -Wl,-Bsymbolic", ""))]


def strip_kept(path):
    """A copy of the program without the kept relocations: what `ld` would have written without --emit-relocs."""
    out = path.with_suffix(".plain")
    sections = subprocess.run(["readelf", "-SW", str(path)], capture_output=True, text=True, check=True).stdout
    kept = [w for line in sections.splitlines() for w in line.split()
            if w.startswith(".rela.") and " A " not in line and " AI " not in line and w not in (".rela.dyn", ".rela.plt")]
    subprocess.run(["objcopy", *(f"--remove-section={k}" for k in kept), str(path), str(out)], check=True)
    return out


@pytest.mark.parametrize("cc,level,extra,linker", BUILDS, ids=lambda v: v.replace(" ", "") if v else "ld")
def test_the_references_found_are_those_that_the_linker_recorded(tmp_path, cc, level, extra, linker):
    flags = [level, "-ffunction-sections", *extra.split(), "-Wl,--emit-relocs", *([linker] if linker else [])]
    path = build(tmp_path, *flags, source(tmp_path, SHAPES), cc=cc)
    with_kept = planned(path)
    expected = recorded(path, with_kept)
    found = edited_fields(with_kept)
    detoured = {with_kept.plan.functions[d.function].address for d in with_kept.plan.detours}
    missing = {hex(at): hex(to) for at, to in expected.items() if found.get(at) != to and to not in detoured}
    assert not missing
    own_sections = own_calls(with_kept)
    surplus = {hex(at): hex(to) for at, to in found.items() if at not in expected and at not in own_sections
               and not resolved_by_linker(with_kept, at)}
    assert not surplus
    assert len(expected) > 10


def own_calls(p: Planned) -> set[int]:
    """Fields inside a function that lead to its own entry: the assembler resolves them without a relocation."""
    out = set()
    for e in p.found:
        f = p.plan.functions[e.function]
        if e.kind == Reroute.REL32 and f.address <= e.at < f.address + f.size:
            out.add(e.at)
    return out


def resolved_by_linker(p: Planned, at: int) -> bool:
    """Whether a field is in a section that the linker makes by itself, without a relocation in its input."""
    return any(s.name in (".got", ".got.plt", ".init_array", ".data.rel.ro") and s.holds(at) for s in p.binary.sections)


@pytest.mark.parametrize("extra", ["-fPIE -pie", "-fPIC -shared", "-fPIE -pie -fuse-ld=lld"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_position_independent_files_need_no_kept_relocations(tmp_path, cc, extra):
    path = build(tmp_path, "-O2", "-ffunction-sections", *extra.split(), "-Wl,--emit-relocs", source(tmp_path, SHAPES), cc=cc)
    plain = strip_kept(path)
    assert Binary.read(path).kept_relocations and not Binary.read(plain).kept_relocations
    assert edited_fields(planned(plain)) == edited_fields(planned(path))


def test_pointers_in_a_position_dependent_file_without_kept_relocations_stay_as_they_are(tmp_path):
    path = build(tmp_path, "-O2", "-no-pie", "-fno-pie", source(tmp_path, SHAPES))
    p = planned(path)
    assert p.detour("leaf") and p.detour("compare")
    assert set(p.edits("leaf")) == {Reroute.REL32}
    calls = {e.at for e in p.found}
    for s in p.binary.sections:
        if s.name in (".data", ".rodata", ".data.rel.ro"):
            assert not any(s.holds(at) for at in calls)


def test_a_number_that_equals_an_entry_is_not_edited_where_relocations_were_kept(tmp_path):
    text = """
    int f(int x) { return x + 1; }
    long number = NUMBER; int main(void) { return f(2) + (number == NUMBER); }
    """
    probe = planned(build(tmp_path, "-O1", "-no-pie", "-fno-pie", "-Wl,--emit-relocs", "-DNUMBER=0x401200", "-fno-inline",
                          source(tmp_path, text)))
    entry = probe.function("f").address
    path = build(tmp_path, "-O1", "-no-pie", "-fno-pie", "-Wl,--emit-relocs", f"-DNUMBER={entry:#x}", "-fno-inline",
                 source(tmp_path, text))
    p = planned(path)
    assert p.function("f").address == entry
    assert p.edits("f") == [Reroute.REL32]
    assert not p.plan.detours


def test_jumps_to_a_functions_own_entry_are_loops_and_calls_are_not(tmp_path):
    text = r"""
    .text
    .globl spin
    .type spin, @function
    spin: dec %edi
    jnz spin
    call spin_once
    ret
    .size spin, . - spin
    .type spin_once, @function
    spin_once: call spin_once
    ret
    .size spin_once, . - spin_once
    .globl main
    .type main, @function
    main: call spin
    ret
    .size main, . - main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    assert p.edits("spin") == [Reroute.REL32]          # from main only
    assert len(p.edits("spin_once")) == 2


def test_every_encoding_of_a_jump_to_another_function_is_found(tmp_path):
    text = r"""
    .macro fun name
    .globl \name
    .type \name, @function
    .p2align 4
    \name:
    .endm
    .macro end name
    .size \name, . - \name
    .endm
    .text
    fun target
      lea 1(%rdi), %eax
      add $1, %eax
      ret
    end target
    .skip 300, 0x90
    fun near
      call target
      addr32 call target
      .byte 0xf2
      call target
      jne target
      .byte 0x2e
      jmp target
    end near
    fun short_target
      lea 1(%rdi), %eax
      add $1, %eax
      ret
    end short_target
    fun brief
      jrcxz short_target
      jne short_target
      jmp short_target
    end brief
    fun main
      lea near(%rip), %rax
      lea target(%rip), %r11
      call near
      call brief
      xor %eax, %eax
      ret
    end main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    assert p.edits("target") == [Reroute.REL32] * 6
    assert [e.call_site for e in p.found if p.plan.functions[e.function].name == "target"].count(True) == 5
    assert p.detour("short_target")
    assert p.edits("short_target") == []
    assert p.function("target").callers == 5
    assert p.function("short_target").callers == 3


def test_the_pass_does_not_mistake_data_between_functions_for_code(tmp_path):
    """A call instruction in a table behind a function, where the decoder loses its way, is not edited."""
    text = r"""
    .text
    .globl target
    .type target, @function
    target: lea 1(%rdi), %eax
      add $1, %eax
      ret
    .size target, . - target
    .skip 300, 0x90
    .type user, @function
    user: call target
      ret
      .byte 0x06, 0x06, 0xea
      call target
      .byte 0x06
    .size user, . - user
    .globl main
    .type main, @function
    main: call user
      call target
      ret
    .size main, . - main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    inside = p.function("user")
    assert p.detour("target")
    assert not [e for e in p.found if inside.address <= e.at < inside.address + inside.size
                and p.plan.functions[e.function].name == "target" and not e.call_site]


def test_dynamic_relocations_of_every_form_are_found(tmp_path):
    for flag, kind in (("-Wl,-z,nopack-relative-relocs", Reroute.RELA_ADDEND), ("-Wl,-z,pack-relative-relocs", Reroute.RELR_WORD)):
        path = build(tmp_path, "-O1", "-fPIE", "-pie", flag, source(tmp_path, SHAPES))
        p = planned(path)
        assert kind in p.edits("leaf")
        assert p.function("leaf").flags & 4


def test_exported_functions_move_with_their_dynamic_symbol(tmp_path):
    p = planned(build(tmp_path, "-O1", "-fPIC", "-shared", source(tmp_path, SHAPES)))
    assert Reroute.DYNSYM in p.edits("tail")
    assert Reroute.DYNSYM in p.edits("aliased")
    symbols = {p.binary.dynsym.name(e.at) for e in p.found if e.kind == Reroute.DYNSYM}
    assert {"weak", "aliased", "main", "tail"} <= symbols


# The second one's debug file ends before where a segment says that it begins, of which nothing is in it.
@pytest.mark.parametrize("flags", [(), ("-Wl,-z,max-page-size=0x200000",)], ids=" ".join)
def test_plan_is_the_same_for_a_stripped_program_with_its_debug_file(tmp_path, flags):
    path = build(tmp_path, "-O2", "-g", *flags, source(tmp_path, SHAPES))
    debug, stripped = tmp_path / "a.debug", tmp_path / "a.stripped"
    subprocess.run(["objcopy", "--only-keep-debug", str(path), str(debug)], check=True)
    subprocess.run(["strip", "-o", str(stripped), str(path)], check=True)
    full, apart = planned(path), planned(stripped, debug=debug)
    assert apart.plan == full.plan
    whole, files = plan.symbols(full.binary, full.plan, None)
    again, files_again = plan.symbols(apart.binary, apart.plan, Binary.read(debug))
    assert set(whole) == set(again) and files == files_again
