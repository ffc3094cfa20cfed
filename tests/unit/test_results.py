"""What a full gate keeps of a register that may be the result: by the function's type, on both architectures."""

import dataclasses

import pytest
from conftest import COMPILERS
from linking_host import Host, compile_c, program

from psu_bin.arch import for_machine
from psu_bin.attach import patch, results
from psu_bin.attach.gates import FULL, REGISTERS
from psu_bin.attach.view import ModuleView
from psu_bin.errors import PsuError

SOURCE = r"""
typedef const double number;
enum e { A, B };
struct two { long a, b; };
void nothing(long x) { asm volatile(""); }
long integer(long x) { return x + 1; }
char *pointer(char *x) { return x + 1; }
enum e enumerated(enum e x) { return !x; }
_Bool truth(int x) { return x; }
double real(double x) { return x + 1; }
float single(float x) { return x + 1; }
number named(double x) { return x + 1; }
long double wide(long double x) { return x + 1; }
__int128 huge(__int128 x) { return x + 1; }
struct two both(long a, long b) { return (struct two){a, b}; }
"""
# By architecture: registers of link.RESULTS, of which x86-64's have no rax.
RDX, X0, V0, V1 = 1 << 2, 1, 1 << 16, 1 << 17
KINDS = {"nothing": (0, 0), "integer": (0, X0), "pointer": (0, X0), "enumerated": (0, X0), "truth": (0, X0), "real": (V0, V0),
         "single": (V0, V0), "named": (V0, V0), "wide": (0, V0), "huge": (RDX, 3), "both": (RDX, 3), "missing": None}


@pytest.mark.parametrize("cc", COMPILERS)
@pytest.mark.parametrize("flags", ["-gdwarf-5", "-gdwarf-4", "-gdwarf-5 -gz=zlib", "-g -ffunction-sections"])
def test_registers_of_results_by_type(cc, flags):
    p = patch.load(compile_c(SOURCE, "-O1", *flags.split(), cc=cc))
    link = for_machine(p.machine, p.path).link
    arm = "aarch64" in cc
    view, types = ModuleView("program", 0, None), results.Types()
    assert {n: types.result(n, p, view, link) for n in KINDS} == {n: k and k[arm] for n, k in KINDS.items()}
    assert types.result("nothing.part.0", p, view, link) == 0
    bare = patch.load(compile_c(SOURCE, "-O1", "-g1", cc=cc))
    assert {types.result(n, bare, view, link) for n in KINDS} == {None}, "no types"
    assert types.result("real.isra.0", p, view, link) is None, "perhaps nobody reads the copy's result"


# Types of results: (definition, registers on x86-64, on AArch64); S is what is returned.
VALUES = {
    "two_longs": ("struct { long a, b; }", RDX, 3), "one_int": ("struct { int a; }", 0, X0), "chars": ("struct { char a[9]; }", RDX, 3),
    "long_double": ("struct { long a; double b; }", V0, 3), "double_long": ("struct { double a; long b; }", V0, 3),
    "doubles": ("struct { double a, b; }", V0 | V1, V0 | V1), "floats": ("struct { float a, b, c; }", V0 | V1, 7 << 16),
    "four": ("struct { double a, b, c, d; }", 0, 15 << 16), "five": ("struct { double a[5]; }", 0, 0),
    "mixed": ("struct { float a; int b; double c; }", V0, 3), "pair": ("union { double a; long b; }", 0, X0),
    "nested": ("struct { struct { float x; } a; float b[1]; }", V0, V0 | V1), "bits": ("struct { long a : 40, b : 40; }", RDX, 3),
    "big": ("struct { long a, b, c; }", 0, 0), "pointer_long": ("struct { const char *p; long n; }", RDX, 3),
    "complex_double": ("_Complex double", V0 | V1, V0 | V1), "complex_float": ("_Complex float", V0, V0 | V1),
    "int128": ("__int128", RDX, 3), "vector": ("int __attribute__((vector_size(16)))", V0, V0),
    "vector8": ("struct { float a __attribute__((vector_size(8))); float b __attribute__((vector_size(8))); }", V0 | V1, V0 | V1),
    "packed": ("struct __attribute__((packed)) { char a; long b; }", 0, 3), "padded": ("struct { double a; char b; }", V0, 3),
    "straddling": ("struct __attribute__((packed)) { long a : 60; long b : 36; }", RDX, 3),
    "vector_or_long": ("union { int v __attribute__((vector_size(16))); long l; }", V0, 3),
    "tiny": ("unsigned char __attribute__((vector_size(4)))", None, None), "none": ("struct { double a; double f[0]; }", None, None),
    "long_wide": ("struct { long double a; }", 0, V0), "wide_union": ("union { float a[2]; double b; }", V0, X0),
}


