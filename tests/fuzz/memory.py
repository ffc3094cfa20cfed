"""Processes that are made of bytes: what attach reads from a target's memory, without a target.

Loaded is a process in which ELF files were just mapped as the loader maps them, nothing relocated.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from psu_bin import elf
from psu_bin.attach.process import Mapping, Process, Thread
from psu_bin.elf import Binary
from psu_bin.errors import PsuError

PAGE = 4096


@dataclass(frozen=True)
class Range:
    """Bytes that can be read."""
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Bytes(Process):
    """A process with this memory.  It has this process' number, so that what looks into /proc finds something."""

    def __init__(self, ranges: list[Range], mappings: list[Mapping], threads: tuple[Thread, ...] = ()) -> None:
        self.pid = self._through = os.getpid()
        self.where = "process 4711"
        self.lost = False
        self.ranges = sorted(ranges, key=lambda r: r.start)
        self.mappings = tuple(sorted(mappings, key=lambda m: m.start))
        self.alive_threads = threads

    def alive(self) -> bool:
        return True

    def maps(self) -> tuple[Mapping, ...]:
        return self.mappings

    def threads(self) -> tuple[Thread, ...]:
        return self.alive_threads

    def thread(self, own_tid: int) -> Thread | None:
        return next((t for t in self.alive_threads if t.own_tid == own_tid), None)

    def _transfer(self, call: object, buffer: ctypes.Array[ctypes.c_char], address: int, size: int, verb: str) -> None:
        done = 0
        while done < size:
            at = address + done
            found = next((r for r in self.ranges if r.start <= at < r.end), None)
            if found is None or verb != "read":
                raise PsuError(self.where, f"memory cannot be {verb}: {size:#x} bytes at {address:#x}")
            part = found.data[at - found.start:at - found.start + size - done]
            ctypes.memmove(ctypes.addressof(buffer) + done, part, len(part))
            done += len(part)


def mapped(data: bytes, path: str, base: int, layout: Binary | None = None) -> tuple[list[Range], list[Mapping]]:
    """The file as the loader maps it with load bias `base`; `layout`: whose program headers say how (None: its own)."""
    layout = layout or Binary(data, path)
    ranges, mappings = [], []
    for p in layout.segments:
        if p.type == elf.PT_LOAD and p.memsz:
            start, end = p.address // PAGE * PAGE, -(-(p.address + p.filesz) // PAGE) * PAGE
            first = p.offset - (p.address - start)
            body = data[max(first, 0):p.offset + p.filesz].ljust(end - start, b"\0")
            mappings.append(Mapping(base + start, base + end, "r-xp" if p.flags & elf.PF_X else "rw-p", first, 1, path, False))
            ranges.append(Range(base + start, body))
            bss = min(-(-(p.address + p.memsz) // PAGE) * PAGE - end, 1 << 20)
            if bss > 0:
                mappings.append(Mapping(base + end, base + end + bss, "rw-p", 0, 0, "", False))
                ranges.append(Range(base + end, bytes(bss)))
    return ranges, mappings
