"""The file that instrument writes, as the loader and the tools of the trade see it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from rewriting import Instrumented, check_form, compiled, instrument, run, tool

from psu_bin import descriptor, elf
from psu_bin.elf import Binary

pytest_plugins = ["rewriting"]

BUILDS = {
    "ld": "-O2 -g", "ld-no-pie": "-O2 -no-pie -g -Wl,--emit-relocs", "gold": "-O2 -fuse-ld=gold",
    "lld": "-O2 -fuse-ld=lld", "cet": "-O2 -fcf-protection=full -Wl,-z,ibt", "relr": "-O2 -Wl,-z,pack-relative-relocs",
    "noseparate": "-O2 -Wl,-z,noseparate-code -Wl,-z,now", "many-relocations": "-O1 -rdynamic",
    "no-ifunc": "-O2 -DNO_IFUNC",
}


@pytest.fixture(scope="module", params=BUILDS)
def program(request: pytest.FixtureRequest, built: Path) -> Instrumented:
    """ways.c as a program, for each linker and layout."""
    out = built / f"file-{request.param}"
    flags = BUILDS[request.param].split()
    if request.param == "many-relocations":
        source = built / "many.c"
        source.write_text(many(3000))
        flags += ["-w", str(source)]
    return instrument(compiled(out, "ways.c", "target.c", *flags, "-pthread"), stub_symbols=True)


def many(count: int) -> str:
    """C with `count` functions and pointers to them: tables of some size."""
    functions = "".join(f"__attribute__((noinline)) int function_number_{i}(int x) {{ return x * {i + 7} + {i}; }}\n"
                        for i in range(count))
    return functions + "int (*all_functions[])(int) = {" + ",".join(f"function_number_{i}" for i in range(count)) + "};"


def test_tools_have_no_complaint(program: Instrumented) -> None:
    check_form(program)


@pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind here")
def test_valgrind_runs_it_as_before(program: Instrumented) -> None:
    """valgrind reads the unwind rules of everything that is mapped, the shim's expressions included."""
    def seen(path: Path) -> tuple[str, int]:
        done = subprocess.run(["valgrind", "--error-exitcode=9", str(path)], capture_output=True, text=True, timeout=120)
        assert "ERROR SUMMARY: 0 errors" in done.stderr, done.stderr[-1000:]
        return done.stdout, done.returncode
    assert seen(program.path) == seen(program.original)


STRIPPERS = [("strip",), ("strip", "-g"), ("llvm-strip",), ("eu-strip",), ("objcopy",), ("llvm-objcopy",),
             ("objcopy", "--strip-unneeded"), ("objcopy", "--compress-debug-sections")]


@pytest.mark.parametrize("words", STRIPPERS, ids=[" ".join(x) for x in STRIPPERS])
def test_stripped_runs_and_keeps_what_attach_needs(program: Instrumented, words: tuple[str, ...], change: Path,
                                                   tmp_path: Path) -> None:
    out = tmp_path / program.path.name
    if words[0].endswith("strip"):
        tool(*words, "-o", out, program.path)
    else:
        tool(*words, program.path, out)
    shutil.copy(program.result.shim, tmp_path)
    stripped = Instrumented(program.original, out, program.result)
    assert stripped.descriptor == program.descriptor
    slots = {"target": "other", "s_target": "s_other"}
    changed = run(out, env=stripped.changes(slots), preload=change)
    for line in ("before direct 3\n", "after direct 1001\n", "after static taken 2006\n"):
        assert line in changed
    was, now = ([(p.address, p.flags) for p in loads(x.binary)] for x in (program, stripped))
    assert was == now


def loads(b: Binary) -> list[elf.Segment]:
    return [p for p in b.segments if p.type == elf.PT_LOAD]


def test_debug_information_can_be_split_off(program: Instrumented, tmp_path: Path) -> None:
    for words in (("objcopy",), ("llvm-objcopy",)):
        assert tool(*words, "--only-keep-debug", program.path, tmp_path / "debug") == ""
    symbols = tool("nm", tmp_path / "debug")
    assert " T target\n" in symbols and " t s_target.psu\n" in symbols


def test_loader_sees_what_it_saw_and_the_shim_first(program: Instrumented) -> None:
    old, new = (tool("readelf", "-dW", p) for p in (program.original, program.path))
    needed = [[x.split("[")[1] for x in text.splitlines() if "(NEEDED)" in x] for text in (old, new)]
    assert needed[1] == ["libpsu_shim.so]", *needed[0]]
    assert "(RUNPATH)            Library runpath: [$ORIGIN]" in new
    assert [p.type for p in program.binary.segments if p.type != elf.PT_LOAD] == [
        p.type for p in Binary.read(program.original).segments if p.type != elf.PT_LOAD]


