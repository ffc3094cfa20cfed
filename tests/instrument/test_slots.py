"""How the slots of a position-independent file come to hold run-time addresses: by one function, or by relocations."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from crossing import UNDER, cross_compiled
from rewriting import Instrumented, compiled, instrument, run, tool

from psu_bin.elf import Binary

pytest_plugins = ["rewriting", "crossing"]

IFUNC = ("static int one(void) { return 1; }\nstatic int (*choose(void))(void) { return one; }\n"
         "int chosen(void) __attribute__((ifunc(\"choose\")));\n")
IN_CODE = "__asm__(\".text\\nin_code: .quad in_code\\n\");\n"


def relocations(i: Instrumented) -> tuple[int, int]:
    """(how many relocations more than before, how many IRELATIVE ones)."""
    before, after = (tool("readelf", "-rW", x) for x in (i.original, i.path))
    return after.count("R_X86_64_") - before.count("R_X86_64_"), after.count("R_X86_64_IRELATIVE")


RESOLVED = ["-O2", "-O2 -Wl,-z,now -Wl,-z,relro", "-O2 -fuse-ld=gold", "-O2 -fuse-ld=lld", "-O2 -fcf-protection=full -Wl,-z,ibt",
            "-O2 -Wl,-z,nocombreloc", "-O2 -rdynamic -Wl,--hash-style=both"]


@pytest.mark.parametrize("flags", RESOLVED)
def test_a_slot_needs_no_relocation(built: Path, flags: str) -> None:
    i = instrument(compiled(built / f"slots{flags.replace(' ', '')}", "small.c", *flags.split()))
    assert relocations(i) == (0, 1)
    assert run(i.path) == run(i.original) == "100006 100010 -\n"
    for bound in ("LD_BIND_NOW", "LD_BIND_NOT"):
        assert run(i.path, env={bound: "1"}) == "100006 100010 -\n"
    tool("ldd", "-r", i.path)


ROWS = {"resolvers of its own": (IFUNC + "int use(void) { return chosen(); }\n", "gcc", "", 1),
        "a resolver for others": (IFUNC, "gcc", "", 0), "relocated code": (IN_CODE, "gcc", "-Wl,-z,notext", 0),
        "another C library": ("", "musl-gcc", "", 0)}


@pytest.mark.parametrize("why", ROWS)
def test_slots_of_other_files_have_relocations(built: Path, why: str) -> None:
    added, cc, flags, indirect = ROWS[why]
    source = built / "rows.c"
    source.write_text(added)
    i = instrument(compiled(built / f"rows {why}", "small.c", source, "-O2", "-w", *flags.split(), cc=cc))
    assert relocations(i) == (i.result.functions, indirect)
    assert run(i.path) == run(i.original) == "100006 100010 -\n"


@pytest.mark.parametrize(("compiler", "flags"), [
    (compiled, "-O2"), (compiled, "-O2 -fuse-ld=lld"), (cross_compiled, "-O2"),
    (cross_compiled, "-O2 -mbranch-protection=standard")], ids=["ld", "lld", "aarch64", "aarch64 bti"])
def test_the_relocation_that_is_taken_may_be_a_pointer_to_a_function(request: pytest.FixtureRequest, tmp_path: Path,
                                                                      compiler: object, flags: str) -> None:
    """All pointers in the data lead to functions, so the one whose relocation calls the resolver does."""
    under = UNDER if compiler is cross_compiled else ()
    preload = request.getfixturevalue("cross") / "change.so" if under else request.getfixturevalue("change")
    (tmp_path / "all.c").write_text(
        "int printf(const char *, ...);\nvoid psu_test_change(const char *) __attribute__((weak));\n"
        "__attribute__((noinline)) int one(int x) { return x + 1; }\n"
        "__attribute__((noinline)) int two(int x) { return x + 2; }\n"
        "int (*volatile pointers[])(int) = {one, one, one, one};\n"
        "int main(void) {\n    if (psu_test_change)\n        psu_test_change(\"one\");\n"
        "    for (int i = 0; i < 4; i++)\n        printf(\"%d \", pointers[i](10));\n    return 0;\n}\n")
    i = instrument(compiler(tmp_path / "all", tmp_path / "all.c", *flags.split()))     # type: ignore[operator]
    b, before = i.binary, Binary.read(i.original)
    taken = [n for n, r in enumerate(b.rela) if r["r_type"] != before.rela["r_type"][n]]
    assert len(taken) == 1 and before.rela["r_addend"][taken[0]] in {f.address for f in i.descriptor.functions}
    assert run(i.path, under=under) == "11 11 11 11 "
    assert run(i.path, env=i.changes({"one": "two"}), preload=preload, under=under) == "12 12 12 12 "


def test_functions_that_run_before_all_constructors_find_their_slots(tmp_path: Path, change: Path) -> None:
    """A library's constructor calls what the program exports; .preinit_array comes even before that."""
    (tmp_path / "early.c").write_text(
        "int printf(const char *, ...);\nint exported(int);\n"
        "__attribute__((constructor)) static void begin(void) { printf(\"constructor %d\\n\", exported(1)); }\n"
        "int late(int x) { return exported(x); }\n")
    library = compiled(tmp_path / "libearly.so", tmp_path / "early.c", "-shared", "-fPIC", "-O2",
                       "-Wl,-soname,libearly.so")
    (tmp_path / "main.c").write_text(
        "int printf(const char *, ...);\nint late(int);\n__attribute__((noipa)) int exported(int x) { return x + 40; }\n"
        "int (*volatile pointer)(int) = exported;\n"
        "static void first(void) { printf(\"first %d\\n\", pointer(0)); }\n"
        "__attribute__((section(\".preinit_array\"), used)) static void (*list[])(void) = {first};\n"
        "int main(void) { printf(\"main %d\\n\", late(2)); return 0; }\n")
    i = instrument(compiled(tmp_path / "main", tmp_path / "main.c", "-O2", "-rdynamic", library))
    assert relocations(i)[1] == 1
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert run(i.path, env=env) == run(i.original, env=env) == "first 40\nconstructor 41\nmain 42\n"


