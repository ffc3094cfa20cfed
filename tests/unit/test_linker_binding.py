"""Which function or variable of the program a symbol of a patch is."""

import re
import shutil
import subprocess

import pytest
from linking_host import LOOP, Host, compile_c, program

from psu_bin.attach import owners
from psu_bin.errors import PsuError

A = r"""
static int state = 1;
__attribute__((noinline)) static int step(int x) { static int calls; return x + state + ++calls; }
int a_run(int x) { state++; return step(x); }
int a_state(void) { return state; }
"""
B = r"""
static int state = 1000;
static int only_b = 5;
__attribute__((noinline)) static int step(int x) { static int calls = 100; return x - state - ++calls; }
__attribute__((noinline)) static int only_b_function(int x) { return x + only_b; }
int b_run(int x) { state++; only_b++; return step(x); }
int b_state(void) { return state * 10 + only_b; }
int b_use(int x) { return only_b_function(x); }
"""


@pytest.fixture
def host():
    with Host(program(A, "-O1", "-fPIE", name="a.c", more=(("b.c", B),))) as running:
        yield running


PATCH = r"""
static int state = 0;
__attribute__((noinline)) static int step(int x) { static int calls; state += 7; return x * 1000 + ++calls; }
int %s_run(int x) { return step(x); }
"""


def test_the_source_file_decides_between_two_statics_of_one_name(host):
    host.attach(compile_c(PATCH % "b", "-O1", "-fPIE", name="b.c"))
    assert host.call("b_run", 1) == 1101, "step's own counter went on from 100"
    assert (host.call("b_state"), host.call("a_state")) == (10075, 1)
    assert host.call("a_run", 5) == 8, "the other file's step is the old one"


def test_a_static_of_a_renamed_file_matches_when_it_is_the_only_one(host):
    host.attach(compile_c("static int only_b = 1; __attribute__((noinline)) static int only_b_function(int x)"
                          "{ return x * only_b++; } int b_use(int x) { return only_b_function(x) + 1; }",
                          "-O1", "-fPIE", name="my_patch.c"))
    assert [host.call("b_use", 3), host.call("b_use", 3)] == [16, 19]
    assert host.call("b_state") == 10007


def test_a_static_of_a_renamed_file_that_is_in_two_files_is_refused(host):
    with pytest.raises(PsuError, match=r"step is static in several files of the program: a\.c, b\.c"):
        host.link(compile_c(PATCH % "b", "-O1", "-fPIE", name="my_patch.c"))


def test_a_variable_of_a_renamed_file_that_is_in_two_files_is_refused(host):
    source = "static int state; int b_run(int x) { return ++state; }"
    with pytest.raises(PsuError, match=r"b_run\+0x[0-9a-f]+: state is static in several files of the program: a\.c, b"):
        host.link(compile_c(source, "-O1", "-fPIE", name="my_patch.c"))


def test_a_static_that_its_file_does_not_have_is_new(host):
    host.attach(compile_c("static int only_b = 77; int a_run(int x) { return ++only_b; }", "-O1", "-fPIE", name="a.c"))
    assert [host.call("a_run", 0), host.call("a_run", 0)] == [78, 79]
    assert host.call("b_state") == 10005, "the static of the other file is not touched"
    assert list(host.view.known_variables) == [("a.c", "only_b")]


# Both variables are g's only: the function of one of them is inlined.
TWO = ("static inline __attribute__((always_inline)) int f(void) { static int count; return ++count; }"
       "int %s(int x) { static int count; count += 10; return f() * 1000 + count; }")
ONE = "int %s(int x) { static int count; return count += 10; }"


def test_two_new_static_locals_of_one_name_and_one_function_are_never_taken_for_one_another(host):
    host.attach(compile_c(TWO % "a_run", "-O1", "-fPIE", name="a.c"))
    assert [host.call("a_run", 0), host.call("a_run", 0)] == [1010, 2020]
    for later in (TWO, ONE):
        with pytest.raises(PsuError, match=r"static local count\.\d is one of several of that name"):
            host.link(compile_c(later % "a_run", "-O1", "-fPIE", name="a.c"))
    assert host.call("a_run", 0) == 3030


