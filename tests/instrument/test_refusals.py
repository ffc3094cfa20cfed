"""What instrument refuses: one error that names the file and the reason, and nothing is written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import compile as run_compiler
from rewriting import compiled, instrument, run

from psu_bin.errors import PsuError
from psu_bin.instrument import driver

pytest_plugins = ["rewriting"]


@pytest.fixture(scope="module")
def good(built: Path) -> Path:
    return compiled(built / "refusals", "small.c", "-O2")


def refused(path: Path, output: Path | None = None, **how: object) -> PsuError:
    """The refusal; also checks that nothing appeared."""
    folder = (output or path).parent
    before = sorted(os.listdir(folder))
    with pytest.raises(PsuError) as caught:
        driver.instrument(path, output, **{"include": (), "exclude": (), "debug_file": None, **how})  # type: ignore
    assert sorted(os.listdir(folder)) == before
    return caught.value


def file(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "bad").write_bytes(data)
    return tmp_path / "bad"


def test_not_an_elf_file(tmp_path: Path) -> None:
    assert "not an ELF file" in str(refused(file(tmp_path, b"#!/bin/sh\n")))
    assert "not an ELF file" in str(refused(file(tmp_path, b"")))
    assert "cannot be read" in str(refused(tmp_path / "absent"))
    assert "cannot be read" in str(refused(tmp_path))


def test_other_kinds_of_file(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    assert "32-bit" in str(refused(file(tmp_path, data[:4] + b"\1" + data[5:])))
    assert "big-endian" in str(refused(file(tmp_path, data[:5] + b"\2" + data[6:])))
    assert "another architecture" in str(refused(file(tmp_path, data[:18] + b"\xf3\0" + data[20:])))
    assert "core dump" in str(refused(file(tmp_path, data[:16] + b"\4\0" + data[18:])))
    run_compiler("-c", Path(__file__).parent / "programs" / "small.c", "-o", tmp_path / "small.o")
    assert "relocatable object" in str(refused(tmp_path / "small.o"))


@pytest.mark.parametrize("flags", [("-static",), ("-static-pie",)])
def test_statically_linked(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert "statically linked" in str(refused(compiled(tmp_path / "program", "small.c", *flags)))


def test_instrumented_already(tmp_path: Path, good: Path, change: Path) -> None:
    i = instrument(good, tmp_path / "once")
    assert "instrumented already" in str(refused(i.path, tmp_path / "twice"))
    assert "own shim" in str(refused(i.result.shim, tmp_path / "shim"))


def test_output_is_the_input(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    link = tmp_path / "link"
    os.link(good, link)
    (tmp_path / "symbolic").symlink_to(good)
    for output in (good, link, tmp_path / "symbolic"):
        assert "is the input" in str(refused(good, output))
    assert good.read_bytes() == data


def test_output_cannot_be_written(tmp_path: Path, good: Path) -> None:
    assert "is a folder" in str(refused(good, tmp_path))
    with pytest.raises(PsuError) as caught:
        driver.instrument(good, tmp_path / "absent" / "out", (), (), None)
    assert "cannot be written" in str(caught.value)
    assert "is the name of the shim" in str(refused(good, tmp_path / "libpsu_shim.so"))


def test_what_is_in_the_place_of_output_or_shim_is_not_replaced(tmp_path: Path, good: Path, change: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in str(refused(good, tmp_path / "pipe"))
    assert "is not a regular file" in str(refused(good, Path("/dev/null")))
    for make in (os.mkfifo, os.mkdir, lambda p: p.symlink_to("nowhere")):
        folder = tmp_path / make.__name__.strip("<>")
        folder.mkdir()
        make(folder / "libpsu_shim.so")
        assert "the shim must be there" in str(refused(good, folder / "out"))
    other = bytearray(good.read_bytes())
    other[18:20] = (183 if other[18] == 62 else 62).to_bytes(2, "little")
    (tmp_path / "libpsu_shim.so").write_bytes(other)
    assert "of another architecture" in str(refused(good, tmp_path / "out"))
    assert (tmp_path / "libpsu_shim.so").read_bytes() == other


def test_no_section_headers(tmp_path: Path, good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[40:48] = bytes(8)
    assert "malformed" in str(refused(file(tmp_path, bytes(data)))), "a number of sections and no table"
    data[60:64] = bytes(4)
    assert "no function symbols" in str(refused(file(tmp_path, bytes(data))))


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="needs root")
def test_a_file_that_never_ends() -> None:
    """Depending on what was read from it before, there is nothing yet or something that is no program."""
    with pytest.raises(PsuError, match="cannot be read|not an ELF file"):
        driver.analyze(Path("/proc/kmsg"), (), None)


def test_no_function_to_update(tmp_path: Path, good: Path) -> None:
    assert "no function matches" in str(refused(good, tmp_path / "out", include=("absent",)))
    assert "no function to update" in str(refused(good, tmp_path / "out", exclude=("*",)))


def test_too_large_to_reach(tmp_path: Path) -> None:
    big = tmp_path / "big.c"
    big.write_text("char big[3ul << 30]; int use(long i) { return big[i]; }")
    program = compiled(tmp_path / "program", "small.c", big, "-O1", "-mcmodel=medium", "-fPIE", "-pie")
    assert run(program) == "100006 100010 -\n"
    assert "too large" in str(refused(program))


@pytest.mark.skipif(not (shutil.which("clang") and shutil.which("ld.lld")), reason="clang or lld is not installed")
@pytest.mark.parametrize("flags", [("-flto",), ("-flto=thin",)], ids=lambda f: " ".join(f))
def test_a_program_that_checks_function_pointers(tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = compiled(tmp_path / "program", "small.c", "-O1", *flags, "-fuse-ld=lld", "-fvisibility=default", "-rdynamic",
                       "-fsanitize=cfi-icall", cc="clang")
    assert "cfi-icall" in str(refused(program))
    subprocess.run(["strip", program], check=True)
    assert "cfi-icall" in str(refused(program))


def test_every_cut_is_refused(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    for end in [*range(0, 1000, 61), *range(1000, len(data), 1733)]:
        refused(file(tmp_path, data[:end]))


def test_what_code_refers_to_does_not_move(tmp_path: Path, change: Path) -> None:
    source = tmp_path / "mine.c"
    note = ('static const struct { int n, d, t; char name[4]; int value; } note'
            ' __attribute__((section(".note.mine"), used, aligned(4))) = {4, 4, 1, "ABC", 7};')
    source.write_text(note + "__attribute__((constructor)) static void use(void) { __asm__(\"\" : : \"r\"(&note)); }")
    program = compiled(tmp_path / "program", "small.c", source, "-O2")
    assert run(program) == "100006 100010 -\n"
    error = str(refused(program))
    assert "no room for two more program headers" in error and "code refers to it" in error
    source.write_text(note)
    program = compiled(tmp_path / "program", "small.c", source, "-O2")
    assert run(instrument(program).path) == run(program)
