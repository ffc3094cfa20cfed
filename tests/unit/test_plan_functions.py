"""Which functions a plan has, which it leaves out and why, and what it says of each."""

from __future__ import annotations

import subprocess

import pytest

from psu_bin import descriptor
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import plan
from tests.unit.planning import ARCH, build, planned, source

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) static int f(int x) { return x * 5 + 3; }
__attribute__((noinline)) int g(int x) { return f(x) + f(x + 1); }
int main(int argc, char **argv) { (void)argv; return g(argc) + f(2); }
"""

STARTUP = {"_start", "_init", "_fini", "deregister_tm_clones", "register_tm_clones", "__do_global_dtors_aux", "frame_dummy"}


def test_start_up_code_is_left_out_silently(tmp_path):
    p = planned(build(tmp_path, "-O1", source(tmp_path, PROGRAM)))
    assert p.names() == {"f", "g", "main"}
    assert p.plan.not_updatable == ()


def test_start_up_code_asked_for_by_name_is_refused_with_a_reason(tmp_path):
    p = planned(build(tmp_path, "-O1", source(tmp_path, PROGRAM)), include=("_start", "g"))
    assert p.names() == {"g"}
    assert p.reason("_start") == "C runtime start-up code"


def test_patterns_choose_and_exclude(tmp_path):
    path = build(tmp_path, "-O1", source(tmp_path, PROGRAM))
    assert planned(path, include=("[fg]",)).names() == {"f", "g"}
    assert planned(path, exclude=("ma*",)).names() == {"f", "g"}
    assert planned(path, include=("*",), exclude=("f",)).names() == {"g", "main"}


@pytest.mark.parametrize("include,exclude,text", [
    (("nosuch*",), (), "no function matches --functions 'nosuch*'"),
    ((), ("nosuch",), "no function matches --exclude 'nosuch'"),
    (("f", "h"), (), "no function matches --functions 'h'"),
    (("f",), ("f",), "no function to update"),
    (("_start",), (), "no function to update"),
])
def test_patterns_that_choose_nothing_are_refused(tmp_path, include, exclude, text):
    path = build(tmp_path, "-O1", source(tmp_path, PROGRAM))
    with pytest.raises(PsuError, match=text.replace("*", r"\*")):
        planned(path, include=include, exclude=exclude)


def test_a_stripped_program_is_refused_with_a_hint_at_its_debug_file(tmp_path):
    path = build(tmp_path, "-O1", "-s", source(tmp_path, PROGRAM))
    with pytest.raises(PsuError, match="no function symbols.*--debug-file"):
        planned(path)


def test_a_stripped_library_has_its_exported_functions(tmp_path):
    path = build(tmp_path, "-O1", "-s", "-shared", "-fPIC", source(tmp_path, PROGRAM))
    p = planned(path)
    assert p.names() == {"g", "main"}
    whole = planned(build(tmp_path, "-O1", "-shared", "-fPIC", source(tmp_path, PROGRAM), out="whole"))
    assert (p.function("g").address, p.function("g").size) == (whole.function("g").address, whole.function("g").size)


def test_callers_and_flags(tmp_path):
    p = planned(build(tmp_path, "-O1", source(tmp_path, PROGRAM)))
    assert (p.function("f").callers, p.function("g").callers, p.function("main").callers) == (3, 1, 0)
    assert p.plan.call_sites == 4
    assert not p.function("f").flags & descriptor.ADDRESS_TAKEN
    assert p.function("main").flags & descriptor.ADDRESS_TAKEN


def test_aliases_are_one_function_named_by_the_global_one(tmp_path):
    text = PROGRAM + """
    static int local_name(int) __attribute__((alias("g"), used));
    extern int weak_name(int) __attribute__((weak, alias("g")));
    """
    p = planned(build(tmp_path, "-O1", source(tmp_path, text)))
    assert p.names() == {"f", "g", "main"}
    symbols, _ = plan.symbols(p.binary, p.plan, None)
    number = [f.name for f in p.plan.functions].index("g")
    assert {s.name for s in symbols if s.function == number} == {"g", "local_name", "weak_name"}


def test_ifuncs_and_their_resolvers_are_refused(tmp_path):
    text = PROGRAM + """
    static int one(int x) { return x; }
    static int (*choose(void))(int) { return one; }
    int picked(int) __attribute__((ifunc("choose")));
    int user(int x) { return picked(x); }
    """
    p = planned(build(tmp_path, "-O1", source(tmp_path, text)))
    assert "IFUNC" in p.reason("picked")
    assert "choose" not in p.names() and "picked" not in p.names()
    assert "one" in p.names()


def test_cold_parts_belong_to_their_functions(tmp_path):
    text = r"""
    #include <stdio.h>
    #include <stdlib.h>
    __attribute__((noinline)) int work(int x) {
        if (__builtin_expect(x == 77, 0)) { for (int i = 0; i < x; i++) fprintf(stderr, "x %d\n", i); abort(); }
        for (int i = 0; i < x; i++) putchar(x + i);
        return x * 2;
    }
    int main(int argc, char **argv) { (void)argv; return work(argc) + work(argc + 1); }
    """
    path = build(tmp_path, "-O2", source(tmp_path, text))
    assert "work.cold" in subprocess.run(["nm", str(path)], capture_output=True, text=True).stdout
    p = planned(path)
    assert p.names() == {"work", "main"}
    assert p.plan.not_updatable == ()


def test_an_entry_inside_another_function_is_refused(tmp_path):
    text = r"""
    .text
    .globl outer
    .type outer, @function
    outer: mov %edi, %eax
    .globl inner
    .type inner, @function
    inner: add $1, %eax
    ret
    .size inner, . - inner
    .size outer, . - outer
    .globl main
    .type main, @function
    main: call outer
    call inner
    ret
    .size main, . - main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    assert p.names() == {"outer", "main"}
    assert p.reason("inner") == "its entry lies inside another function"


