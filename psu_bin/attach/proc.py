"""Texts of /proc: what the kernel says about a process, read and split.

Any program chooses some of what is in them: its name (prctl PR_SET_NAME) and the names of files that it maps are bytes,
often without meaning as UTF-8, and may hold spaces, parentheses, carriage returns and what else Python takes for the
end of a line.  The kernel escapes line feeds in them, nothing more.

`where` names the file in the PsuError that each function raises when a text is not in the kernel's form (proc(5)): a
sandbox may have a /proc of its own making.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from psu_bin.arch import Waiting
from psu_bin.errors import PsuError


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps."""
    start: int
    end: int
    prot: str             # as in maps: "r-xp"
    offset: int
    inode: int
    path: str             # as the target sees it; "" for anonymous memory
    deleted: bool


class Stat(NamedTuple):
    """What psu-bin asks for of /proc/PID/stat."""
    state: str
    start_time: int       # clock ticks since boot
    start_stack: int      # of the first thread: where its arguments begin, above all frames; 0 where the kernel hides it
    start_brk: int        # where the heap begins; likewise


_MAPS = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps]) ([0-9a-f]{1,16}) "
                   r"[0-9a-f]+:[0-9a-f]+ ([0-9]{1,20})(?: +(.*))?", re.DOTALL | re.ASCII)
ADDRESS_BITS = 48          # of an address, at most
_SMAPS = re.compile(rb"([0-9a-f]{1,16})-[0-9a-f]{1,16} ")
_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_WAITING = re.compile(r"(-?[0-9]{1,10})(?: 0x([0-9a-f]{1,16})(?: 0x[0-9a-f]+){0,5})? "
                      r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})\n?", re.ASCII)


def read(path: str) -> str:
    """The text of a file in /proc; bytes that are no UTF-8 become surrogates.  Raises OSError."""
    return Path(path).read_bytes().decode("utf-8", "surrogateescape")


def _odd(where: str, text: str) -> PsuError:
    return PsuError(where, f"is not what the kernel writes: {text[:80]!r}", "psu-bin needs the kernel's own /proc")


def status(text: str) -> dict[str, str]:
    """The fields of /proc/PID/status, and of that of a thread."""
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.split("\n"))}


def number(fields: dict[str, str], name: str, where: str, *, base: int = 10, default: str = "") -> int:
    """The last number of a field of status.  `default`: where the kernel is too old to have it; "": it is in all."""
    text = fields.get(name, default)
    word = text.split()[-1] if text.split() else ""
    if not re.fullmatch(r"[0-9a-f]{1,20}" if base == 16 else r"[0-9]{1,20}", word, re.ASCII):
        raise _odd(where, f"{name}: {text}")
    return int(word, base)


def stat(text: str, where: str) -> Stat:
    """/proc/PID/stat; the name before the last parenthesis may hold some itself."""
    words = text[text.rfind(")") + 1:].split()       # from field 3 of proc(5) on
    if len(words) < 45 or not re.fullmatch("[A-Za-z]", words[0]) or not all(
            _INTEGER.fullmatch(words[n]) for n in (19, 25, 44)):
        raise _odd(where, text)
    return Stat(words[0], int(words[19]), int(words[25]), int(words[44]))


def maps(text: str, where: str) -> tuple[Mapping, ...]:
    """/proc/PID/maps, ascending."""
    out = []
    for line in text.split("\n"):
        if not line:
            continue
        found = _MAPS.fullmatch(line)
        if not found:
            raise _odd(where, line)
        start, end, prot, offset, inode, path = found.groups(default="")
        deleted = path.endswith(" (deleted)")
        path = path.removesuffix(" (deleted)").replace("\\012", "\n")
        out.append(Mapping(int(start, 16), int(end, 16), prot, int(offset, 16), int(inode), path, deleted))
    return tuple(out)


def address_mask(maps: Iterable[Mapping]) -> int:
    """The bits of a word in a stack that an address may have.  AArch64 signs return addresses (PAC) in the bits above, of which
    there may be 16 to 28: no more are left than the highest address takes."""
    return (1 << min(max((m.end - 1 for m in maps), default=0).bit_length(), ADDRESS_BITS)) - 1


def flagged(lines: Iterable[bytes], flag: str, wanted: Collection[int]) -> set[int]:
    """Those of the mappings that start at `wanted` which have a flag (proc(5), VmFlags), from /proc/PID/smaps; ascending, so
    that nothing is read beyond them: the kernel walks the page tables of each mapping that it writes about."""
    found, start = set(), 0
    for line in lines:
        if header := _SMAPS.match(line):
            start = int(header[1], 16)
            if start > max(wanted, default=-1):
                break
        elif start in wanted and line.startswith(b"VmFlags:") and flag.encode() in line.split():
            found.add(start)
    return found


def syscall(text: str, where: str) -> Waiting | None:
    """/proc/PID/task/TID/syscall; None while the thread runs."""
    if text.strip() == "running":
        return None
    found = _WAITING.fullmatch(text)
    if not found:
        raise _odd(where, text)
    return Waiting(int(found[1]), int(found[3], 16), int(found[4], 16), int(found[2] or "0", 16))


def ran(text: str) -> int | None:
    """/proc/PID/task/TID/schedstat: nanoseconds that the thread has had a processor; None: the kernel counts none."""
    words = text.split()
    if len(words) != 3 or not all(re.fullmatch(r"[0-9]{1,20}", w, re.ASCII) for w in words) or words == ["0", "0", "0"]:
        return None
    return int(words[0])


def switches(text: str) -> int | None:
    """/proc/PID/task/TID/status: how often the thread was switched away from; None: the kernel does not say."""
    fields = status(text)
    counts = [fields.get(name, "") for name in ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")]
    return sum(map(int, counts)) if all(re.fullmatch(r"[0-9]{1,20}", n, re.ASCII) for n in counts) else None


def resident_pages(text: str) -> int:
    """/proc/PID/statm: pages of memory that the process has touched, 0 when it cannot be told."""
    words = text.split()
    return int(words[1]) if len(words) >= 2 and re.fullmatch(r"[0-9]{1,20}", words[1], re.ASCII) else 0