def test_a_second_static_local_of_the_name_of_an_earlier_patchs_is_refused(host):
    host.attach(compile_c(ONE % "a_run", "-O1", "-fPIE", name="a.c"))
    assert [host.call("a_run", 0), host.call("a_run", 0)] == [10, 20]
    with pytest.raises(PsuError, match=r"static local count\.\d is one of several of that name"):
        host.link(compile_c(TWO % "a_run", "-O1", "-fPIE", name="a.c"))
    # Of another function as well: by that they are told apart.
    apart = TWO.replace("inline __attribute__((always_inline))", "__attribute__((noinline))")
    host.attach(compile_c(apart % "a_run", "-O1", "-fPIE", name="a.c"))
    assert [host.call("a_run", 0), host.call("a_run", 0)] == [1030, 2040]


def test_new_variables_are_found_again_by_the_next_patch(host):
    source = ("static int mine = 5; int shared_new = 50; int tentative[4];"
              "int a_run(int x) { static int counts = %d; counts += 2; tentative[2]++;"
              "return ++mine * 1000000 + ++shared_new * 10000 + counts * 100 + tentative[2]; }")
    host.attach(compile_c(source % 10, "-O1", "-fPIE", "-fcommon", name="a.c"))
    assert host.call("a_run", 0) == 6511201
    first = host.view.known_variables
    host.attach(compile_c("static int unrelated;" + source % 90 + "int a_state(void) { return ++unrelated; }",
                          "-O2", "-fPIE", "-fcommon", name="a.c"))
    assert host.call("a_run", 0) == 7521402, "all of them went on from where they were"
    assert {k: v for k, v in host.view.known_variables.items() if k in first} == first
    assert host.call("a_state") == 1


def test_sizes_of_shared_variables_must_agree(host):
    for source, words in (
            ("static long state; int b_run(int x) { return ++state; }", "size of state differs: 8 bytes in the patch"),
            ("static int state[2]; int b_run(int x) { return ++state[x]; }", "size of state differs: 8 bytes in")):
        with pytest.raises(PsuError, match=words):
            host.link(compile_c(source, "-O1", "-fPIE", name="b.c"))
    host.attach(compile_c("int fresh = 3; int b_run(int x) { return ++fresh; }", "-O1", "-fPIE", name="b.c"))
    with pytest.raises(PsuError, match="size of fresh differs: 8 bytes in the patch, 4 in the earlier patch"):
        host.link(compile_c("long fresh = 3; int b_run(int x) { return ++fresh; }", "-O1", "-fPIE", name="b.c"))


def test_every_unresolved_symbol_is_listed(host):
    source = ("int missing_one(int); extern int missing_two; __attribute__((weak)) int maybe(int);"
              "int a_run(int x) { return missing_one(x) + missing_two + (maybe ? maybe(x) : 3); }")
    with pytest.raises(PsuError, match="unresolved symbols: missing_one, missing_two"):
        host.link(compile_c(source, "-O1", "-fPIE", name="a.c"))


@pytest.mark.parametrize("flags", [("-fPIE",), ("-fPIC",), ("-fPIC", "-fno-plt")], ids=" ".join)
def test_an_unresolved_weak_function_is_null(host, flags):
    host.attach(compile_c("__attribute__((weak)) int maybe(int); int a_run(int x) { return maybe ? maybe(x) : 3; }",
                          "-O1", *flags, name="a.c"))
    assert host.call("a_run", 1) == 3


def test_a_patch_without_a_function_of_the_program_is_refused(host):
    with pytest.raises(PsuError, match="defines no function that .* has: nothing_known") as e:
        host.link(compile_c("int nothing_known(void) { return 1; }", "-O1"))
    assert "inlined" in e.value.hint
    with pytest.raises(PsuError, match="defines step, which .* has as a static of a.c, b.c"):
        host.link(compile_c("int step(int x) { return 1; }", "-O1", name="other.c"))
    with pytest.raises(PsuError, match="defines a_run as static, .* has it as a global"):
        host.link(compile_c("__attribute__((used)) static int a_run(int x) { return 1; }", "-O1", name="a.c"))


