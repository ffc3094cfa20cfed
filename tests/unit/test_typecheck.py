"""Types that a patch and the program share: what code depends on is compared, and nothing else."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest

from psu_bin.attach import typecheck
from psu_bin.elf import Binary

PROGRAM = """
#include <stdio.h>
#define PACKED __attribute__((packed))
enum colour { RED, GREEN = 5, BLUE = -3 };
typedef enum { OFF, ON } lamp;
struct point { int x, y; };
typedef struct { char tag; long value; } pair;
struct conn {
    struct point at;
    unsigned open : 1, mode : 3;
    enum colour colour;
    union { long number; char *text; } u;
    union both { long first; double second; } both;
    struct { short a, b; } in;
    pair pairs[4];
    void (*done)(struct conn *, int);
    struct conn *next;
    const char name[12];
    long double wide;
    _Bool flag;
    char tail[];
};
struct conn *conns;
int counters[8];
static struct { int a; long b; } state;
static pair kept;
static lamp lit;
static const char *const words[] = {"one", "two"};
static const struct { int a; long b; } table[2] = {{1, 2}};
long twice(struct conn *c, int by, double f) { return by * c->at.x + (long)f + kept.value; }
void nothing(int x) { printf("%d", x + state.a + lit + words[x][0] + (int)table[x].b); }
struct point moved(struct point p) { p.x += counters[1]; return p; }
int listed(const char *format, ...) { return format[0]; }
int main(void) { nothing(1); return listed("x", (int)twice(conns, 1, 2.0), moved((struct point){1, 2}).x); }
"""
COMPILERS = ["gcc", "gcc -gdwarf-4", "gcc -gdwarf-2 -gno-strict-dwarf", "gcc -O0", "gcc -flto -ffat-lto-objects", "gcc -gz", "clang",
             "clang -gdwarf-4", "aarch64-linux-gnu-gcc"]


def found(folder, change=lambda text: text, cc="gcc", program_cc=None, name="main.c", replaced=None, program=PROGRAM):
    """What is different in a patch that is the program's source after `change`."""
    for c in (cc, program_cc or cc):
        if not shutil.which(c.split()[0]):
            pytest.skip(f"{c.split()[0]} is not installed")
    (folder / "main.c").write_text(program)
    (folder / "new").mkdir(exist_ok=True)
    (folder / "new" / name).write_text(change(program))
    def flags(c):
        compiler, *more = c.replace("WITHOUT", "").split()
        return [compiler, *(["-g"] if "WITHOUT" not in c else []), "-O2", *more]

    subprocess.run([*flags(program_cc or cc), "-o", "program", "main.c"], cwd=folder, check=True)
    subprocess.run([*flags(cc), "-c", "-o", "../patch.o", name], cwd=folder / "new", check=True)
    patch = SimpleNamespace(source=Binary.read(folder / "patch.o"), path="patch.o")
    view = SimpleNamespace(file=lambda: Binary.read(folder / "program"), path="program")
    names = ("twice", "nothing", "moved", "listed", "main") if replaced is None else replaced
    functions = [SimpleNamespace(new=False, function=SimpleNamespace(name=n)) for n in names]
    return [p.what.removesuffix(", unlike in program") for p in typecheck.problems([(patch, view, functions)])]


def replace(*pairs):
    def change(text):
        for old, new in pairs:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text
    return change


@pytest.mark.parametrize("cc", COMPILERS)
def test_the_same_source_has_the_same_types(tmp_path, cc):
    assert found(tmp_path, cc=cc) == []


@pytest.mark.parametrize("cc, program_cc", [("clang", "clang"), ("clang -O0", "clang"), ("gcc", "clang"), ("clang", "gcc")])
def test_a_variadic_function_that_is_inlined(tmp_path, cc, program_cc):
    program = PROGRAM.replace("int main(void) {", "int n; void debug(const char *f, ...) { if (f) n++; } int main(void) { debug(0, 1);")
    change = replace(("if (f) n++;", "__builtin_va_list l; __builtin_va_start(l, f); n += __builtin_va_arg(l, int);"))
    for changed in (change, lambda text: text):
        assert found(tmp_path, changed, cc, program_cc, program=program, replaced=("debug",)) == []


