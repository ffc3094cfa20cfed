"""How much memory a process may still take before the kernel ends it: the limits of its control groups.

Where a limit of another kind is reached (RLIMIT_AS, overcommit), a system call fails and the update is refused.  Here
none fails: mmap succeeds, and when the page is first written and the group has nothing left that can be reclaimed, the
kernel ends a process of the group, most likely the target.  So it is asked before anything is done.  That is no
promise: the program may take the rest itself, as it may at any time.

Both versions of control groups, also together: in each group from that of the process up to the mount, what is left is
the limit less the use, plus what the kernel would give up first: file cache, and swap.

Specification: Documentation/admin-guide/cgroup-v2.rst (Memory), cgroup-v1/memory.rst, cgroups(7), proc(5) (mountinfo).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psu_bin.attach import proc
from psu_bin.attach.process import PAGE
from psu_bin.errors import PsuError

# Bytes for an agent, its buffers, counters, page tables and notes, in units in which the kernel charges a processor's
# use (32 pages): the first attach of a small patch takes 0.5 MiB, each later one next to nothing.  With pages of 64 KiB it
# is these that count, some 30 which are hardly used.
LEAST = max(1 << 20, 64 * PAGE)


@dataclass(frozen=True)
class Version:
    """The names of the files of one version of control groups."""
    limit: str
    use: str
    swap_limit: str
    swap_use: str
    swap_with_memory: bool       # whether the two above are of memory and swap together
    prefix: str                  # of what is said in memory.stat about a group with all below it


V1 = Version("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.memsw.limit_in_bytes",
             "memory.memsw.usage_in_bytes", True, "total_")
V2 = Version("memory.max", "memory.current", "memory.swap.max", "memory.swap.current", False, "")


def refuse(groups: str, where: str, size: int) -> None:
    """Raises PsuError when a process may not take LEAST + `size` bytes more.  groups: its cgroup file in /proc; where: names it."""
    found = room(groups)
    if found is not None and found[0] < LEAST + size:
        raise PsuError(where, f"its control group has {max(found[0], 0) >> 10} KiB of memory left, an update may need "
                              f"{LEAST + size >> 10}: {found[1]}", "give it more, or the kernel may end the process")


def room(path: str) -> tuple[int, Path] | None:
    """(bytes left, folder of the group that has so few); None where there is no limit, or none that can be read.

    path: the process' cgroup file in /proc."""
    try:
        groups, mounts = proc.read(path), proc.read("/proc/self/mountinfo")
    except OSError:
        return None
    swap = _swap_free()
    return min(((left, folder) for folder, version in folders(groups, mounts)
                if (left := _left(folder, version, swap)) is not None), default=None)


def folders(groups: str, mounts: str) -> Iterator[tuple[Path, Version]]:
    """The groups that limit the memory of a process, by its /proc/PID/cgroup and our /proc/self/mountinfo."""
    paths: dict[Version, str] = {}
    for line in groups.split("\n"):
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            paths[V2] = path
        elif "memory" in controllers.split(","):
            paths[V1] = path
    for line in mounts.split("\n"):
        before, _, behind = line.partition(" - ")
        fields, kind = before.split(" "), (behind.split(" ") + [""] * 3)[:3]
        version = V2 if kind[0] == "cgroup2" else V1 if kind[0] == "cgroup" and "memory" in kind[2].split(",") else None
        if version is None or len(fields) < 5 or version not in paths:
            continue
        root, mount = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[3:5])
        path = paths.pop(version)
        inside = path[len(root.rstrip("/")):] if (path + "/").startswith(root.rstrip("/") + "/") else ""
        if ".." in inside.split("/"):
            continue            # beyond the root of our namespace of control groups
        at = Path(mount) / inside.strip("/")
        yield at, version
        while at != Path(mount):
            at = at.parent
            yield at, version


def _left(folder: Path, version: Version, swap: int) -> int | None:
    limit, use = _number(folder / version.limit), _number(folder / version.use)
    if limit is None or use is None:
        return None
    swap_limit, swap_use = _number(folder / version.swap_limit), _number(folder / version.swap_use)
    if swap_limit is not None and swap_use is not None:
        swap = min(swap, max(swap_limit - swap_use, 0))
    if version.swap_with_memory and swap_limit is not None and swap_use is not None:
        return min(limit - use + _cache(folder, version) + swap, swap_limit - swap_use + _cache(folder, version))
    return limit - use + _cache(folder, version) + swap


def _cache(folder: Path, version: Version) -> int:
    """Bytes of files that the kernel would drop."""
    try:
        rows = [line.split() for line in proc.read(str(folder / "memory.stat")).split("\n")]
    except OSError:
        return 0
    names = {version.prefix + "inactive_file", version.prefix + "active_file"}
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in names and _is_number(row[1]))


def _number(path: Path) -> int | None:
    try:
        text = proc.read(str(path)).strip()
    except OSError:
        return None
    return int(text) if _is_number(text) else None       # "max"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) is not None


def _swap_free() -> int:
    try:
        found = re.search(r"^SwapFree: +([0-9]{1,16}) kB$", proc.read("/proc/meminfo"), re.M | re.ASCII)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
