"""What `psu-bin instrument` and `psu-bin analyze` refuse: one line on standard error, status 1, and nothing is written.

Run through cli.main, as the command is, but in this process: start-up would be most of the time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from conftest import compile as run_compiler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psu_bin import cli, elf
from psu_bin.arch import EM_AARCH64
from psu_bin.elf import Binary

SOURCE = """
#include <stdio.h>
__attribute__((noipa)) int leaf(int x) { return 5 * x; }
__attribute__((noipa)) int middle(int x) { return leaf(x) + 1; }
int (*pointer)(int) = leaf;
int main(int argc, char **argv) { (void)argv; printf("%d %d\\n", middle(argc), pointer(2)); return 0; }
"""
COMMANDS = ("instrument", "analyze")


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


class Shell:
    """Runs psu-bin in a folder of its own and sees what it leaves there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def psu_bin(self, *arguments: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["psu-bin", *map(str, arguments)])
        self.capsys.readouterr()
        status = 0
        before = signal.getsignal(signal.SIGPIPE)
        try:
            cli.main()
        except SystemExit as e:
            status = int(e.code or 0)
        finally:
            signal.signal(signal.SIGPIPE, before)
        out, err = self.capsys.readouterr()
        return Ended(status, out, err)

    def refused(self, *arguments: object, status: int = 1) -> str:
        """The message of a command that must fail in the documented form and leave every file as it was."""
        before = state(self.folder)
        ended = self.psu_bin(*arguments)
        assert ended.status == status, (arguments, ended)
        assert ended.err.startswith("psu-bin: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
        assert "Traceback" not in ended.err and "defect" not in ended.err and not ended.out, ended
        assert state(self.folder) == before
        return ended.err

    def file(self, data: bytes, name: str = "bad") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def state(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() and os.access(p, os.R_OK) else None
            for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small program that can be instrumented."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / "main.c").write_text(SOURCE)
    run_compiler("-O2", "-g", folder / "main.c", "-o", folder / "program")
    return (folder / "program").read_bytes()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def built(shell: Shell, *flags: str, name: str = "built") -> Path:
    shell.file(SOURCE.encode(), "main.c")
    run_compiler("-O1", *flags, shell.folder / "main.c", "-o", shell.folder / name)
    return shell.folder / name


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new):]


def test_the_good_program_is_taken(shell: Shell, good: bytes) -> None:
    """Without this, every refusal below could be for a wrong reason."""
    path = shell.file(good, "program")
    path.chmod(0o755)
    assert shell.psu_bin("analyze", path).status == 0
    assert shell.psu_bin("instrument", path).status == 0
    assert subprocess.run([shell.folder / "program.psu"], capture_output=True, check=True).stdout == b"6 10\n"


