"""What a full gate keeps of a register that may be the result: by the function's type, on both architectures."""

import dataclasses

import pytest
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
KINDS = {"nothing": "", "integer": "i", "pointer": "i", "enumerated": "i", "truth": "i", "real": "f", "single": "f",
         "named": "f", "wide": "", "huge": "", "both": "", "missing": None}


@pytest.mark.parametrize("cc", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
@pytest.mark.parametrize("flags", ["-gdwarf-5", "-gdwarf-4", "-gdwarf-5 -gz=zlib", "-g -ffunction-sections"])
def test_registers_of_results_by_type(cc, flags):
    p = patch.load(compile_c(SOURCE, "-O1", *flags.split(), cc=cc))
    link = for_machine(p.machine, p.path).link
    registers = {"": 0, "i": link.INTEGER_RESULT, "f": link.FLOAT_RESULT, None: None}
    view, types = ModuleView("program", 0, None), results.Types()
    assert {n: types.result(n, p, view, link) for n in KINDS} == {n: registers[k] for n, k in KINDS.items()}
    assert types.result("nothing.part.0", p, view, link) == 0
    assert types.result("real.isra.0", p, view, link) is None, "perhaps nobody reads the copy's result"


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
