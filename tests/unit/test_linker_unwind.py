"""Exceptions and cleanups pass through patched code; C++ patches use the program's type information."""

import io
import shutil

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from linking_host import Host, compile_c, program

PROGRAM = r"""
#include <stdexcept>
#include <string>
#include <vector>
struct Shape { virtual ~Shape() {} virtual int area() const = 0; };
struct Square : Shape { int side; Square(int s) : side(s) {} int area() const override; };
int Square::area() const { return side * side; }
inline int &shared_count() { static int count = 40; return count; }
extern "C" {
int may_throw(int x) { if (x == 3) throw std::runtime_error("three"); return x; }
int catches(int x) {
    try { return may_throw(x); } catch (const std::exception &e) { return -(int)std::string(e.what()).size(); } }
int area_of(int x) { Square s(x); Shape *p = &s; return p->area() + ++shared_count(); }
int is_square(Shape *s) { return dynamic_cast<Square *>(s) != nullptr; }
Shape *make_square(int x) { return new Square(x); }
int total(int n) { std::vector<int> v; for (int i = 0; i < n; i++) v.push_back(i);
    int r = 0; for (int i : v) r += i; return r; }
}
"""
PATCH = r"""
#include <stdexcept>
#include <string>
#include <vector>
#include <map>
struct Shape { virtual ~Shape() {} virtual int area() const = 0; };
struct Square : Shape { int side; Square(int s) : side(s) {} int area() const override; };
int Square::area() const { return side * side * 10; }
inline int &shared_count() { static int count = 40; return count; }
struct Loud { int &r; Loud(int &x) : r(x) {} ~Loud() { r += 1000; } };
extern "C" {
int may_throw(int x) { if (x >= 3) throw std::runtime_error("three or more"); return x * 2; }
int area_of(int x) { Square s(x); Shape *p = &s; return p->area() + ++shared_count(); }
int catches(int x) {
    int seen = 0;
    try { Loud l(seen); return may_throw(x) + seen; }
    catch (const std::runtime_error &e) { return seen + (int)std::string(e.what()).size(); }
}
int is_square(Shape *s) { return (dynamic_cast<Square *>(s) != nullptr) * 7; }
int total(int n) { std::map<int, std::string> m; for (int i = 0; i < n; i++) m[i % 7] += "ab"; int r = 0;
    for (auto &e : m) r += e.first * 100 + (int)e.second.size(); return r; }
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("flags", [("g++", "-O0", "-fPIE"), ("g++", "-O2", "-fPIC"),
                                   ("g++", "-O2", "-fPIE", "-ffunction-sections"),
                                   ("clang++", "-O2", "-fPIC"), ("clang++", "-O0", "-fPIE")], ids=" ".join)
def test_a_cpp_patch(flags):
    cc, *rest = flags
    with Host(program(PROGRAM, "-O1", "-fPIE", cc="g++", name="shapes.cc")) as host:
        assert [host.call_int("catches", n) for n in (1, 3)] == [1, -5]
        assert host.call_int("area_of", 3) == 9 + 41
        square = host.call("make_square", 4)
        host.attach(compile_c(PATCH, *rest, cc=cc, name="shapes.cc"))
        assert host.call_int("area_of", 3) == 90 + 42, "the inline function's static went on counting"
        assert [host.call_int("catches", n) for n in (1, 3, 4)] == [2, 1013, 1013]
        assert host.call_int("is_square", square) == 7, "the program's type information"
        assert host.call_int("total", 20) == 2100 + 40
        with_old_vtable = host.call_int(host.symbol("_ZNK6Square4areaEv"), square)
        assert with_old_vtable == 160


CLEANUP = r"""
#include <stdlib.h>
static int cleaned;
static void clean(int *p) { cleaned += *p; }
int inner(int (*f)(int), int x) { int guard __attribute__((cleanup(clean))) = x; return f(x) + 1; }
int get(void) { return cleaned; }
"""


def test_c_code_with_cleanups_is_unwound_by_exceptions():
    # Nothing is instrumented here, so the caller takes the address to call.
    thrower = r"""
    extern "C" int thrower(int x) { if (x > 5) throw x; return x; }
    extern "C" int outer(int x, int (*call)(int (*)(int), int)) {
        try { return call(thrower, x); } catch (int v) { return -v; } }
    """
    with Host(program(thrower, "-O1", "-fPIE", "-fexceptions", "-lstdc++", name="t.cc",
                      more=(("c.c", CLEANUP),))) as host:
        inner = host.symbol("inner")
        assert [host.call_int("outer", 4, inner), host.call_int("outer", 9, inner), host.call_int("get")] == [5, -9, 13]
        patch = CLEANUP.replace("f(x) + 1", "f(x) + 2").replace("+= *p", "+= *p * 100")
        linked = host.attach(compile_c(patch, "-O2", "-fPIE", "-fexceptions", name="c.c"))
        assert linked.modules[0][0][0].eh_frame
        assert [host.call_int("outer", 4, inner), host.call_int("outer", 9, inner)] == [6, -9]
        assert host.call_int("get") == 1313


CHAIN = r"""
#include <string.h>
__attribute__((noipa)) int low(int n) { return n + 1; }
__attribute__((noipa)) int high(const char *s) { return low(strlen(s)) + 1; }
"""


def test_stubs_and_plt_entries_of_an_object_have_unwind_rows():
    with Host(program(CHAIN, "-O1", "-fPIE")) as host:
        linked = host.attach(compile_c(CHAIN.replace("+ 1", "+ 2"), "-O1", "-fPIE"))
        assert host.call_int("low", 3) == 5
        o = linked.modules[0][0][0]
        code = next(r for r in o.regions if r.what == "code")
        start, size = o.eh_frame - code.address, o.symfile[0] + o.symfile[1] - o.eh_frame
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        frames = CallFrameInfo(io.BytesIO(code.data[start:]), size, o.eh_frame, structs, True)
        rows = {}
        for entry in frames.get_entries():
            if isinstance(entry, FDE):
                first = entry.header["initial_location"]
                rows[first] = (first + entry.header["address_range"], entry.get_decoded().table[0]["cfa"])
        functions = [(body, body + size) for _, body, size in o.code]
        # A direct call of the C library lands in a PLT entry, one between two functions of the patch in the other one, and
        # in its stub once it is turned.
        landed = [int(x.op_str, 16) for first, last in functions
                  for x in Cs(CS_ARCH_X86, CS_MODE_64).disasm(code.data[first - code.address:last - code.address], first)
                  if x.mnemonic == "call"]
        bodies = {first for first, _ in functions}
        assert len(landed) == 2 and len(bodies.intersection(landed)) == 1
        for at in (at + o.mirror[0] - o.address if at in bodies else at for at in landed):
            assert not any(first <= at < last for first, last in functions)
            (cfa,) = [cfa for first, (last, cfa) in rows.items() if first <= at < last]
            assert (cfa.reg, cfa.offset) == (7, 8)      # the return address is on top of the stack