def test_symbols_stay_at_the_original_code(program: Instrumented) -> None:
    old, new = Binary.read(program.original).symtab, program.binary.symtab
    assert old and new
    d = program.descriptor
    values = {new.name(i): new.entries[i] for i in range(len(new.entries))}
    for i in np.flatnonzero((old.entries["st_info"] & 15) == elf.STT_FUNC).tolist():
        assert values[old.name(i)]["st_value"] == old.entries["st_value"][i]
    for i, f in enumerate(d.functions):
        stub = values[f.name + ".psu"]
        assert stub["st_value"] == d.stub(i) and stub["st_size"] == d.stub_size and stub["st_info"] == elf.STT_FUNC
        section = program.binary.sections[int(stub["st_shndx"])]
        assert section.name == ".psu.text" and section.holds(int(stub["st_value"]))


NAMED = ["-O1", "-O1 -no-pie", "-O1 -Wl,--hash-style=both", "-O1 -Wl,--hash-style=sysv", "-O1 -fuse-ld=lld",
         "-O1 -fuse-ld=gold"]


@pytest.mark.parametrize("flags", NAMED)
def test_addresses_in_exported_functions_keep_their_names(built: Path, flags: str) -> None:
    """dladdr and backtrace_symbols, as crash handlers use them; the function's own address is the stub's."""
    program = compiled(built / f"named{flags.replace(' ', '')}", "named.c", "-rdynamic", *flags.split())
    i = instrument(program)
    assert {f.name for f in i.descriptor.functions} >= {"inner", "outer", "hidden"}
    before = run(program).replace(str(program), "PROGRAM")
    assert "PROGRAM(inner+0x" in before and "dladdr outer 1\n" in before and "the same 1 1\n" in before
    assert run(i.path).replace(str(i.path), "PROGRAM") == before
    tool("strip", i.path)
    assert run(i.path).replace(str(i.path), "PROGRAM") == before


def test_a_function_with_several_exported_names_has_one_symbol_at_its_code(built: Path) -> None:
    program = compiled(built / "named-aliases", "named.c", "-rdynamic", "-O2", "-DALIASES")
    i = instrument(program)
    assert run(i.path).replace(str(i.path), "PROGRAM") == run(program).replace(str(program), "PROGRAM")
    d, dynsym = i.descriptor, i.binary.dynsym
    assert dynsym
    outer = next(n for n, f in enumerate(d.functions) if f.name in ("outer", "another", "third"))
    at = [int(e["st_value"]) for n, e in enumerate(dynsym.entries) if dynsym.name(n) in ("outer", "another", "third")]
    assert sorted(at) == [d.functions[outer].address] + 3 * [d.stub(outer)]


def test_linkers_take_an_instrumented_library(tmp_path: Path, change: Path) -> None:
    """Its exported functions have two dynamic symbols; the first, the stub's, is the definition."""
    (tmp_path / "library.c").write_text("int twice(int x) { return 2 * x; } int thrice(int x) { return 3 * x; }")
    (tmp_path / "versions").write_text("V1 { global: twice; }; V2 { global: thrice; local: *; } V1;")
    (tmp_path / "user.c").write_text("int printf(const char *, ...), twice(int), thrice(int);\n"
                                     "int main(void) { return printf(\"%d %d\\n\", twice(4), thrice(5)) != 5; }")
    for version in ((), (f"-Wl,--version-script={tmp_path}/versions",)):
        i = instrument(compiled(tmp_path / "libtimes.so", tmp_path / "library.c", "-shared", "-fPIC", "-O1",
                                "-Wl,-soname,libtimes.so", *version))
        for linker in ("bfd", "gold", "lld"):
            user = compiled(tmp_path / "user", tmp_path / "user.c", i.path, f"-fuse-ld={linker}")
            assert run(user, env={"LD_LIBRARY_PATH": str(i.path.parent)}) == "8 15\n"


def test_stripped_input_gets_no_symbols(built: Path) -> None:
    program = compiled(built / "dynamic-symbols", "small.c", "-O2", "-rdynamic")
    tool("strip", program)
    i = instrument(program)
    assert i.binary.symtab is None and {f.name for f in i.descriptor.functions} >= {"leaf", "middle"}
    assert run(i.path) == run(program)


