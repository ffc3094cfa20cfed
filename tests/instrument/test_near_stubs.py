"""Near stubs in the file: where they are, and that unwinders find the caller from there."""

import shutil

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from rewriting import compiled, instrument, run

from psu_bin import descriptor, near_forms
from psu_bin.arch import for_machine


def rows(path):
    """{start of code: (end, [(offset from the start, CFA)])} as pyelftools reads .eh_frame."""
    with open(path, "rb") as file:
        entries = ELFFile(file).get_dwarf_info().EH_CFI_entries()
        out = {}
        for e in entries:
            if isinstance(e, FDE):
                start = e.header["initial_location"]
                table = [(r["pc"] - start, (r["cfa"].reg, r["cfa"].offset)) for r in e.get_decoded().table]
                out[start] = (start + e.header["address_range"], table)
        return out


def near(i):
    """(function, address of its near stub, its bytes) of those that have one."""
    d = i.descriptor
    arch = for_machine(d.machine, "")
    forms = [near_forms.in_program(arch, d.flags, f.flags) for f in d.functions]
    return [(f, f.address - len(form.nop), form.nop) for f, form in zip(d.functions, forms) if f.flags & descriptor.NEAR]


@pytest.mark.parametrize("cc, flags", [
    ("gcc", "-O2"), ("gcc", "-O0"), ("gcc", "-O2 -fcf-protection=full -no-pie"), ("gcc", "-O3 -fuse-ld=gold"),
    ("clang", "-O2"), ("clang", "-O2 -fuse-ld=lld"), ("gcc", "-O2 -fpatchable-function-entry=5,5"),
    ("gcc", "-O2 -fpatchable-function-entry=8,8"), ("gcc", "-O2 -fcf-protection=full -fpatchable-function-entry=8,8"),
    ("aarch64-linux-gnu-gcc", "-O2"),
    ("aarch64-linux-gnu-gcc", "-O2 -mbranch-protection=standard -fpatchable-function-entry=1,1")])
def test_a_near_stub_is_a_nop_that_the_unwind_row_covers(tmp_path, cc, flags):
    if not shutil.which(cc):
        pytest.skip(f"{cc} is not installed")
    i = instrument(compiled(tmp_path / "ways", "ways.c", "target.c", *flags.split(), "-pthread", "-DNO_IFUNC", cc=cc))
    arch = for_machine(i.descriptor.machine, "")
    stack_pointer = {"x86_64": (7, 8), "aarch64": (31, 0)}[arch.name]
    found = near(i)
    assert found
    if "patchable" in flags:         # all but what the assembler or the C library contributed
        assert len(found) >= 0.85 * len(i.descriptor.functions)
        longest = arch.near_forms(i.descriptor.flags)[-1].nop
        if len(longest) <= int(flags[-1]):
            assert sum(nop == longest for _, _, nop in found) >= 0.85 * len(found)
    before, after = rows(i.original), rows(i.path)
    binary = i.binary
    for f, at, nop in found:
        assert binary.data[binary.offset_of(at):][:len(nop)] == nop
        end, table = after[at]
        old_end, old_table = before[f.address]
        assert f.address not in after and end == old_end
        assert table[0] == (0, stack_pointer)
        # The rest is as it was, a jump's size later.
        assert table[1:] == [(offset + len(nop), cfa) for offset, cfa in old_table[1:]]
    others = set(before) - {f.address for f, _, _ in found}
    assert others <= set(after) and all(after[x] == before[x] for x in others)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_functions_with_landing_pads_keep_their_rows(tmp_path):
    source = tmp_path / "pads.cc"
    source.write_text("struct Loud { ~Loud(); }; int count;\n"
                      "__attribute__((noinline)) Loud::~Loud() { count++; }\n"
                      "__attribute__((noipa)) int may_throw(int n) { if (n > 5) throw n; return n; }\n"
                      "__attribute__((noipa)) int catches(int n) { Loud l; try { return may_throw(n); } catch (int x) "
                      "{ return -x; } }\n"
                      "int main(int argc, char **) {"
                      " return catches(argc) == 1 && catches(argc + 6) == -7 && count == 2 ? 0 : 1; }\n")
    i = instrument(compiled(tmp_path / "pads", source, "-O2", "-fpatchable-function-entry=5,5", cc="g++"))
    names = {f.name for f, _, _ in near(i)}
    assert "_Z9may_throwi" in names and "_Z7catchesi" not in names
    run(i.path)


def test_the_first_function_behind_the_start_up_code(tmp_path):
    """The C library's code has no sizes: nothing but NOPs after its last jump is padding.  Code of another's is not."""
    source = tmp_path / "first.c"
    source.write_text("__attribute__((noipa, aligned(64))) int first(int n) { return n + 1; }\n"
                      "asm(\".text; lea 1(%rdi), %edi; .p2align 6\");\n"
                      "__attribute__((noipa, aligned(64))) int entered(int n) { return n + 3; }\n"
                      "int main(int n, char **a) { return first(n) + entered(n) == 6 ? 0 : 1; }\n")
    i = instrument(compiled(tmp_path / "first", source, "-O2", "-fno-toplevel-reorder"))
    names = {f.name for f, _, _ in near(i)}
    assert "first" in names and "entered" not in names
    run(i.path)
