"""A file whose tables grew: what they left at the end of the first segment is taken out, and nothing else.

The program is as a server that loads plugins: every function is exported, and pointers to all of them are in tables.
Then .dynsym moves to a new segment, and leaves more than what else moves can fill.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rewriting import Instrumented, compiled, instrument

from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import cut

pytest_plugins = ["rewriting"]

COUNT = 3000
MAIN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int sum(void);

int main(void) {
    int (*f)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "function_of_the_program_17");
    Dl_info info;
    int named = dladdr((void *)f, &info) && !strcmp(info.dli_sname, "function_of_the_program_17");
    printf("%d %d %d\\n", sum(), f ? f(1) : -1, named);
    return 0;
}
"""


def source(folder: Path) -> Path:
    """`COUNT` functions in two tables of pointers, and their sum for 1."""
    body = [f"__attribute__((noinline)) int function_of_the_program_{i}(int x) {{ return x + {i}; }}" for i in range(COUNT)]
    names = ", ".join(f"function_of_the_program_{i}" for i in range(COUNT))
    body += [f"int (*table[])(int) = {{ {names} }};", f"int (*const more[])(int) = {{ {names}, {names} }};",
             "int sum(void) {\n    int out = 0;\n    for (int i = 0; i < (int)(sizeof table / sizeof *table); i++)\n"
             "        out += table[i](1) + more[i](1);\n    return out;\n}"]
    path = folder / "many.c"
    path.write_text("\n".join(body))
    return path


@pytest.fixture(scope="module")
def program(built: Path) -> Instrumented:
    folder = built / "cut"
    folder.mkdir()
    (folder / "main.c").write_text(MAIN)
    made = compiled(folder / "program", folder / "main.c", source(folder), "-O1", "-rdynamic", "-fcf-protection=none", "-ldl")
    return instrument(made)


@pytest.fixture(scope="module")
def library(built: Path) -> tuple[Path, Instrumented]:
    """A program, and its library with all the functions."""
    folder = built / "cut-library"
    folder.mkdir()
    (folder / "main.c").write_text(MAIN)
    made = compiled(folder / "libmany.so", source(folder), "-O1", "-shared", "-fPIC", "-fcf-protection=none",
                    "-Wl,-soname,libmany.so")
    user = compiled(folder / "user", folder / "main.c", made, "-Wl,-rpath,$ORIGIN", "-ldl")
    return user, instrument(made)


def expected() -> str:
    return f"{2 * sum(1 + i for i in range(COUNT))} 18 1\n"


def run(path: Path, **environment: str) -> str:
    return subprocess.run([path], capture_output=True, text=True, check=True, timeout=60, env=environment).stdout


def test_the_file_grows_by_less_than_64_bytes_a_function(program: Instrumented) -> None:
    before, after = Binary.read(program.original), program.binary
    first, now = cut.first_segment(before), cut.first_segment(after)
    assert first and now and now.filesz + 4096 < first.filesz, "nothing was taken out: the test shows nothing"
    assert len(after.data) - len(before.data) < 64 * program.result.functions
    assert cut.find(after) is None
    assert run(program.original) == run(program.path) == expected()


def test_a_library_that_was_cut_is_loaded(library: tuple[Path, Instrumented]) -> None:
    user, many = library
    before, after = cut.first_segment(Binary.read(many.original)), cut.first_segment(many.binary)
    assert before and after and after.filesz + 4096 < before.filesz
    assert run(user) == expected()
    assert run(user, LD_LIBRARY_PATH=str(many.path.parent)) == expected()
    assert "libpsu_shim.so" in run(user, LD_LIBRARY_PATH=str(many.path.parent), LD_TRACE_LOADED_OBJECTS="1")


def test_tools_read_it_and_strip_keeps_it_working(program: Instrumented, tmp_path: Path) -> None:
    said = subprocess.run(["readelf", "-aW", program.path], capture_output=True, text=True, check=True)
    assert "Warning" not in said.stderr and "Error" not in said.stderr, said.stderr
    found = subprocess.run(["gdb", "-q", "-batch", "-ex", "break function_of_the_program_17", "-ex", "run", "-ex", "backtrace 2",
                            program.path], capture_output=True, text=True, timeout=120).stdout
    assert "function_of_the_program_17" in found.split("Breakpoint 1,")[-1] and "#1" in found, found
    bare = tmp_path / program.path.name
    (tmp_path / "libpsu_shim.so").symlink_to(program.path.parent / "libpsu_shim.so")
    subprocess.run(["strip", "-o", bare, program.path], check=True)
    assert run(bare) == expected()


def test_what_is_not_free_is_not_taken_out(program: Instrumented) -> None:
    """The file before the cut, as cut.find sees it: with a byte in what would be taken out, nothing is."""
    after = program.binary
    first = cut.first_segment(after)
    assert first
    whole = widened(after, 3 * 4096)
    found = cut.find(whole)
    assert found and found.size == 3 * 4096 and cut.shorten(whole) == after.data
    for at in (found.start, found.start + found.size // 2):
        data = bytearray(whole.data)
        data[at] = 1
        busy = Binary(bytes(data), "busy")
        assert cut.find(busy) is None and cut.shorten(busy) == busy.data


def widened(binary: Binary, size: int) -> Binary:
    """The opposite of a cut: `size` bytes more at the end of the first segment."""
    first = cut.first_segment(binary)
    assert first
    data = bytearray(binary.data)
    at = first.filesz
    headers = [(40, binary.shoff)]
    headers += [(binary.phoff + 56 * p.index + 8, p.offset) for p in binary.segments]
    headers += [(binary.shoff + 64 * s.index + 24, s.offset) for s in binary.sections]
    for where, offset in headers:
        data[where:where + 8] = (offset + size * (offset > at)).to_bytes(8, "little")
    for where in (32, 40):
        where += binary.phoff + 56 * first.index
        data[where:where + 8] = (first.filesz + size).to_bytes(8, "little")
    data[at:at] = bytes(size)
    return Binary(bytes(data), "widened")


@pytest.mark.parametrize("what", ["the end", "too much", "the offsets"])
def test_a_wrong_cut_is_noticed(program: Instrumented, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = widened(program.binary, 3 * 4096)
    right = cut.find(whole)
    assert right
    wrong = {"the end": replace(right, start=right.start - 8), "too much": replace(right, size=right.size + 4096),
             "the offsets": replace(right, size=right.size - 8)}[what]
    monkeypatch.setattr(cut, "find", lambda _: wrong)
    with pytest.raises(PsuError, match="internal defect"):
        cut.shorten(whole)