def test_a_library_that_is_loaded_late_and_twice(tmp_path: Path, change: Path) -> None:
    (tmp_path / "late.c").write_text("__attribute__((noipa)) int value(int x) { return x + 1; }\n"
                                     "int (*pointer)(int) = value;\nint call(int x) { return pointer(x); }\n"
                                     "int puts(const char *);\nvoid hello(void) { puts(\"hello\"); }\n")
    i = instrument(compiled(tmp_path / "late.so", tmp_path / "late.c", "-shared", "-fPIC", "-O2"))
    assert relocations(i)[1] == 1
    (tmp_path / "user.c").write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\nint main(int argc, char **argv) {\n"
        "    for (int i = 0; i < 4; i++) {\n"
        "        void *h = i < 2 ? dlopen(argv[1], RTLD_LAZY) : dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW);\n"
        "        printf(\"%d \", h ? ((int (*)(int))dlsym(h, \"call\"))(i) : -1);\n        if (i < 2) dlclose(h);\n    }\n}\n")
    user = compiled(tmp_path / "user", tmp_path / "user.c", "-O1", "-w")
    assert run(user, str(i.original)) == run(user, str(i.path)) == "1 2 3 4 "


@pytest.mark.skipif(not shutil.which("gdb"), reason="no gdb here")
def test_the_function_that_relocates_the_slots_has_a_name_and_an_unwind_row(built: Path) -> None:
    i = instrument(compiled(built / "slots-gdb", "small.c", "-O2"))
    done = subprocess.run(["gdb", "-batch", "-nx", "-ex", "set breakpoint pending on", "-ex", "break *psu_relocate",
                           "-ex", "starti", "-ex", "delete", "-ex", "hbreak psu_relocate", "-ex", "continue", "-ex", "stepi",
                           "-ex", "bt 2", i.path], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "DEBUGINFOD_URLS": ""})
    assert "in psu_relocate ()" in done.stdout, done.stdout + done.stderr
