"""Runs testprogs/torture, and makes its versions: Torture.

The program and the test share a page of memory.  Before each update the test says there which versions may run from now
on, and after it which may no more; the program's threads check every call against that.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import pytest
from conftest import Lab, Running

BASE = 0x5E000000           # as in main.c
PLACEHOLDER = 0x5EED1234    # as in patch.c


class Torture:
    """One running testprogs/torture.  `low` and `high` are versions: 0 the original, else of a patch object."""

    def __init__(self, lab: Lab, program: Path, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.lab = lab
        path = lab.folder / f"page{len(lab.started)}"
        path.write_bytes(bytes(4096))
        with path.open("r+b") as f:
            self.page = mmap.mmap(f.fileno(), 4096)
        self.words = memoryview(self.page).cast("Q")
        self.stores = 0
        self.running: Running = lab.start(program, path, *arguments, env=env)
        self.running.expect("^ready$")
        self.pid = self.running.pid

    def limits(self, low: int, high: int, up: bool = True) -> None:
        """From now on calls may run versions low to high, and go towards higher ones (up) or lower ones."""
        self.stores += 1
        self.words[0] = low | high << 24 | up << 48 | (self.stores & 0x7FFF) << 49

    @property
    def calls(self) -> int:
        return self.words[2]

    @property
    def threads(self) -> int:
        return self.words[3]

    @property
    def signals(self) -> int:
        return self.words[4]

    @property
    def naps(self) -> int:
        return self.words[5]

    def check(self) -> None:
        """The program runs and has found nothing wrong so far."""
        if not self.running.alive():
            pytest.fail(f"the program ended with {self.running.process.wait()}; its lines: {self.running.seen}")
        if self.words[6]:
            pytest.fail(self.page[56:256].split(b"\0")[0].decode())

    def stop(self) -> None:
        """Let it end by itself, which must succeed."""
        self.check()
        self.words[1] = 1
        self.running.expect("^done$")
        assert self.running.process.wait(30) == 0
        if self.words[6]:
            pytest.fail(self.page[56:256].split(b"\0")[0].decode())


def numbered(template: bytes, version: int) -> bytes:
    """The object file of patch.c with another version number in it."""
    old, new = struct.pack("<I", PLACEHOLDER), struct.pack("<I", BASE + version)
    assert old in template
    return template.replace(old, new).replace(b"v%08x" % PLACEHOLDER, b"v%08x" % (BASE + version))