def test_types_in_a_section_of_their_own_are_not_known(tmp_path):
    for cc, program_cc in (("gcc -fdebug-types-section", "gcc"), ("gcc", "gcc -fdebug-types-section")):
        assert found(tmp_path, cc=cc, program_cc=program_cc) == []


def test_a_const_table_of_another_file_has_its_length(tmp_path):
    program = PROGRAM.replace("struct conn *conns;", "struct conn *conns; extern const int tab[2]; const int tab[2] = {1, 2};")
    other = replace(("extern const int tab[2]; const int tab[2] = {1, 2};", "extern const int tab[8];"), ("+ lit +", "+ lit + tab[7] +"))
    assert found(tmp_path, other, program=program, name="patch.c") != []


@pytest.mark.parametrize("cc, program_cc", [("gcc", "clang"), ("clang", "gcc"), ("gcc", "gcc")])
def test_a_function_without_a_prototype(tmp_path, cc, program_cc):
    program = PROGRAM.replace("int main(void) {", "int old() { return conns->in.a; } int main(void) { old();")
    assert found(tmp_path, replace(("int old()", "int old(void)")), f"{cc} -w", f"{program_cc} -w", program=program, replaced=("old",)) == []


@pytest.mark.parametrize("cc, less", [("gcc", "-g1"), ("gcc", "-g0"), ("clang", "-g1"), ("clang", "-g0"), ("clang", "-gline-tables-only")])
def test_less_debug_information_is_no_difference(tmp_path, cc, less):
    assert found(tmp_path, cc=f"{cc} -g", program_cc=f"{cc} WITHOUT {less}") == []
    assert found(tmp_path, cc=f"{cc} WITHOUT {less}", program_cc=cc) == []


@pytest.mark.parametrize("cc, program_cc", [("clang", "gcc"), ("gcc", "clang"), ("gcc -gdwarf-2", "gcc"), ("gcc", "gcc -gdwarf-3"),
                                            ("gcc -gdwarf-2", "clang -gdwarf-4"), ("gcc -O0", "gcc -flto")])
def test_compilers_and_versions_say_it_in_their_own_ways(tmp_path, cc, program_cc):
    assert found(tmp_path, cc=cc, program_cc=program_cc) == []
    assert found(tmp_path, replace(("mode : 3", "mode : 4")), cc, program_cc) == ["struct conn has member mode as 4 bits, not 3 bits"]


CHANGES = [
    (("struct conn *next;", "struct conn *next; int more;"), "struct conn has member name at byte 124, not byte 120"),
    (("_Bool flag;", "_Bool flag; char spare;"), "struct conn has member tail at byte 162, not byte 161"),
    (("const char name[12];", "const char name[11]; char end;"), "struct conn has member name as an array of 11 of an integer of 1 bytes, "
                                                                 "not an array of 12 of an integer of 1 bytes"),
    (("_Bool flag;\n", "\n"), "struct conn has member tail at byte 160, not byte 161"),
    (("int x, y;", "int y, x;"), "struct point has member y at byte 0, not byte 4"),
    (("int x, y;", "int x; float y;"), "struct point has member y as a float of 4 bytes, not an integer of 4 bytes"),
    (("int x, y;", "int x, y, z;"), "struct point has another member, z, at byte 8"),
    (("mode : 3", "mode : 3, late : 2"), "struct conn has another member, late, at byte 8, bit 4"),
    (("char tag; long value;", "int tag; long value;"), "struct pair"),
    (("GREEN = 5", "GREEN"), "enum colour has value GREEN = 1, not 5"),
    (("BLUE = -3", "BLUE = -4"), "enum colour has value BLUE = -4, not -3"),
    (("OFF, ON", "ON, OFF"), "type lamp has value ON = 0, not 1"),
    (("long first; double second;", "long first[2]; double second;"), "union both has"),
    (("counters[8]", "counters[9]"), "variable counters is an array of 9 of an integer of 4 bytes, not an array of 8"),
    (("int a; long b; } state", "int c, a; long b; } state"), "variable state has members at other places"),
    (("twice(struct conn *c, int by", "twice(struct conn *c, long by"), "function twice takes an integer of 8 bytes as argument 2, not"),
    (("double f)", "double f, int more)"), "function twice takes 4 arguments, not 3"),
    (("int by, double f) { return", "int by) { double f = 1; return"), "function twice takes 2 arguments, not 3"),
    (("const char *format, ...)", "const char *format, int a, int b)"), "function listed takes an integer of 4 bytes as argument 2, not any"),
    (("long twice", "int twice"), "function twice returns an integer of 4 bytes, not an integer of 8 bytes"),
    (("void nothing(int x) {", "struct point nothing(int x) { struct point p = {0}; if (x) return p;"), "function nothing returns struct point"),
]


