"""Newest-version rule inside patches: every call that a patch makes to an updatable function goes to its stub."""

import pytest
from linking_host import Host, compile_c, program

from psu_bin.errors import PsuError

PROGRAM = r"""
__attribute__((noinline)) static int leaf(int x) { return x + 1; }
__attribute__((noinline)) int twice(int x) { return leaf(x) * 2; }
int tail(int x) { return twice(x); }
int (*callback)(int);
int entry(int x) { return callback ? callback(x) : twice(x); }
int fact(int n) { return n <= 1 ? 1 : n * fact(n - 1); }
int loops(int n, int acc) { return n ? loops(n - 1, acc + n) : acc; }
"""

FIRST = r"""
extern int (*callback)(int);
__attribute__((noinline)) static int leaf(int x) { return x + 10; }
__attribute__((noinline)) static int private_helper(int x) { asm volatile(""); return x + 3; }
__attribute__((noinline)) static int handed_out(int x) { asm volatile(""); return private_helper(x) * 100; }
__attribute__((noinline)) int twice(int x) { return leaf(x) * 2; }
int tail(int x) { return twice(x); }
int entry(int x) { callback = handed_out; return handed_out(x) + leaf(x); }
int fact(int n) { return n <= 1 ? 1 : n * fact(n - 1); }
int loops(int n, int acc) { return n ? loops(n - 1, acc + n * 2) : acc; }
"""

SECOND = r"""
__attribute__((noinline)) static int leaf(int x) { return x + 50; }
__attribute__((noinline)) static int handed_out(int x) { asm volatile(""); return x * 1000; }
int (*pick(void))(int) { return handed_out; }
int fact(int n) { return n <= 1 ? 5 : n * fact(n - 1); }
int user(int x) { return leaf(x); }
"""

FLAGS = [("gcc", "-O0"), ("gcc", "-O2"), ("gcc", "-Os"), ("gcc", "-O2", "-ffunction-sections"), ("clang", "-O0"),
         ("clang", "-O2"), ("clang", "-Os")]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_calls_from_one_patch_reach_the_functions_of_the_next(flags):
    cc, *flags = flags
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        host.attach(compile_c(FIRST, "-fPIE", *flags, cc=cc, name="program.c"))
        assert [host.call(f, 5) for f in ("twice", "tail", "entry", "fact")] == [30, 30, 815, 120]
        assert host.call("loops", 10, 0) == 110
        first = host.view.known_functions
        assert list(first) == [("program.c", "handed_out")], "only the one whose address is taken gets a stub"
        linked = host.attach(compile_c(SECOND, "-fPIE", *flags, cc=cc, name="program.c"))
        assert [host.call(f, 5) for f in ("twice", "tail")] == [110, 110]
        assert host.call("entry", 5) == 5000 + 55, "the first patch's calls of both reach the second's"
        assert host.call("fact", 5) == 600
        assert host.view.known_functions == first, "the same stub, found by identity"
        assert [c.made_before for o in linked.modules[0][0] for c in o.canonical] == [True]
        callback = int.from_bytes(host.read(host.symbol("callback"), 8), "little")
        assert host.call(callback, 7) == 7000, "a pointer kept from the first patch calls the second's function"


def test_short_jumps_to_another_function_go_through_trampolines():
    # As the assembler makes them of tail calls inside a section: two bytes.
    source = r"""
    asm(".text\n.globl twice\n.type twice,@function\ntwice: .Ltwice: lea 100(%rdi),%eax\n ret\n.size twice,.-twice\n"
        ".globl tail\n.type tail,@function\ntail: add $1,%edi\n jmp .Ltwice\n.size tail,.-tail\n .skip 6,0x90\n"
        ".globl fact\n.type fact,@function\nfact: test %edi,%edi\n jne .Ltwice\n ret\n.size fact,.-fact\n");
    """
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        host.attach(compile_c(source, "-O1"))
        assert [host.call(f, 5) & 0xFFFFFFFF for f in ("twice", "tail", "fact")] == [105, 106, 105]
        host.attach(compile_c("int twice(int x) { return x * 7; }", "-O1"))
        assert [host.call(f, 5) & 0xFFFFFFFF for f in ("twice", "tail", "fact")] == [35, 42, 35]


def test_trampolines_lie_in_padding_and_calls_lead_past_them():
    # `twice` is reached by a two-byte jump, whose trampoline is right in front of `fact`.
    source = r"""
    asm(".text\n.globl twice\n.type twice,@function\ntwice: .Ltwice: lea 100(%rdi),%eax\n ret\n.size twice,.-twice\n"
        ".globl tail\n.type tail,@function\ntail: add $1,%edi\n jmp .Ltwice\n.size tail,.-tail\n .skip 6,0x90\n"
        ".globl fact\n.type fact,@function\nfact: lea 7(%rdi),%eax\n ret\n.size fact,.-fact\n .skip 150,0xcc\n"
        ".globl loops\n.type loops,@function\nloops: sub $8,%rsp\n call fact@PLT\n add $8,%rsp\n ret\n.size loops,.-loops\n");
    """
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        host.attach(compile_c(source, "-O1"))
        assert [host.call(f, 5) & 0xFFFFFFFF for f in ("twice", "tail", "fact", "loops")] == [105, 106, 12, 12]