def test_a_function_that_is_not_updatable_is_refused():
    with Host(program(A, "-O1", "-fPIE", name="a.c"), not_updatable={"a_run"}) as host:
        with pytest.raises(PsuError, match="a_run is not updatable in ") as e:
            host.link(compile_c("int a_run(int x) { return 1; }", "-O1", name="a.c"))
        assert "psu-bin analyze" in e.value.hint


def test_two_definitions_in_one_transaction_are_refused(host):
    one = compile_c("int a_run(int x) { return 1; } int twin = 1;", "-O1", name="one.c")
    two = compile_c("int a_run(int x) { return 2; } int twin = 1; int b_run(int x) { return 2; }", "-O1", name="two.c")
    with pytest.raises(PsuError, match="duplicate definition: a_run is also in .*one.o; duplicate definition: twin"):
        host.link(one, two)


def test_static_locals_of_one_name_are_told_apart_by_their_functions():
    source = r"""
    int first(int x) { static int n = 10; return n += x; }
    int second(int x) { static int n = 20; return n += x; }
    int third(int x) { { static int n = 30; n += x; } { static int n = 40; return n += x; } }
    """
    with Host(program(source, "-O1", "-fPIE", name="s.c")) as host:
        assert [host.call(f, 1) for f in ("first", "second", "third")] == [11, 21, 41]
        # In another order, so that the compiler numbers them otherwise.
        host.attach(compile_c("int second(int x) { static int n = 1; return (n += x) * 100; }"
                              "int first(int x) { static int n = 2; return (n += x) * 10; }",
                              "-O1", "-fPIE", name="s.c"))
        assert [host.call(f, 1) for f in ("first", "second")] == [120, 2200]
        with pytest.raises(PsuError, match="static local n is in third more than once"):
            host.link(compile_c("int third(int x) { static int n = 1; return (n += x) * 100; }",
                                "-O1", "-fPIE", name="s.c"))


def test_a_clang_patch_finds_the_static_locals_of_a_gcc_program():
    source = ("int first(int x) { static int n = 10; return n += x; }"
              "int second(int x) { static int n = 20; return n += x; }")
    for there, here in (("gcc", "clang"), ("clang", "gcc")):
        with Host(program(source, "-O1", "-fPIE", name="s.c", cc=there)) as host:
            host.attach(compile_c(source.replace("n += x", "n += 2 * x"), "-O2", "-fPIE", name="s.c", cc=here))
            assert [host.call(f, 1) for f in ("first", "second")] == [12, 22]


@pytest.mark.parametrize("cc,flags,renamed", [("gcc", ("-flto",), r"state\.lto_priv\.\d+"),
                                              ("clang", ("-flto", "-fuse-ld=lld"), r"state\.\d+")])
def test_statics_of_a_program_linked_with_lto(cc, flags, renamed):
    with Host(program(A, "-O1", "-fPIE", *flags, name="a.c", cc=cc, more=(("b.c", B),))) as host:
        names = {s.name for s in host.view.descriptor.symbols}
        assert any(re.fullmatch(renamed, n) for n in names), "LTO renamed something"
        host.attach(compile_c("static int only_b = 1; int b_use(int x) { return x * only_b++; }"
                              "int b_run(int x) { return 5; }", "-O1", "-fPIE", name="b.c"))
        assert [host.call("b_use", 3), host.call("b_use", 3), host.call("b_run", 1)] == [15, 18, 5]
        with pytest.raises(PsuError, match="state is static in several files .* LTO left no names of files: state"):
            host.link(compile_c(PATCH.replace("step", "my_step") % "b", "-O1", "-fPIE", name="b.c"))


def test_a_function_that_only_lives_on_in_clones_is_named():
    source = r"""
    __attribute__((noinline)) static int work(int x, int unused) { return x * 3; }
    int outer(int x) { return work(x, 1) + work(x + 1, 2); }
    """
    with Host(program(source, "-O2", "-fPIE", name="c.c")) as host:
        assert any(s.name.startswith("work.") for s in host.view.descriptor.symbols), "GCC made a clone"
        with pytest.raises(PsuError, match=r"work exists in .* only as work\.(isra|constprop)\.0"):
            host.link(compile_c("__attribute__((used)) static int work(int x, int unused) { return 1; }",
                                "-O0", name="c.c"))