@pytest.mark.parametrize("pair, words", CHANGES, ids=[c[0][1][:24] for c in CHANGES])
@pytest.mark.parametrize("name", ["main.c", "patch.c"])
def test_what_code_depends_on(tmp_path, pair, words, name):
    change = replace(pair)
    if "long value" in pair[0]:
        words = "type pair has member tag as an integer of 4 bytes, not an integer of 1 bytes"
    got = found(tmp_path, lambda text: change(text).replace("twice(conns, 1, 2.0)", "1"), name=name)
    assert any(g.startswith(words) for g in got), got


@pytest.mark.parametrize("pairs", [
    [("int x, y;", "unsigned x; int y;")], [("int x, y;", "int x, renamed;")], [("struct conn *next;", "void *next;")],
    [("long first; double second;", "long first; double second; float third;")], [("char *text", "unsigned long text")],
    [('"one", "two"}', '"one", "two", "three"}')],
    [("int a; long b; } table[2]", "char *n; int a; long b; } table[3]"), ("{{1, 2}}", "{{0, 1, 2}}")],
    [("OFF, ON", "OFF, ON, LAST")], [("unsigned open : 1, mode : 3", "_Bool open : 1; unsigned char mode : 3")],
    [("typedef struct { char tag;", "typedef struct pair { char tag;")], [("BLUE = -3", "BLUE = -3, WHITE")], [("enum colour colour;", "int colour;")], [("unsigned open", "int open")],
    [("void nothing(int x) {", "int nothing(int x) { if (x) return 3;"), ("table[x].b); }", "table[x].b); return 1; }")],
    [("long twice(struct conn *c,", "long twice(void *v,"), ("* c->at.x", "* ((struct conn *)v)->at.x")],
    [("static pair kept;", "static pair kept; struct newcomer { int a; } *fresh; int more;")],
], ids=lambda p: p[0][1][:20])
def test_what_code_does_not_depend_on(tmp_path, pairs):
    assert found(tmp_path, replace(*pairs)) == []


def test_a_function_that_is_new_takes_what_it_wants(tmp_path):
    assert found(tmp_path, replace(("double f)", "double f, int more)"), ("1, 2.0)", "1, 2.0, 3)")), replaced=("main",)) == []


OTHERS = ("struct node { int a; };\nstatic int count;\nstatic void step(struct node *n) { n->a = count++; }\n"
          "void (*one)(struct node *) = step;\n")


def test_other_files_have_types_of_the_same_name(tmp_path):
    """What only the source file has is not that of another file."""
    (tmp_path / "other.c").write_text(OTHERS)
    mine = "struct node { long a, b; };\nstatic long count;\nlong used(struct node *n) { return n->b + count++; }\n"
    assert found(tmp_path, lambda text: mine + text, "gcc", "gcc " + str(tmp_path / "other.c")) == []


def test_damaged_debug_information_says_nothing(tmp_path):
    found(tmp_path)
    for n in range(0, 4000, 37):
        data = bytearray((tmp_path / "patch.o").read_bytes())
        b = Binary.read(tmp_path / "patch.o")
        s = b.section(".debug_info")
        data[s.offset + n % s.size] ^= 0xFF
        (tmp_path / "damaged.o").write_bytes(data)
        patch = SimpleNamespace(source=Binary.read(tmp_path / "damaged.o"), path="damaged.o")
        view = SimpleNamespace(file=lambda: Binary.read(tmp_path / "program"), path="program")
        list(typecheck.problems([(patch, view, [])]))
