"""Functions that go on with the old code of a replaced one are named: inlined copies, and copies that the compiler made."""

import subprocess

import pytest
from conftest import psu_bin

MAIN = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
volatile int sink, on = 1;
static inline int helper(int x) { return x * 3 + sink; }
static int only(int x) { return x ^ 77; }
int split(int *p) {
    if (!p) return 0;
    for (int i = 0; i < 10; i++) { printf("split %d\n", *p); sink += i * *p; puts("a"); puts("b"); puts("c"); }
    return sink;
}
__attribute__((noinline)) static int special(int x, int *unused) { return x * sink + 9; }
__attribute__((noinline)) int one(int x) { return helper(x) + only(x) + split(x > 5 ? (int *)&sink : 0); }
__attribute__((noinline)) int two(int x) { return helper(x + 1) * 2 + split(x > 7 ? (int *)&sink : 0) + special(x, 0); }
int never(int x) { return x - 3; }
__attribute__((noinline)) int plain(int x) { return x + sink; }
static void *run(void *a) { while (on) { plain(one(1) + two(2)); usleep(1000); } return a; }
int main(void) {
    pthread_t t;
    pthread_create(&t, 0, run, 0);
    puts("ready");
    fflush(stdout);
    getchar();
    on = 0;
    pthread_join(t, 0);
    return 0;
}
""" + "".join(f"int never{i}(int x) {{ return x - {i}; }}\n" for i in range(10))


@pytest.fixture
def process(lab, request):
    """A running program made of MAIN by the compiler and flags of the test."""
    cc, *flags = request.param.split()
    (lab.folder / "main.c").write_text(MAIN)
    subprocess.run([cc, "-O2", "-pthread", *flags, "main.c", "-o", "main"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"])
    running.expect("^ready$")
    yield lambda text: attached(lab, cc, running.pid, text)
    assert running.alive()


def attached(lab, cc, pid, text):
    """The warnings of an attach, which are also what is printed: without the program's path."""
    folder = lab.folder / "patch"
    folder.mkdir(exist_ok=True)
    (folder / "main.c").write_text("extern volatile int sink;\n" + text)
    subprocess.run([cc, "-O2", "-w", "-c", "main.c"], cwd=folder, check=True)
    ran = psu_bin("attach", pid, folder / "main.o", "--json")
    told = ran.json["warnings"]
    assert ran.err == "".join(f"psu-bin: warning: {w}\n" for w in told)
    dry = psu_bin("attach", pid, folder / "main.o", "--dry-run", "--json")
    assert dry.json["warnings"] == told
    return [w.replace(f" in {lab.folder}/main.psu", "").replace(f"{lab.folder}/main.psu", "it") for w in told]


BEHIND = "and go on with the old version unless they are in the patch, too"
BEHIND_ONE = "and goes on with the old version unless it is in the patch, too"


@pytest.mark.parametrize("process", ["gcc -g", "clang -g"], indirect=True)
def test_inlined_copies_outside_of_the_patch_are_named(process):
    assert process("int plain(int x) { return x; }") == []
    assert process("__attribute__((noinline)) static int helper(int x) { return x - sink; } int one(int x) { return helper(x); }"
                   ) == [f"helper: two has it inlined, {BEHIND_ONE}"]
    assert process("__attribute__((noinline)) static int only(int x) { return x - sink; } int one(int x) { return only(x); }") == []
    assert process("static int helper(int x) { return x + 5; } __attribute__((noinline)) int one(int x) { return helper(x); }"
                   "int two(int x) { return helper(x); }") == []


