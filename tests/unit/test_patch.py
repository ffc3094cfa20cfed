"""Reading patch objects: what is in them, and a sentence for everything that is not one."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linking_host import Host, compile_c, program

from psu_bin.attach import linker, patch
from psu_bin.elf import EM_AARCH64, EM_X86_64, Binary
from psu_bin.errors import PsuError

SOURCE = r"""
static int count;
__attribute__((noinline)) static int helper(int x) { return x + ++count; }
int public_one(int x) { return helper(x) + helper(x + 1); }
int alias_of(int) __attribute__((alias("public_one")));
"""


def test_symbols_carry_their_source_file_and_functions_their_aliases():
    p = patch.load(compile_c(SOURCE, "-O1", name="some_file.c"), EM_X86_64)
    assert p.file == "some_file.c"
    helper = next(f for f in p.functions if f.name == "helper")
    assert helper.names[0].local and helper.names[0].file == "some_file.c"
    public = next(f for f in p.functions if "public_one" in [s.name for s in f.names])
    assert sorted(s.name for s in public.names) == ["alias_of", "public_one"]
    assert p.function_covering(public.section, public.end - 1) is public


def test_a_function_of_assembly_without_a_size_reaches_to_the_next():
    p = patch.load(compile_c('asm(".text\\n.globl one\\n.type one,@function\\none: nop\\n nop\\n nop\\n'
                             '.globl two\\n.type two,@function\\ntwo: ret\\n");', "-O1"))
    assert [(f.name, f.start, f.end) for f in p.functions] == [("one", 0, 3), ("two", 3, 4)]


@pytest.mark.parametrize("name,clone,base", [
    ("f", False, "f"), ("f.part.0", True, "f"), ("f.isra.0.cold", True, "f"), ("f.constprop.12", True, "f"),
    ("f.cold", True, "f"),
    ("f.localalias", True, "f"), ("f.lto_priv.0", False, "f.lto_priv.0"), ("partial", False, "partial"),
    ("a.partly", False, "a.partly")])
def test_names_that_a_compiler_made_from_another(name, clone, base):
    assert (patch.is_clone(name), patch.without_clone(name)) == (clone, base)


@pytest.mark.parametrize("name,source_name", [("f.lto_priv.0", "f"), ("g.llvm.123456", "g"),
                                              ("stdout@GLIBC_2.2.5", "stdout"),
                                              ("count.0.lto_priv.1", "count.0")])
def test_names_that_lto_appended_to(name, source_name):
    assert patch.program_name(name) == source_name


def refusal(path, machine=EM_X86_64):
    with pytest.raises(PsuError) as e:
        patch.load(path, machine)
    assert e.value.where == str(path) and e.value.what[0].islower() and not e.value.what.endswith(".")
    return str(e.value)


def test_files_that_are_no_patch_object(tmp_path):
    text = tmp_path / "text.o"
    text.write_text("int main;")
    assert "not an ELF file" in refusal(text)
    empty = tmp_path / "empty.o"
    empty.write_bytes(b"")
    assert "not an ELF file" in refusal(empty)
    assert "cannot be read" in refusal(tmp_path / "missing.o")
    assert "cannot be read" in refusal(tmp_path)
    obj = compile_c(SOURCE, "-O1")
    archive = tmp_path / "lib.a"
    subprocess.run(["ar", "rcs", archive, obj], check=True)
    assert "is an archive, not an ELF file (take the object files out: ar x)" in refusal(archive)
    short = tmp_path / "short.o"
    short.write_bytes(obj.read_bytes()[:400])
    assert "cut short" in refusal(short)
    assert "compiled for another architecture" in refusal(obj, EM_AARCH64)


def test_a_linked_file_given_as_patch():
    exe = program("int x;", "-O1", "-fPIE")
    assert "is an executable, not a patch object (give the object file that `cc -c` makes)" in refusal(exe)
    assert "is an executable" in refusal(program("int x;", "-O1", "-fno-pic", "-no-pie"))
    library = compile_c("int x; int f(void) { return x; }", "-shared", "-fPIC", link=True)
    assert "is a shared library" in refusal(library)


def test_an_object_without_machine_code():
    assert "only intermediate code of -flto" in refusal(compile_c(SOURCE, "-O1", "-flto", "-fno-fat-lto-objects"))
    assert patch.load(compile_c(SOURCE, "-O1", "-flto", "-ffat-lto-objects")).functions
    assert not patch.load(compile_c("int only_data = 1;", "-O1")).has_code


def test_a_stripped_or_32_bit_object(tmp_path):
    stripped = tmp_path / "s.o"
    shutil.copy(compile_c(SOURCE, "-O1"), stripped)
    subprocess.run(["strip", "--strip-all", stripped], check=True)
    assert "no symbol table" in refusal(stripped) or "no function" in refusal(stripped)
    (tmp_path / "a.s").write_text("nop\n")
    subprocess.run(["as", "--32", "-o", tmp_path / "i.o", tmp_path / "a.s"], check=True)
    assert "32-bit" in refusal(tmp_path / "i.o")


BYTES = Path(compile_c(SOURCE + "const char *s(void) { return \"x\"; }", "-O1", "-fPIE")).read_bytes()


@pytest.fixture(scope="module")
def view():
    with Host(program(SOURCE, "-O1", "-fPIE")) as host:
        yield host.view


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_object_is_refused_or_linked_and_nothing_else(view, changes):
    data = bytearray(BYTES)
    for at, value in changes:
        data[at] = value
    attempt(bytes(data), view)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(BYTES)))
def test_a_cut_object_is_refused(view, size):
    if size < len(BYTES):
        with pytest.raises(PsuError):
            patch.parse(Binary(BYTES[:size], "cut.o"))


def test_damaged_tables_are_refused_whatever_field_is_wrong(view):
    """Every 4-byte word of the section headers, symbol table and relocations, set to values that lead outside."""
    b = Binary(BYTES, "x.o")
    areas = [(b.shoff, b.shnum * 64)] + [(s.offset, s.size) for s in b.sections if s.type in (2, 4)]
    tried = refused = 0
    for start, size in areas:
        for at in range(start, start + size, 4):
            for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x10000):
                data = bytearray(BYTES)
                struct.pack_into("<I", data, at, value)
                tried += 1
                refused += attempt(bytes(data), view)
    assert refused > tried / 4


def attempt(data, view):
    """True when it was refused."""
    try:
        p = patch.parse(Binary(data, "x.o"), EM_X86_64)
        demand = linker.plan([p], [view])
        m = demand.modules[0]
        base = (view.load_bias + (1 << 28)) & -4096
        linker.relocate(demand, [linker.ModulePlacement(
            tuple(base + (n << 20) for n in range(len(m.objects))),
            tuple(1 << 25 if o.mirrored else 0 for o in m.objects), base + (1 << 24), base + (2 << 24),
            tuple(base + (3 << 24) + 64 * n for n in range(len(m.stubs))))], [{}])
    except PsuError as e:
        assert e.what
        return True
    return False