def test_new_statics_of_two_files_that_the_module_has_are_kept_apart(host):
    source = "static int fresh = %d; int %s_run(int x) { return fresh += x; }"
    host.attach(compile_c(source % (10, "a"), "-O1", "-fPIE", name="a.c"))
    host.attach(compile_c(source % (20, "b"), "-O1", "-fPIE", name="b.c"))
    assert [host.call("a_run", 1), host.call("b_run", 1), host.call("a_run", 1)] == [11, 21, 12]


def test_of_two_source_files_of_one_name_the_one_with_the_same_statics_is_meant():
    one = "static int state = 1, first_only = 2; int one(int x) { return state += first_only += x; }"
    two = "static int state = 100, second_only = 200; int two(int x) { return state += second_only += x; }"
    with Host(program(one, "-O1", "-fPIE", name="one/util.c", more=(("two/util.c", two),))) as host:
        host.attach(compile_c(two.replace("+= x", "+= 2 * x"), "-O1", "-fPIE", name="util.c"))
        assert [host.call("two", 1), host.call("one", 1)] == [302, 4]
        with pytest.raises(PsuError, match="state is static in several files of the program: util.c"):
            host.link(compile_c("static int state; int one(int x) { return ++state; }", "-O1", "-fPIE", name="util.c"))


def test_a_new_static_of_a_renamed_file_is_not_that_of_a_file_the_module_has(host):
    source = "static int fresh = %d; int a_run(int x) { return fresh += x; }"
    host.attach(compile_c(source % 10, "-O1", "-fPIE", name="my_patch.c"))
    assert host.call("a_run", 1) == 11
    host.attach(compile_c(source % 20, "-O1", "-fPIE", name="a.c"))
    assert host.call("a_run", 1) == 21
    host.attach(compile_c(source % 30, "-O1", "-fPIE", name="my_next_patch.c"))
    assert host.call("a_run", 1) == 12, "the only one that another file unknown to the module brought along"


INLINED = r"""
static int f(int x) { static int count = 100; return count += x; }
int g(int x) { return f(x) * 2; }
"""
# f is gone, and with it its count; or it is inlined into a function that has a count of its own.
GONE = "int g(int x) { static int count = 5; return count += x; }"
BOTH = r"""
static int f(int x) { static int count = 100; return count += x; }
int g(int x) { static int count = 5; count += x; return f(x) * 1000 + count; }
"""


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_a_static_local_of_a_function_that_was_inlined_is_not_that_of_its_caller(cc):
    flags = ("-O2", "-fPIE", "-g")
    with Host(program(INLINED, *flags, name="s.c", cc=cc)) as host:
        assert host.call("g", 1) == 202
        host.attach(compile_c(GONE, *flags, name="s.c", cc=cc))
        assert [host.call("g", 1), host.call("g", 1)] == [6, 7], "a variable of its own"
    with Host(program(INLINED, *flags, name="s.c", cc=cc)) as host:
        assert host.call("g", 1) == 202
        host.attach(compile_c(BOTH, *flags, name="s.c", cc=cc))
        assert [host.call("g", 1), host.call("g", 1)] == [102006, 103007]


@pytest.mark.parametrize("flags", [("-g",), ("-gdwarf-4",), ("-g", "-flto")], ids=" ".join)
def test_a_thread_local_static_is_that_of_the_function_that_declares_it(flags):
    """Nothing but the debug information tells: both functions are inlined into both callers."""
    source = """
    static inline int f(int x) { static __thread int kept = 100; return kept += x; }
    static inline int g(int x) { static __thread int kept = 1000; return kept += x; }
    int both(int x) { return f(x) * 10000 + g(x); }
    int turned(int x) { return g(x) * 10000 + f(x); }"""
    changed = source.replace("both(int x) {", "both(int x) { x *= 2;").replace("turned(int x) {", "turned(int x) { x *= 3;")
    with Host(program(source, "-O2", "-fPIE", *flags, name="s.c")) as host:
        assert [host.call("both", 1), host.call("turned", 1)] == [1011001, 10020102]
        flags = tuple(f for f in flags if f != "-flto")
        host.attach(compile_c(changed, "-O2", "-fPIE", *flags, name="s.c"))
        assert [host.call("both", 1), host.call("turned", 1)] == [1041004, 10070107]