def test_a_personality_routine_that_unwind_tables_name_directly_is_refused(tmp_path):
    text = r"""
    .text
    .globl my_personality
    .type my_personality, @function
    my_personality: mov $8, %eax
    ret
    .size my_personality, . - my_personality
    .globl main
    .type main, @function
    main:
    .cfi_startproc
    .cfi_personality 0x1b, my_personality
    xor %eax, %eax
    ret
    .cfi_endproc
    .size main, . - main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    assert "personality" in p.reason("my_personality")


def test_functions_that_may_touch_stack_arguments_are_marked(tmp_path):
    text = r"""
    #include <stdarg.h>
    struct big { long v[5]; };
    #define N __attribute__((noinline))
    N int six(int a, int b, int c, int d, int e, int f) { volatile int x[20]; x[a & 7] = f; return a + b + c + d + e + x[3]; }
    N int seven(int a, int b, int c, int d, int e, int f, int g) { return a + b + c + d + e + f + g; }
    N int variadic(int n, ...) { va_list l; va_start(l, n); int s = 0; while (n--) s += va_arg(l, int); va_end(l); return s; }
    N long by_value(struct big b) { return b.v[0] + b.v[4]; }
    N int sized(int n) { volatile char room[n]; room[0] = 1; return room[0] + n; }
    N double many(double a, double b, double c, double d, double e, double f, double g, double h, double i) {
        return a + b + c + d + e + f + g + h + i; }
    int main(int argc, char **argv) { struct big b = {{argc}}; (void)argv;
        return six(1, 2, 3, 4, 5, 6) + seven(1, 2, 3, 4, 5, 6, 7) + variadic(2, 3, 4) + by_value(b) + sized(argc + 9)
            + many(1, 2, 3, 4, 5, 6, 7, 8, 9); }
    """
    for flags in (["-O0"], ["-O2"], ["-O2", "-fno-omit-frame-pointer"], ["-Os"], ["-O2", "-mavx2"]):
        for cc in ("gcc", "clang"):
            p = planned(build(tmp_path, *flags, source(tmp_path, text), cc=cc))
            marked = {f.name for f in p.plan.functions if f.flags & descriptor.STACK_ARGS}
            assert {"seven", "variadic", "by_value", "many"} <= marked, (cc, flags)
            assert "six" not in marked and "sized" not in marked, (cc, flags)


def test_functions_without_unwind_entries_may_have_a_convention_of_their_own(tmp_path):
    text = r"""
    .text
    .macro fun name
    .globl \name
    .type \name, @function
    \name:
    .endm
    fun bare
      lea 1(%rdi), %eax
      ret
    .size bare, . - bare
    fun uses_flags
    .cfi_startproc
      setc %al
      ret
    .cfi_endproc
    .size uses_flags, . - uses_flags
    fun ordinary
    .cfi_startproc
      lea 1(%rdi), %eax
      ret
    .cfi_endproc
    .size ordinary, . - ordinary
    fun main
    .cfi_startproc
      call bare
      call uses_flags
      call ordinary
      ret
    .cfi_endproc
    .size main, . - main
    .section .note.GNU-stack,"",@progbits
    """
    p = planned(build(tmp_path, source(tmp_path, text, "a.S")))
    marked = {f.name for f in p.plan.functions if f.flags & descriptor.OWN_CONVENTION}
    assert marked == {"bare", "uses_flags"}


def test_symbols_tell_statics_of_two_files_apart(tmp_path):
    for name in ("one", "two"):
        source(tmp_path, f"static int shared = 3; static __attribute__((noinline)) int helper(int x)"
                         f"{{ static int count; return ++count * x + shared++; }} int {name}(int x) {{ return helper(x); }}",
               f"{name}.c")
    main = source(tmp_path, "extern int one(int), two(int); __thread int t = 4; int main(void) { return one(1) + two(2) + t; }",
                  "main.c")
    p = planned(build(tmp_path, "-O1", main, tmp_path / "one.c", tmp_path / "two.c"))
    symbols, files = plan.symbols(p.binary, p.plan, None)
    owners = {}
    for s in symbols:
        if s.name in ("helper", "shared"):
            owners.setdefault(s.name, set()).add(files[s.file])
    assert owners == {"helper": {"one.c", "two.c"}, "shared": {"one.c", "two.c"}}
    counts = [s for s in symbols if s.name.startswith("count.")]
    assert len(counts) == 2
    for s in counts:
        assert [(symbols[u].name, files[symbols[u].file]) for u in s.users] == [("helper", files[s.file])]
    assert [s.kind for s in symbols if s.name == "t"] == [descriptor.KIND_TLS]
    assert next(s for s in symbols if s.name == "one").bind == descriptor.BIND_GLOBAL


def test_symbol_versions_are_not_part_of_names(tmp_path):
    script = source(tmp_path, "V1 { global: api; local: *; };", "v.map")
    text = "int api(int x) { return x + 41; }"
    p = planned(build(tmp_path, "-O1", "-shared", "-fPIC", f"-Wl,--version-script={script}", source(tmp_path, text)))
    assert p.names() == {"api"}
    symbols, _ = plan.symbols(p.binary, p.plan, None)
    assert "api" in {s.name for s in symbols} and not any("@" in s.name for s in symbols)


def test_damaged_files_are_refused_or_planned_but_never_crash(tmp_path):
    import random
    good = build(tmp_path, "-O1", "-no-pie", "-Wl,--emit-relocs", source(tmp_path, PROGRAM)).read_bytes()
    chance = random.Random(4)
    refused = 0
    for _ in range(120):
        data = bytearray(good)
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(len(data))] = chance.choice((0, 0x7F, 0x80, 0xFF))
        try:
            binary = Binary(bytes(data), "damaged")
            plan.symbols(binary, plan.make(binary, ARCH, (), (), None), None)
        except PsuError:
            refused += 1
    assert refused > 5
