"""Texts of /proc: names that programs choose go through unharmed, and what the kernel does not write is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psu_bin.attach import proc
from psu_bin.errors import PsuError

names = st.binary(min_size=1, max_size=15).filter(lambda b: b"\0" not in b and b"\\012" not in b)


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@given(st.lists(names.map(lambda n: b"/" + n).filter(lambda n: not n.endswith(b" (deleted)")), max_size=4), st.booleans())
def test_paths_of_mappings(paths: list[bytes], deleted: bool) -> None:
    """As the kernel writes them: padded, line feeds as \\012, all other bytes as they are."""
    lines = [b"%08x-%08x r-xp 00001000 fe:00 %d" % (n << 12, n + 1 << 12, n) for n in range(len(paths))]
    raw = b"".join(line.ljust(72) + b" " + p.replace(b"\n", b"\\012") + (b" (deleted)" if deleted else b"") + b"\n"
                   for line, p in zip(lines, paths))
    found = proc.maps(text(raw + b"7000-8000 rw-p 00000000 00:00 0 \n"), "maps")
    assert [m.path.encode("utf-8", "surrogateescape") for m in found] == [*paths, b""]
    assert [(m.start, m.offset, m.inode, m.deleted) for m in found[:-1]] == [
        (n << 12, 0x1000, n, deleted) for n in range(len(paths))]


@given(names)
def test_names_of_processes(name: bytes) -> None:
    """The kernel escapes line feeds and backslashes of names in status, nothing in stat."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    fields = proc.status(text(b"Name:\t" + escaped + b"\nState:\tS (sleeping)\nTgid:\t7\nNSpid:\t7\t3\n"))
    assert (fields["State"], fields["Tgid"]) == ("S (sleeping)", "7")
    assert proc.number(fields, "NSpid", "status") == 3
    raw = b"7 (" + name + b") S " + b" ".join(b"%d" % n for n in range(4, 53)) + b"\n"
    assert proc.stat(text(raw), "stat") == proc.Stat("S", 22, 28, 47)


def test_this_process() -> None:
    where = f"/proc/{os.getpid()}/"
    assert any(m.path == str(Path("/proc/self/exe").readlink()) for m in proc.maps(proc.read(where + "maps"), where))
    assert proc.stat(proc.read(where + "stat"), where).state == "R"
    waiting = proc.syscall(proc.read(where + "syscall"), where)         # it is reading this
    assert waiting and waiting.number >= 0 and waiting.stack_pointer and waiting.program_counter


@pytest.mark.parametrize("what", ["", "4711 (a) S 1 2", "4711 (a) S" + " x" * 50, "4711 (a) 12" + " 1" * 50, "S" + " 1" * 50 + ")"])
def test_no_stat(what: str) -> None:
    with pytest.raises(PsuError, match="^/proc/1/stat: is not what the kernel writes: "):
        proc.stat(what, "/proc/1/stat")


@pytest.mark.parametrize("what", ["x", "1000-2000", "1000-2000 r-xp 0 00:00 x", "1000-2000 rwx 0 00:00 0", "-1000-2000 r-xp 0 00:00 0",
                                  "1000-20000000000000000 r-xp 0 00:00 0"])
def test_no_maps(what: str) -> None:
    with pytest.raises(PsuError, match="^/proc/1/maps: is not what the kernel writes: "):
        proc.maps("1000-2000 r-xp 0 00:00 0\n" + what + "\n", "/proc/1/maps")


def test_syscall() -> None:
    assert proc.syscall("0 0x1 0x2 0x3 0x4 0x5 0x6 0x7f00 0x5500\n", "") == (0, 0x7F00, 0x5500, 1)
    assert proc.syscall("running\n", "") is None
    assert proc.syscall("-1 0x7f00 0x5500\n", "") == (-1, 0x7F00, 0x5500, 0)
    for what in ("", "0", "x 0x1 0x2", "0 0x1", "99999999999999 0x1 0x2"):
        with pytest.raises(PsuError, match="is not what the kernel writes"):
            proc.syscall(what, "/proc/1/task/1/syscall")


def test_numbers_of_status() -> None:
    fields = proc.status("SigPnd:\t00000000000000ff\nUid:\t0 x\nEmpty:\t\n")
    assert proc.number(fields, "SigPnd", "", base=16) == 255
    assert proc.number(fields, "Seccomp", "", default="0") == 0
    for name in ("Uid", "Empty", "Absent", "SigPnd"):
        with pytest.raises(PsuError, match="is not what the kernel writes"):
            proc.number(fields, name, "/proc/1/status")


def test_flags_of_mappings() -> None:
    """Read no further than the last mapping that is asked for."""
    def lines():
        for start, flags in ((0x1000, b"rd ex bt"), (0x2000, b"rd wr bt"), (0x3000, b"rd ex bta"), (0x4000, b"rd ex bt")):
            yield b"%x-%x r-xp 00000000 00:00 1   /a b\n" % (start, start + 0x1000)
            yield b"Rss:  4 kB\n"
            yield b"VmFlags: " + flags + b" \n"
        yield b"5000-6000 rw-p 00000000 00:00 0 \n"
        raise AssertionError("read on")
    assert proc.flagged(lines(), "bt", {0x1000, 0x3000, 0x4000}) == {0x1000, 0x4000}
    assert proc.flagged(lines(), "bt", ()) == set()