def test_a_program_that_is_optimized_as_a_whole_in_part(tmp_path):
    """A candidate's file name says nothing there: with LTO it has none."""
    flags = ("-O2", "-fPIE", "-g")
    other = "int third(int x) { static int count = 7; return count += x; }"
    objects = [compile_c(LOOP, "-O1", "-w", "-fPIE", name="host_loop.c"), compile_c(INLINED, *flags, "-flto", name="s.c"),
               compile_c(other, *flags, name="t.c")]
    subprocess.run(["gcc", *objects, "-o", tmp_path / "host", "-rdynamic", "-ldl", "-pthread", "-flto"], check=True)
    with Host(tmp_path / "host") as host:
        assert host.call("g", 1) == 202
        host.attach(compile_c(GONE, *flags, name="s.c"))
        assert [host.call("g", 1), host.call("g", 1)] == [6, 7]


def test_debug_information_of_other_files_is_not_read(monkeypatch):
    """As much as may be read is soon used up in a program of many files, when each static local is looked for in all."""
    monkeypatch.setattr(owners, "MOST", 400)
    flags = ("-O2", "-fPIE", "-g")
    large = "".join(f"int many_{n}(int x) {{ static int count = {n}; return count += x; }}\n" for n in range(200))
    with Host(program(INLINED, *flags, name="s.c", more=(("large.c", large),))) as host:
        assert host.call("g", 1) == 202
        host.attach(compile_c(BOTH, *flags, name="s.c"))
        assert [host.call("g", 1), host.call("g", 1)] == [102006, 103007]


@pytest.mark.parametrize("flags", [("-gdwarf-4",), ("-gdwarf-5", "-gz=zlib"), ("-gdwarf-3",), ("-g", "-flto")], ids=" ".join)
def test_debug_information_of_any_form_tells_where_a_static_local_is_declared(flags):
    with Host(program(INLINED, "-O2", "-fPIE", *flags, name="s.c")) as host:
        host.attach(compile_c(GONE, "-O2", "-fPIE", *(f for f in flags if f != "-flto"), name="s.c"))
        assert host.call("g", 1) == 6


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_static_locals_of_one_name_in_one_function_are_taken_in_their_order(cc):
    """As macros make them.  Where one came or went, or has another size, nobody knows."""
    if not shutil.which(cc):
        pytest.skip(f"{cc} is not installed")
    source = """
    #define COUNTED(x, start) ({ static int n = start; n += x; })
    int twice(int x) { int r = 0; if (x & 1) r = COUNTED(x, 100); else r = COUNTED(x, 1000); return r; }
    int alone(int x) { return COUNTED(x, 7); }"""
    flags = ("-O2", "-fPIE", "-g")
    with Host(program(source, *flags, cc=cc, name="s.c")) as host:
        assert [host.call("twice", 1), host.call("twice", 2), host.call("alone", 1)] == [101, 1002, 8]
        linked = host.attach(compile_c(source.replace("int r = 0;", "int r = 5;"), *flags, cc=cc, name="s.c"))
        assert [host.call("twice", 3), host.call("twice", 4), host.call("alone", 1)] == [104, 1006, 9]
        # clang names the second one `twice.n.1`.
        assert cc == "clang" or any("twice has 2 static variables called n: taken in the order" in w for w in linked.warnings)
        more = source.replace("return r;", "r += COUNTED(x, 5); return r;")
        other = source.replace("else r = COUNTED(x, 1000);", "else { static long n = 3; r = n += x; }")
        for changed in (more, other) if cc == "gcc" else ():
            with pytest.raises(PsuError, match="static local n is in twice more than once"):
                host.link(compile_c(changed, *flags, cc=cc, name="s.c"))