@pytest.mark.parametrize("process", ["gcc", "gcc -g"], indirect=True)
def test_callers_of_split_and_specialised_copies_are_named(process, request):
    debug = "-g" in request.node.name
    how, how_one = ("have it inlined or call", "has it inlined or calls") if debug else ("call", "calls")
    split, one, two = ("int split(int *p) { return 5; }", "int one(int x) { return split(&x); }",
                       "int two(int x) { return split(&x) + 1; }")
    assert process(split) == [f"split: one, two {how} split.part.0, {BEHIND}"]
    assert process(split + one) == [f"split: two {how_one} split.part.0, {BEHIND_ONE}"]
    assert process(split + one + two) == [], "all callers are in the patch"
    assert process(split.replace("return 5", "if (!p) return 2; for (int i = 0; i < 9; i++) sink += i, __builtin_puts(\"x\"), "
                                 "__builtin_puts(\"y\"), __builtin_puts(\"z\"); return sink") + one.replace("&x", "0")
                   ) == [f"split: two {how_one} split.part.0, {BEHIND_ONE}"], "once, though the patch has a split.part.0, too"
    assert process("__attribute__((noinline)) static int special(int x, int *unused) { return unused ? 1 : sink; }"
                   "int one(int x) { return special(x, &x); }") == [f"special: two calls special.constprop.0, {BEHIND_ONE}"]


@pytest.mark.parametrize("process", ["gcc"], indirect=True)
def test_without_debug_information_it_is_known_that_nothing_calls_it(process):
    assert process("int never(int x) { return 1; }") == [
        "never: nothing calls it: inlined into all its callers, which must be in the patch, too, or unused"]
    assert process("".join(f"int never{i}(int x) {{ return {i}; }}" for i in range(10)) + "int plain(int x) { return x; }") == [
        "never0, never1, never2, never3, never4, never5, never6, never7 and 2 more: nothing calls them: inlined into all their "
        "callers, which must be in the patch, too, or unused"], "one for all"


def test_other_names_of_the_same_code_are_told(lab):
    program = lab.folder / "main.c"
    program.write_text("""
        #include <stdio.h>
        int real(int x) { return x; }
        int other(int x) __attribute__((alias("real")));
        int third(int x) __attribute__((alias("real")));
        static int apart(int x) { return x * 2; }
        static int (*volatile f)(int) = apart;
        int main(void) { puts("ready"); fflush(stdout); return getchar() + f(real(0) + other(0)); }""")
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "main.c", "-o", "main"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"], env={"PSU_AGENT": "start"})
    running.expect("^ready$")
    process = running.pid
    real = "int real(int x) { return 1; }"
    assert attached(lab, "gcc", process, real) == ["real: other, third are the same code, an alias or folded into one: the "
                                                   "new version is theirs, too"]
    both = real + 'int other(int x) __attribute__((alias("real"))); int third(int x) __attribute__((alias("real")));'
    assert attached(lab, "gcc", process, both) == []
    assert attached(lab, "gcc", process, "__attribute__((used)) static int apart(int x) { return 3; }") == []


def test_one_body_does_not_silently_stand_for_two_functions(lab):
    """Only one of the two would go on with the new version."""
    program = lab.folder / "main.c"
    program.write_text("""
        #include <stdio.h>
        __attribute__((noipa)) int one(int x) { return x + 10; }
        __attribute__((noipa)) int two(int x) { return x + 20; }
        int main(void) { puts("ready"); fflush(stdout); while (getchar() != EOF) { printf("%d\\n", one(1) + two(1)); fflush(stdout); }
                         return 0; }""")
    subprocess.run(["gcc", "-O1", "-pthread", "main.c", "-o", "main"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"], env={"PSU_AGENT": "start"})
    running.expect("^ready$")
    patch = lab.folder / "patch.c"
    patch.write_text('int one(int x) { return x; } int two(int x) __attribute__((alias("one"))); int more(int) '
                     '__attribute__((alias("one")));')
    subprocess.run(["gcc", "-O1", "-c", "patch.c"], cwd=lab.folder, check=True)
    refused = psu_bin("attach", running.pid, lab.folder / "patch.o", check=False)
    assert refused.status == 1 and refused.err.count("\n") == 1 and not refused.out
    assert "one and two are one function, an alias or folded into one, and two in" in refused.err
    assert psu_bin("status", running.pid, "--json").json["patches"] == []