SIZES = ("-O1", "-O1 -rdynamic", "-O1 -no-pie", "-O1 -fuse-ld=lld", "-O1 -fuse-ld=lld -rdynamic", "-O1 -fuse-ld=gold",
         "-O1 -fuse-ld=gold -rdynamic", "-O1 -Wl,-z,pack-relative-relocs", "-O1 -shared -fPIC", "-O1 -fcf-protection=full -Wl,-z,ibt")
# As Debian has them: bash is stripped and exports each function, the others are built by scripts/real.
REAL = ["/bin/bash", *(f"{ROOT}/.cache/real/programs/{x}" for x in (
    "lua/lua", "memcached/memcached", "redis/redis", "sqlite/sqlite", "nginx/nginx"))]


@pytest.mark.parametrize("flags", SIZES)
def test_size_is_at_most_64_bytes_a_function(built: Path, flags: str) -> None:
    """All that a file is larger, headers and what alignment takes included, divided by its functions.

    An exported function's second dynamic symbol is in it, too."""
    source = built / "size.c"
    source.write_text(many(4000))
    i = instrument(compiled(built / f"size{flags.replace(' ', '')}", "small.c", "-w", source, *flags.split()))
    assert i.result.functions > 4000
    _at_most_64_bytes(i)
    if "-shared" not in flags:
        assert run(i.path) == run(i.original)


