"""The control groups that limit a process' memory, found by what /proc says."""

from __future__ import annotations

from pathlib import Path

import pytest

from psu_bin.attach import pressure
from psu_bin.attach.pressure import V1, V2

BOTH = ("11:32 31 0:29 / {0}/cpu rw - cgroup cgroup rw,cpu\n14:35 31 0:32 / {0}/mem\\040ory rw,relatime shared:7 - "
        "cgroup cgroup rw,memory\n20:41 31 0:38 / {0}/unified rw - cgroup2 cgroup2 rw\n")


@pytest.mark.parametrize("groups, mounts, expected", [
    ("4:cpu,memory:/a/b\n1:cpu:/\n0::/\n", BOTH,
     [("mem ory/a/b", V1), ("mem ory/a", V1), ("mem ory", V1), ("unified", V2)]),
    ("0::/a:b/c\n", BOTH, [("unified/a:b/c", V2), ("unified/a:b", V2), ("unified", V2)]),
    # A container, whose part is mounted; a process outside of what is mounted: only that is known.
    ("0::/box/1/x\n", "1:2 3 0:4 /box/1 {0}/g rw - cgroup2 none rw\n", [("g/x", V2), ("g", V2)]),
    ("0::/boxes\n", "1:2 3 0:4 /box {0}/g rw - cgroup2 none rw\n", [("g", V2)]),
    ("0::/../other\n", "1:2 3 0:4 / {0}/g rw - cgroup2 none rw\n", []),
    ("", BOTH, []), ("0::/\n", "", []), ("garbage\n:\n", "x - cgroup2\n - \n", [])])
def test_groups_up_to_the_mount(groups: str, mounts: str, expected: list[tuple[str, pressure.Version]]) -> None:
    found = [(str(p), v) for p, v in pressure.folders(groups, mounts.format("/s"))]
    assert found == [(f"/s/{p}", v) for p, v in expected]


@pytest.mark.parametrize("files, swap, left", [
    ({"memory.max": "max", "memory.current": "5"}, 0, None),
    ({"memory.max": "100", "memory.current": "95"}, 0, 5),
    ({"memory.max": "100", "memory.current": "95", "memory.stat": "anon 50\ninactive_file 30\nactive_file 7\n"}, 0, 42),
    ({"memory.max": "100", "memory.current": "95", "memory.swap.max": "max", "memory.swap.current": "1"}, 1000, 1005),
    ({"memory.max": "100", "memory.current": "95", "memory.swap.max": "20", "memory.swap.current": "3"}, 1000, 22),
    ({}, 1000, None), ({"memory.max": "many", "memory.current": "-"}, 0, None)])
def test_what_is_left(tmp_path: Path, files: dict[str, str], swap: int, left: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert pressure._left(tmp_path, V2, swap) == left


def test_memory_and_swap_together(tmp_path: Path) -> None:
    for name, number in ((V1.limit, 100), (V1.use, 90), (V1.swap_limit, 120), (V1.swap_use, 95)):
        (tmp_path / name).write_text(f"{number}\n")
    assert pressure._left(tmp_path, V1, 1000) == 25
    assert pressure._left(tmp_path, V1, 0) == 10