NOT_PROGRAMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "not an ELF file"),
    "a script": (lambda good: b"#!/bin/sh\nexit 0\n", "not an ELF file"),
    "four bytes": (lambda good: good[:4], "cut short"),
    "an ELF header": (lambda good: good[:64], "cut short"),
    "32-bit": (lambda good: with_bytes(good, 4, b"\1"), "32-bit"),
    "big-endian": (lambda good: with_bytes(good, 5, b"\2"), "big-endian"),
    "RISC-V": (lambda good: with_bytes(good, 18, b"\xf3\0"), "architecture"),
    "a core dump": (lambda good: with_bytes(good, 16, b"\4\0"), "core dump"),
    "no type": (lambda good: with_bytes(good, 16, b"\0\0"), "no program or shared library"),
    "no program headers": (lambda good: with_bytes(good, 56, b"\0\0"), "statically linked"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", NOT_PROGRAMS)
def test_what_is_no_program(shell: Shell, good: bytes, command: str, what: str) -> None:
    make, reason = NOT_PROGRAMS[what]
    path = shell.file(make(good))
    message = shell.refused(command, path)
    assert message.startswith(f"psu-bin: {path}: ") and reason in message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_is_refused_and_not_waited_for(shell: Shell, command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:        # one that a guest and its host share can hold none
        pipe = Path(folder, "pipe")
        os.mkfifo(pipe)
        assert "is not a regular file" in shell.refused(command, pipe)


@pytest.mark.parametrize("command", COMMANDS)
def test_other_results_of_compilers(shell: Shell, command: str) -> None:
    assert "is a relocatable object" in shell.refused(command, built(shell, "-c", name="main.o"))
    assert "statically linked" in shell.refused(command, built(shell, "-static"))
    assert "statically linked" in shell.refused(command, built(shell, "-static-pie"))
    archive = shell.folder / "lib.a"
    subprocess.run(["ar", "cr", archive, shell.folder / "main.o"], check=True)
    assert "not an ELF file" in shell.refused(command, archive)
    shell.file(b"INPUT(-lc)\n", "lib.so")
    assert "not an ELF file" in shell.refused(command, shell.folder / "lib.so")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stripped_program(shell: Shell, good: bytes, command: str) -> None:
    path = shell.file(good, "program")
    debug = shell.folder / "program.debug"
    subprocess.run(["objcopy", "--only-keep-debug", path, debug], check=True)
    subprocess.run(["strip", path], check=True)
    assert "--debug-file" in shell.refused(command, path)
    assert "is a separate debug file" in shell.refused(command, debug)
    assert "cannot be read" in shell.refused(command, path, "--debug-file", shell.folder / "absent")
    assert "not an ELF file" in shell.refused(command, path, "--debug-file", shell.file(b"text"))
    other = built(shell, "-Wl,--build-id=0x0123")
    other_machine = b"\x3e\0" if good[18] == EM_AARCH64 else b"\xb7\0"
    assert "another build" in shell.refused(command, path, "--debug-file", other)
    assert "architecture" in shell.refused(command, path, "--debug-file", shell.file(with_bytes(good, 18, other_machine)))
    # One that is stripped, too, has nothing to give.
    shell.file(path.read_bytes(), "copy")
    assert "no symbol table" in shell.refused(command, path, "--debug-file", shell.folder / "copy")
    assert shell.psu_bin(command, path, "--debug-file", debug).status == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_one_that_is_instrumented_already(shell: Shell, good: bytes, command: str) -> None:
    path = shell.file(good, "program")
    assert shell.psu_bin("instrument", path).status == 0
    assert "instrumented already" in shell.refused(command, shell.folder / "program.psu")
    subprocess.run(["strip", shell.folder / "program.psu"], check=True)
    assert "instrumented already" in shell.refused(command, shell.folder / "program.psu")


def test_patterns(shell: Shell, good: bytes) -> None:
    path = shell.file(good, "program")
    for command in COMMANDS:
        message = shell.refused(command, path, "--functions", "leaf", "--functions", "absent*")
        assert "no function matches --functions 'absent*'" in message
    assert "no function matches --exclude 'absent'" in shell.refused("instrument", path, "--exclude", "absent")
    assert "no function to update" in shell.refused("instrument", path, "--exclude", "*")
    assert "start-up code" in shell.refused("instrument", path, "--functions", "_start")


def test_the_output_cannot_be_written(shell: Shell, good: bytes) -> None:
    path = shell.file(good, "program")
    assert "is the input" in shell.refused("instrument", path, "-o", path)
    os.link(path, shell.folder / "link")
    assert "is the input" in shell.refused("instrument", path, "-o", shell.folder / "link")
    (shell.folder / "symbolic").symlink_to(path)
    assert "is the input" in shell.refused("instrument", path, "-o", shell.folder / "symbolic")
    assert "is the input" in shell.refused("instrument", shell.folder / "symbolic", "-o", path)
    assert "is a folder" in shell.refused("instrument", path, "-o", shell.folder)
    assert "cannot be written" in shell.refused("instrument", path, "-o", shell.folder / "absent" / "out")
    assert "cannot be written" in shell.refused("instrument", path, "-o", path / "out")
    (shell.folder / "loop").symlink_to("loop")
    assert "loop" in shell.refused("instrument", path, "-o", shell.folder / "loop" / "out")
    (shell.folder / "folder" / "libpsu_shim.so").mkdir(parents=True)
    assert "the shim must be there" in shell.refused("instrument", path, "-o", shell.folder / "folder" / "out")
    name = "x" * 255                           # the longest there is: no room for `.psu`
    assert "cannot be written" in shell.refused("instrument", shell.file(good, name))


def test_the_input_cannot_be_read(shell: Shell) -> None:
    for command in COMMANDS:
        assert "cannot be read" in shell.refused(command, shell.folder / "absent")
        for folder in (shell.folder, ".", "..", "/", ""):
            assert "cannot be read" in shell.refused(command, folder)
        shell.refused(command, "/dev/null")
        shell.refused(command, shell.folder / ("x" * 300))
        (shell.folder / "loop").symlink_to("loop")
        assert "cannot be read" in shell.refused(command, shell.folder / "loop")
        (shell.folder / "loop").unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_without_permission(good: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a user that owns nothing: a program of root's that is not readable, a folder that is not writable."""
    folder = tmp_path_factory.mktemp("permission")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    (folder / "secret").write_bytes(good)
    (folder / "secret").chmod(0o700)
    (folder / "open").write_bytes(good)
    (folder / "open").chmod(0o755)
    # Modules are imported by the first run: where Python is installed for one user only, others could not.
    program = ("import os, sys\nfrom pathlib import Path\nfrom psu_bin import cli\n"
               "from psu_bin.instrument import driver, image, verify\n"
               "driver.analyze(Path(sys.argv[2]), (), None)\n"
               "os.setgroups([]); os.setgid(65534); os.setuid(65534)\ncli.main()")
    for path, reason in ((folder / "secret", "cannot be read"), (folder / "open", "cannot be written")):
        done = subprocess.run([sys.executable, "-c", program, "instrument", str(path)],
                              check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1 and done.stderr.startswith("psu-bin: "), done.stderr
        assert done.stderr.count("\n") == 1 and reason in done.stderr, done.stderr
    assert sorted(os.listdir(folder)) == ["open", "secret"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_full_disk(shell: Shell, good: bytes) -> None:
    path = shell.file(good, "program")
    small = shell.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", small]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mount is not permitted")
    try:
        assert "No space left" in shell.refused("instrument", path, "-o", small / "out")
        assert os.listdir(small) == []
        subprocess.run(["mount", "-o", "remount,size=24k", small], check=True)       # room for the program alone
        assert "No space left" in shell.refused("instrument", path, "-o", small / "out")
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_wrong_usage_has_status_2(shell: Shell) -> None:
    for arguments in (("instrument",), ("instrument", "a", "b"), ("instrument", "--unknown", "a"),
                      ("analyze", "a", "-o", "b")):
        ended = shell.psu_bin(*arguments)
        assert ended.status == 2 and not ended.out and "Traceback" not in ended.err


def test_errors_with_json_leave_standard_output_empty(shell: Shell) -> None:
    for command in COMMANDS:
        assert "not an ELF file" in shell.refused(command, shell.file(b"text"), "--json")


def test_a_file_cut_anywhere(shell: Shell, good: bytes) -> None:
    """Section headers are at the end of the file, so every cut is one that can be seen."""
    ends = sorted({*range(0, 900, 97), *random.Random(3).sample(range(900, len(good)), 25), len(good) - 1})
    for end in ends:
        shell.refused("instrument", shell.file(good[:end]))


def test_a_message_is_one_line_whatever_the_name(shell: Shell) -> None:
    for name in ("two\nlines", "tab\there", "\x1b[31mred", "caf\xe9", os.fsdecode(b"not utf-8 \xff\xfe")):
        message = shell.refused("instrument", shell.file(b"text", name))
        assert "\x1b" not in message and "not an ELF file" in message


@pytest.mark.parametrize("name, offset", [("INTERP", 8), ("INTERP", 0), ("LOAD", 0), ("LOAD", 8)])
def test_segments_that_are_not_where_they_say(shell: Shell, good: bytes, name: str, offset: int) -> None:
    """A byte of p_vaddr (offset 8) or p_offset (0) changed, so that the file and memory disagree."""
    kind = {"INTERP": elf.PT_INTERP, "LOAD": elf.PT_LOAD}[name]
    header = next(64 + 56 * p.index + 8 for p in Binary(good, "good").segments if p.type == kind)
    bad = shell.file(with_bytes(good, header + offset, b"\x80"))
    assert "malformed: " in shell.refused("instrument", bad)


def test_a_name_that_is_not_utf_8_is_taken(shell: Shell, good: bytes) -> None:
    path = shell.file(good, os.fsdecode(b"prog \xff"))
    path.chmod(0o755)
    assert shell.psu_bin("instrument", path).status == 0
    assert "output" in json.loads(shell.psu_bin("instrument", path, "--json").out)
    assert subprocess.run([os.fsencode(path) + b".psu"], capture_output=True, check=True).stdout == b"6 10\n"


@settings(max_examples=150, deadline=4000, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_damage_makes_an_error_or_a_file(shell: Shell, good: bytes, data: st.DataObject) -> None:
    """Some bytes changed, most of them where something looks: refused in the documented form, or instrumented."""
    b = Binary(good, "good")
    tables = [range(16, 64 + 56 * b.phnum), range(b.shoff, len(good))]
    tables += [range(s.offset, s.offset + s.size) for s in b.sections
               if s.size and s.type != elf.SHT_NOBITS and not s.name.startswith(".debug")]
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        where = data.draw(st.sampled_from(tables), label="table")
        at = where[data.draw(st.integers(0, len(where) - 1), label="at")]
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from(
            [b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0\0\0\0\x80"])), label="new")
        bad[at:at + len(new)] = new
    path = shell.file(bytes(bad[:len(good)]))
    shutil.rmtree(shell.folder / "out", ignore_errors=True)
    (shell.folder / "out").mkdir()
    ended = shell.psu_bin("instrument", path, "-o", shell.folder / "out" / "bad.psu")
    if ended.status == 0:
        assert sorted(os.listdir(shell.folder / "out")) == ["bad.psu", "libpsu_shim.so"]
    else:
        assert ended.status == 1 and ended.err.startswith("psu-bin: ") and ended.err.count("\n") == 1, ended
        assert "Traceback" not in ended.err and "defect" not in ended.err, ended
        assert not os.listdir(shell.folder / "out")
