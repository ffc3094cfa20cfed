"""What no patch may have is refused with a sentence, not ignored."""

import pytest
from linking_host import Host, compile_c, program

from psu_bin.attach import checks
from psu_bin.errors import PsuError

PROGRAM = r"""
__thread int existing = 5; int plain = 6;
void touch(int x) { existing += x; plain += x; }
int run(int x) { return x; }
int get(void) { return existing; }
__attribute__((constructor)) static void early(void) { touch(2); __asm__ volatile(""); }
__attribute__((destructor)) static void late(void) { touch(3); __asm__ volatile(""); }
"""
RUN = "int run(int x) { return x + 1; }"


@pytest.fixture(scope="module")
def host():
    with Host(program(PROGRAM, "-O1", "-fPIE", name="p.c")) as running:
        yield running


REFUSED = [
    ("__attribute__((constructor)) static void f(void) { asm volatile(\"\"); }" + RUN,
     "has constructors or destructors, in section .init_array, that the program does not have"),
    ("__attribute__((destructor)) static void f(void) { asm volatile(\"\"); }" + RUN,
     "has constructors or destructors, in section .fini_array, that the program does not have"),
    ("int added; extern int plain; void touch(int); static void fill(void) { added = plain; asm volatile(\"\"); }"
     "__attribute__((constructor)) static void early(void) { touch(1); fill(); asm volatile(\"\"); }" + RUN,
     "early: a constructor uses added, which is new"),
    ("static int one(void) { return 1; } static void *pick(void) { return one; }"
     "int chosen(void) __attribute__((ifunc(\"pick\")));" + RUN, "defines an indirect function: chosen"),
    ("__thread int fresh; int run(int x) { return ++fresh; }", "new thread-local variable fresh"),
    ("static __thread int fresh = 4; int run(int x) { return ++fresh; }", "new thread-local variable fresh"),
    ("extern __thread int nowhere; int run(int x) { return ++nowhere; }", "nowhere is in no instrumented module"),
    ("__thread int plain; int run(int x) { return ++plain; }", "plain is thread-local on one side only"),
    ("int existing = 1; int run(int x) { return ++existing; }", "existing is thread-local on one side only"),
    ("extern int existing; int run(int x) { return ++existing; }",
     "existing is thread-local in the program, not in the patch"),
    ("int get = 5; int run(int x) { return ++get; }", "get is a variable in the patch and a function in"),
    ("static void *where[2]; int run(int x) { static void *tab[] = { &&a, &&b }; where[x] = tab;"
     "static void **keep = &tab[1]; if (x) keep = 0; goto *keep[0]; a: return 1; b: return 2; }",
     "points into the code"),
]


@pytest.mark.parametrize("flags", [("-O1", "-fPIE"), ("-O0", "-fPIC")], ids=" ".join)
@pytest.mark.parametrize("source,words", REFUSED, ids=[w for _, w in REFUSED])
def test_refused(host, source, words, flags):
    with pytest.raises(PsuError) as e:
        host.link(compile_c(source, *flags, name="p.c"))
    assert words in e.value.what


def test_what_the_program_ran_already_is_not_run_again(host):
    source = ("extern int plain; int run(int x) { return x + plain; } void touch(int); static int one;"
              "__attribute__((constructor)) static void early(void) { touch(100); __asm__ volatile(\"\"); }"
              "__attribute__((destructor)) static void late(void) { touch(++one); __asm__ volatile(\"\"); }")
    before = host.call("run", 0)
    linked = host.attach(compile_c(source, "-O1", "-fPIE", name="p.c"))
    assert before == 0 and host.call("run", 0) == 8
    assert {"run", "early", "late"} <= {r.name for r in linked.modules[0][0][0].replaced}


def test_all_problems_are_told_at_once(host):
    source = ("static int one(void) { return 1; } static void *pick(void) { return one; }"
              "static int chosen(void) __attribute__((ifunc(\"pick\"))); int run(int x) { return chosen(); }")
    one, two = compile_c(source, "-O1", name="one.c"), compile_c(source, "-O1", name="two.c")
    with pytest.raises(PsuError) as e:
        host.link(one, two)
    assert e.value.what.count("defines an indirect function") == 2 and "duplicate definition: run" in e.value.what
    assert str(two) in e.value.what


def test_a_library_whose_thread_local_offset_is_not_known(host):
    import dataclasses
    view = host.view
    host.view = dataclasses.replace(view, tls_offset=None)
    try:
        with pytest.raises(PsuError, match="existing of .* has no fixed offset from the thread pointer"):
            host.link(compile_c("extern __thread int existing; int run(int x) { return ++existing; }", "-O1", "-fPIC"))
    finally:
        host.view = view


def test_another_architecture(host, tmp_path):
    data = bytearray(compile_c(RUN, "-O1").read_bytes())
    data[18:20] = (183).to_bytes(2, "little")
    from psu_bin.attach import patch
    from psu_bin.elf import Binary
    with pytest.raises(PsuError, match="compiled for another architecture: ELF machine 183, .* has 62"):
        checks.run((patch.parse(Binary(bytes(data), "x.o")),), (host.view,), (0,))


def test_code_that_cannot_be_read(host):
    with pytest.raises(PsuError, match="cannot read the code in .text: no x86-64 instruction at"):
        source = 'asm(".globl run\\n.type run,@function\\nrun: .byte 6, 0x90\\n.size run,.-run\\n");'
        host.link(compile_c(source, "-O1"))


def test_position_dependent_code_for_a_position_independent_program(host):
    source = "extern int plain; int run(int x) { int *volatile p = &plain; return *p; }"
    with pytest.raises(PsuError) as e:
        host.link(compile_c(source, "-O1", "-fno-pic"))
    assert "run+0x" in e.value.what and "R_X86_64_32" in e.value.what and "-fPIE" in e.value.hint