# No room for a trampoline within reach of `tail`, but behind the jump itself.  FILL is 80 bytes that do nothing.
CROWDED = r"""
asm(".text\n.globl twice\n.type twice,@function\ntwice: .Ltwice: lea 100(%rdi),%eax\n FILL\n ret\n.size twice,.-twice\n"
    ".globl tail\n.type tail,@function\ntail: test %edi,%edi\n je 1f\n add $1,%edi\n jmp .Ltwice\n .Lpad: PADDING\n"
    "1: lea 3(%rdi),%eax\n MORE\n FILL\n FILL\n ret\n.size tail,.-tail\nBEHIND\n");
"""
NOPS = ".byte 0x66, 0x0f, 0x1f, 0x44, 0, 0"
JUMPS = r"lea .Ltable(%rip),%rdx\n movslq (%rdx,%rdi,4),%rcx\n add %rdx,%rcx\n jmp *%rcx"
TABLE = r".section .rodata\n.p2align 2\n.long 0\n.Ltable: .long 1b - .Ltable, .Lpad - .Ltable\n.text"


def crowded(padding=NOPS, more="", behind=""):
    text = CROWDED.replace("FILL", ".fill 20,4,0xC0894890")        # nop; mov %rax,%rax
    return compile_c(text.replace("PADDING", padding).replace("MORE", more).replace("BEHIND", behind), "-O1")


def test_a_short_jump_is_written_over_with_the_padding_behind_it():
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        host.attach(crowded())
        assert [host.call(f, n) & 0xFFFFFFFF for f, n in (("twice", 5), ("tail", 5), ("tail", 0))] == [105, 106, 3]
        host.attach(compile_c("int twice(int x) { return x * 7; }", "-O1"))
        assert [host.call(f, n) & 0xFFFFFFFF for f, n in (("twice", 5), ("tail", 5), ("tail", 0))] == [35, 42, 3]


@pytest.mark.parametrize("how", ["no padding", "too little", "a mark", "a branch", "a relocation", "a table", "differences", "a name"])
def test_a_short_jump_is_not_written_over_where_something_else_may_run(how):
    bad = {"no padding": dict(padding="nop; nop; mov %eax,%eax"), "too little": dict(padding="nop; nop"),
           "a mark": dict(padding="endbr64; nop; nop"), "a name": dict(behind=r".globl inside\n.set inside, .Lpad"),
           "differences": dict(more=JUMPS, behind=TABLE.replace("Ltable: .long 1b - .Ltable, .Lpad - .Ltable", "Ltable: .long 1b - .Lpad")),
           "a branch": dict(more="jb .Lpad"), "a relocation": dict(behind=".data; .quad .Lpad; .text"),
           "a table": dict(more=JUMPS, behind=TABLE)}[how]
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        with pytest.raises(PsuError, match="a short jump to twice cannot be rerouted"):
            host.link(crowded(**bad))


def test_a_later_object_of_the_same_transaction_is_called_through_a_stub():
    one = compile_c("int shared_new(int); int twice(int x) { return shared_new(x) + 1; }", "-O2", "-fPIE", name="one.c")
    two = compile_c("int shared_new(int x) { return x * 30; } int shared_data = 4; int tail(int x) { return x; }",
                    "-O2", "-fPIE", name="two.c")
    three = compile_c("extern int shared_data; int entry(int x) { return shared_data += x; }",
                      "-O2", "-fPIE", name="three.c")
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        linked = host.attach(one, two, three)
        assert [host.call(f, 2) for f in ("twice", "tail", "entry", "entry")] == [61, 2, 6, 8]
        assert list(host.view.known_functions) == [("", "shared_new")]
        assert [len(o.canonical) for o in linked.modules[0][0]] == [0, 1, 0]
        host.attach(compile_c("int shared_new(int x) { return x; }", "-O2", "-fPIE", name="four.c"))
        assert host.call("twice", 2) == 3
        host.attach(compile_c("int shared_new(int); extern int shared_data;"
                              "int fact(int x) { return shared_new(x) + shared_data; }", "-O2", "-fPIE", name="five.c"))
        assert host.call("fact", 2) == 10


def test_objects_of_different_groups_may_define_the_same_names():
    """A revert brings back functions of several patches at once."""
    from psu_bin.attach import linker, patch
    one, two = (compile_c("int shared_new(int x) { return x * %d; } int twice(int x) { return shared_new(x); }"
                          "int tail(int x) { return shared_new(x) + %d; }" % (n, n), "-O1", "-fno-inline", name="p.c")
                for n in (3, 5))
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        objects = [patch.load(o) for o in (one, two)]
        with pytest.raises(PsuError, match="duplicate definition: shared_new"):
            linker.plan(objects, [host.view])
        linked = host.attach(one, two, groups=(1, 2))
        bodies = [{x.name: x.body for x in o.replaced} for o in linked.modules[0][0]]
        assert [host.call(b[f], 2) for b in bodies for f in ("twice", "tail")] == [6, 9, 10, 15]


def test_a_weak_function_of_two_objects_is_replaced_once():
    one, two = (compile_c("__attribute__((weak)) int twice(int x) { return x * %d; }"
                          "int %s(int x) { return twice(x); }" % (n, f), "-O1", "-fPIC", name="p.c")
                for n, f in ((3, "tail"), (5, "entry")))
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        linked = host.attach(one, two)
        assert sorted(x.name for o in linked.modules[0][0] for x in o.replaced) == ["entry", "tail", "twice"]
        assert [host.call(f, 2) for f in ("twice", "tail", "entry")] == [6, 6, 6]