@pytest.mark.parametrize("cc", COMPILERS)
def test_structures_and_the_like(cc):
    source = "".join(f"typedef {text} T_{n}; extern T_{n} v_{n}; T_{n} f_{n}(void) {{ return v_{n}; }}\n"
                     for n, (text, _, _) in VALUES.items())
    p = patch.load(compile_c(source, "-O2", "-g", cc=cc))
    link = for_machine(p.machine, p.path).link
    view, types, arm = ModuleView("program", 0, None), results.Types(), "aarch64" in cc
    got = {n: types.result(f"f_{n}", p, view, link) for n in VALUES}
    assert got == {n: v[1 + arm] for n, v in VALUES.items()}
    # And so the compiler has it: a function that only loads its result loads these registers.
    for f in p.functions:
        mask = got[f.name[2:]]
        code = p.contents[f.section][f.start:f.end]
        if mask:
            addresses = 3 if arm and mask >> 16 else 0
            assert loaded(code, arm) & link.RESULTS & ~addresses == mask, (f.name, code.hex())


def loaded(code, arm):
    import capstone
    md = capstone.Cs(*((capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM) if arm else (capstone.CS_ARCH_X86, capstone.CS_MODE_64)))
    md.detail = True
    names = {f"{k}{n}": 1 << n for n in range(2) for k in "xw"} if arm else {"rdx": RDX, "edx": RDX, "dl": RDX, "dx": RDX}
    names |= {f"{k}{n}": 1 << 16 + n for n in range(4) for k in ("qdsv" if arm else ("xmm",))}
    mask = 0
    for i in md.disasm(code, 0):
        for r in i.regs_access()[1]:
            mask |= names.get(i.reg_name(r), 0)
    return mask


OLD = """__attribute__((noipa)) double same(double x) { return x; } __attribute__((noipa)) void quiet(double x) { }"""
NEW = """double same(double x) { return x + 1; } void quiet(double x) { asm volatile("pxor %%xmm0, %%xmm0" ::: "xmm0"); }"""
LEAVES = """double same(double x) { return x; } void quiet(double x) { asm volatile("xor %%eax, %%eax" ::: "eax"); }"""


def gates(host, *objects):
    return {x.name: (x.kind, x.preserve & REGISTERS) for x in host.link(*objects).modules[0][0][0].replaced}


def test_the_result_is_not_kept_and_what_callers_of_a_void_function_rely_on_is():
    with Host(program(OLD, "-O2", "-fPIE")) as host:
        relied = {host.symbol(n): 1 << 16 | 1 << 6 for n in ("same", "quiet")}
        host.view = dataclasses.replace(host.view, relied=relied)
        typed = compile_c(NEW + 'void f(void) {}', "-O2", "-fPIE", "-g")
        got = gates(host, typed)
        assert got["same"][1] & 1 << 16 == 0 and got["quiet"] == (FULL, 1 << 16 | 1 << 6)
        with pytest.raises(PsuError, match="type of same's result .*; the type of quiet's .*compile the patch with -g"):
            gates(host, compile_c(NEW, "-O2", "-fPIE"))
        assert set(gates(host, compile_c(LEAVES, "-O2", "-fPIE"))) == {"same", "quiet"}, "changes nothing: as good"
        host.view = dataclasses.replace(host.view, file=lambda: typed_binary(typed))
        assert gates(host, compile_c(NEW, "-O2", "-fPIE")) == {n: got[n] for n in ("same", "quiet")}, "the program's types"


def typed_binary(path):
    from psu_bin.elf import Binary
    return Binary.read(path)


SLICE = """typedef struct { const char *p; long n; } slice;
__attribute__((noipa)) slice same(const char *s, long off, long n) { return (slice){s + off, n}; }
__attribute__((noipa)) double quiet(double x) { return x; }"""
CAPPED = """typedef struct { const char *p; long n; } slice; int puts(const char *);
slice same(const char *s, long off, long n) { return (slice){s + off, n > 2 ? 2 : n}; }
double quiet(double x) { puts("x"); return x + 1; }"""
SCRATCH = """int puts(const char *);
long same(const char *s, long off, long n) { puts(s); return ((long *)s)[off] + ((long *)s)[n] * 3; } int quiet(int x) { return puts("x") + 1; }"""


def test_without_a_type_what_is_set_to_be_returned_is_a_result():
    with Host(program(SLICE, "-O2", "-fPIE")) as host:
        relied = {host.symbol(n): 7 << 15 | RDX for n in ("same", "quiet")}
        host.view = dataclasses.replace(host.view, relied=relied)
        with pytest.raises(PsuError, match="type of same's result .*; the type of quiet's "):
            gates(host, compile_c(CAPPED, "-O2", "-fPIE"))
        kept = gates(host, compile_c(CAPPED, "-O2", "-fPIE", "-g"))
        assert not kept["same"][1] & RDX and not kept["quiet"][1] & V0 and kept["quiet"][1] & RDX
        # What is only used on the way is not.
        assert gates(host, compile_c(SCRATCH, "-O2", "-fPIE"))["quiet"][1] & RDX
