"""Landing pads: those that the compiler's own tables name, no others; and all that could be, where a table cannot be read."""

import re
from pathlib import Path

import pytest
from conftest import compile as run_compiler
from conftest import installed

from psu_bin.elf import Binary
from psu_bin.instrument import landing, unwind

SOURCE = r"""
#include <cstdio>
#include <stdexcept>
#include <string>
struct Held { std::string s; explicit Held(const char *x) : s(x) {} ~Held() { std::puts(s.c_str()); } };
__attribute__((noinline)) int inner(int x) { Held a("a"); if (x > 3) throw std::runtime_error("three"); Held b("b"); return x; }
__attribute__((noinline)) int outer(int x)
{
    Held c("c");
    try { return inner(x) + inner(x + 1); }
    catch (std::runtime_error &e) { return -1; }
    catch (int) { Held d("d"); return inner(0); }
}
__attribute__((noinline)) int plain(int x) { return 3 * x; }
int main(int n, char **) { return outer(n) + plain(n); }
"""
COMPILERS = [installed(*x) for x in (("g++", ""), ("g++", "-O2"), ("g++", "-O2 -fno-pic -no-pie"), ("g++", "-Os -ffunction-sections"),
                                     ("clang++", "-O2"), ("aarch64-linux-gnu-g++", "-O2"))]


def named(assembly: str) -> set[str]:
    """The labels that the tables of call sites in a compiler's assembly name as landing pads."""
    out = set()
    for table in re.findall(r"uleb128 \.L\w+-\.L(?:LSDACSB|cst_begin)\w+\s.*?\n(.*?)\.L(?:LSDACSE|cst_end)\w*:", assembly, re.S):
        values = re.findall(r"\.(?:uleb128|byte)\s+(\S+)", table)
        assert len(values) % 4 == 0, table
        out |= {v.split("-")[0] for v in values[2::4]} - {"0", "0x0"}
    return out


@pytest.mark.parametrize(("cc", "flags"), COMPILERS, ids=[" ".join(x.values) for x in COMPILERS])
def test_all_that_the_compiler_names_and_no_others(tmp_path: Path, cc: str, flags: str) -> None:
    (tmp_path / "a.cc").write_text(SOURCE)
    run_compiler(*flags.split(), "-S", tmp_path / "a.cc", "-o", tmp_path / "a.s", cc=cc)
    assembly = (tmp_path / "a.s").read_text()
    labels = named(assembly)
    # Labels with another name stay in the symbol table.
    (tmp_path / "b.s").write_text(re.sub(r"\.L(\w+)\b", lambda m: f"kept_{m[1]}" if m[0] in labels else m[0], assembly))
    run_compiler(*flags.split(), tmp_path / "b.s", "-o", tmp_path / "b", cc=cc)
    binary = Binary.read(tmp_path / "b")
    places = {binary.symtab.name(n): int(s["st_value"]) for n, s in enumerate(binary.symtab.entries)}
    assert landing.landing_pads(binary, unwind.read(binary)).tolist() == sorted({places["kept_" + x[2:]] for x in labels})
    assert len(labels) > 3


@pytest.mark.parametrize("what", ["another format", "no table", "cut short"])
def test_where_a_table_cannot_be_read_every_place_may_be_one(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.cc").write_text(SOURCE)
    run_compiler("-O2", tmp_path / "a.cc", "-o", tmp_path / "a", cc="g++")
    binary = Binary.read(tmp_path / "a")
    frames = unwind.read(binary)
    n = next(n for n, table in enumerate(frames.lsda.tolist()) if table)
    table, data = int(frames.lsda[n]), bytearray(binary.data)
    at = binary.offset_of(table)
    assert data[at] == 0xFF, "the table begins where the function does"
    if what == "another format":
        data[at] = 0x50      # DW_EH_PE_aligned
    elif what == "no table":
        frames.lsda[n] = unwind.UNKNOWN
    else:
        assert data[at + 1] == 0xFF and data[at + 2] == 0x01, "no types are caught; the numbers are uleb128"
        data[at + 3:at + 6] = b"\xff\xff\x7f"
    found = landing.landing_pads(Binary(bytes(data), "a"), frames)
    inside = set(range(int(frames.begin[n]), int(frames.end[n])))
    assert inside <= set(found.tolist())