@pytest.mark.parametrize("path", REAL, ids=[Path(x).name for x in REAL])
def test_size_of_real_programs_is_at_most_64_bytes_a_function(tmp_path: Path, change: Path, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    shutil.copy(path, tmp_path / "program")
    _at_most_64_bytes(instrument(tmp_path / "program"))


def _at_most_64_bytes(i: Instrumented) -> None:
    before, after = (sum(p.memsz for p in loads(Binary.read(x))) for x in (i.original, i.path))
    assert (after - before) / i.result.functions <= 64
    for stripped in (False, True):
        if stripped:
            for x in (i.original, i.path):
                tool("strip", x)
        assert (i.path.stat().st_size - i.original.stat().st_size) / i.result.functions <= 64, stripped


RUN_PATHS = [("-Wl,-rpath,/somewhere", "(RUNPATH)", "/somewhere:$ORIGIN"),
             ("-Wl,-rpath,/somewhere -Wl,--disable-new-dtags", "(RPATH)", "/somewhere:$ORIGIN"),
             ("-Wl,-rpath,$ORIGIN/lib", "(RUNPATH)", "$ORIGIN/lib:$ORIGIN"),
             ("-Wl,-rpath,/a:$ORIGIN:/b", "(RUNPATH)", "/a:$ORIGIN:/b"),
             ("-Wl,-rpath,${ORIGIN} -fuse-ld=lld", "(RUNPATH)", "${ORIGIN}"),
             ("-Wl,-rpath,/somewhere -fuse-ld=lld", "(RUNPATH)", "/somewhere:$ORIGIN")]


@pytest.mark.parametrize(("flags", "tag", "value"), RUN_PATHS, ids=[x[0] for x in RUN_PATHS])
def test_run_path_is_extended(tmp_path: Path, change: Path, flags: str, tag: str, value: str) -> None:
    i = instrument(compiled(tmp_path / "program", "small.c", *flags.split()))
    text = tool("readelf", "-dW", i.path)
    paths = [x for x in text.splitlines() if "PATH)" in x]
    assert len(paths) == 1 and tag in paths[0] and paths[0].endswith(f"[{value}]")
    assert run(i.path) == "100006 100010 -\n"


def test_unwinders_find_a_row_for_the_stubs(built: Path) -> None:
    for flags in ("-O2", "-O2 -no-pie -Wl,--emit-relocs", "-O2 -fuse-ld=gold", "-O2 -fuse-ld=lld"):
        program = compiled(built / f"unwind{flags.replace(' ', '')}", "small.c", "-DUNWIND", *flags.split(), "-lgcc_s")
        i = instrument(program)
        d = i.descriptor
        leaf = next(n for n, f in enumerate(d.functions) if f.name == "leaf")
        assert run(i.path).splitlines()[1] == f"row 1, {d.stub(leaf) - d.stubs} bytes before the pointer"


OWN = ["-O2 -fuse-ld=lld", "-O2 -fuse-ld=lld -no-pie", "-O0 -fuse-ld=lld -fPIC -Wl,--no-relax", "-O2"]


@pytest.mark.parametrize("flags", OWN)
def test_a_program_that_reads_its_own_dynamic_section_sees_what_the_loader_wrote(built: Path, flags: str) -> None:
    out = built / f"own{flags.replace(' ', '')}"
    i = instrument(compiled(out, "small.c", "-DOWN_PATH", *flags.split(), cc="clang"))
    assert run(i.path) == run(i.original) == "100006 100010 -\ndebug 1\n"


def test_the_mode_is_kept_and_the_input_untouched(tmp_path: Path, change: Path) -> None:
    program = compiled(tmp_path / "program", "small.c")
    data = program.read_bytes()
    for mode in (0o755, 0o500, 0o711):
        program.chmod(mode)
        i = instrument(program)
        assert stat.S_IMODE(i.path.stat().st_mode) == mode
    assert program.read_bytes() == data
    assert sorted(os.listdir(i.path.parent)) == ["libpsu_shim.so", "program"]


def test_a_running_program_keeps_its_file(tmp_path: Path, change: Path) -> None:
    program = compiled(tmp_path / "program", "small.c")
    i = instrument(program)
    old = i.path.stat().st_ino, i.result.shim.stat().st_ino
    instrument(program)
    assert i.path.stat().st_ino != old[0] and i.result.shim.stat().st_ino == old[1]


def test_what_was_appended_to_the_file_stays_at_its_end(tmp_path: Path, change: Path) -> None:
    program = compiled(tmp_path / "program", "small.c")
    program.write_bytes(program.read_bytes() + b"an archive")
    i = instrument(program)
    assert i.path.read_bytes().endswith(b"an archive") and run(i.path) == run(program)


def test_a_moved_entry_with_a_short_jump_of_its_own(tmp_path: Path) -> None:
    """The copy is longer than what moved: its 2-byte jump has the long form."""
    source = tmp_path / "grown.c"
    source.write_text("""#include <stdio.h>
        __asm__(".text\\n.type near, @function\\nnear: test %rdi, %rdi\\n je grown\\n mov $1, %eax\\n ret\\n.size near, . - near\\n"
                ".type grown, @function\\ngrown: cmp $3, %esi\\n je 1f\\n mov $5, %eax\\n ret\\n"
                "1: mov $7, %eax\\n ret\\n.size grown, . - grown\\n");
        int near(long, int), grown(long, int);
        int main(void) { printf("%d %d %d %d %d\\n", near(1, 3), near(0, 3), near(0, 4), grown(0, 3), grown(0, 2)); }""")
    i = instrument(compiled(tmp_path / "grown", source))
    function = next(f for f in i.descriptor.functions if f.name == "grown")
    assert function.flags & descriptor.DETOURED
    assert run(i.path) == "1 7 5 7 5\n"


def test_gdb_sees_functions_stubs_and_callers(built: Path) -> None:
    i = instrument(compiled(built / "gdb", "ways.c", "target.c", "-Os", "-g", "-pthread", "-rdynamic"),
                   stub_symbols=True)
    detoured = [f.name for f in i.descriptor.functions if f.flags & descriptor.DETOURED]
    assert "s_target" in detoured                     # a short jump leads to it: see conditional tail calls in ways.c
    text = tool("gdb", "-batch", "-nx", "-ex", "break target", "-ex", "run", "-ex", "bt",
                "-ex", "break s_target.psu", "-ex", "break s_target.psu.entry", "-ex", "delete 1",
                "-ex", "continue", "-ex", "bt", "-ex", "continue", "-ex", "stepi", "-ex", "bt", i.path)
    frames = [x.split(" (")[0].split(" in ")[-1].removeprefix("#0  ") for x in text.splitlines() if x.startswith("#")]
    assert frames == ["target", "direct", "all", "main", "s_target[psu]", "s_direct", "all", "main",
                      "s_target.psu[entry]", "s_direct", "all", "main"]


def test_gdb_unwinds_through_stubs_of_a_stripped_program(built: Path) -> None:
    i = instrument(compiled(built / "gdb-stripped", "small.c", "-O2", "-no-pie", "-Wl,--emit-relocs"))
    d = i.descriptor
    leaf = next(n for n, f in enumerate(d.functions) if f.name == "leaf")
    main = next(f for f in d.functions if f.name == "main")
    tool("strip", i.path)
    text = tool("gdb", "-batch", "-nx", "-ex", f"break *{d.stub(leaf):#x}", "-ex", "run", "-ex", "bt", i.path)
    frames = [x for x in text.splitlines() if x.startswith("#")]
    assert frames[0].startswith(f"#0  {d.stub(leaf):#018x}")
    assert main.address < int(frames[1].split()[1], 16) <= main.address + main.size
    assert any("libc" in x for x in frames)
