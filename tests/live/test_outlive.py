"""What outlives versions: pointers that a patch handed out stay valid, and many patches take no more memory than two.

PSU_SOAK says how many updates; scripts/torture soak makes it 10,000."""

import os
import re
from pathlib import Path

from conftest import WAIT, psu_bin
from updating import Versions

from psu_bin.attach import status

UPDATES = int(os.environ.get("PSU_SOAK", 150))
LOOKS = 4                  # updates in a row after which we look: objects take turns in two places, next to others or not
PAGE = os.sysconf("SC_PAGE_SIZE")


def test_tables_take_no_huge_pages(lab):
    """Where huge pages are given unasked, which is the default of most distributions, 5 MiB of tables would be in memory at once."""
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    Versions(lab, "spin").run(running.pid, 1, 1)
    mappings = re.findall(r"^\w+-\w+ (\S+) .*?(\S*)\n(?:\w+:.*\n)*?VmFlags:(.*)\n", Path(f"/proc/{running.pid}/smaps").read_text(), re.M)
    last = max(i for i, (_, path, _) in enumerate(mappings) if path.endswith("libpsu_shim.so"))
    access, _, flags = mappings[last + 1]       # its zeroed data
    assert access == "rw-p" and " nh" in flags, mappings[last - 1:last + 3]


def memory(pid):
    """(resident bytes, number of mappings), once nothing is left to free."""
    status.wait(pid, WAIT)
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return resident, len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def least(looks):
    """The least of several of these."""
    resident, mappings = zip(*looks)
    return min(resident), min(mappings)


def test_pointers_outlive_versions_and_memory_stays(lab):
    running = lab.start(lab.program("outlive"), 8)
    versions = Versions(lab, "outlive")
    running.expect("^ready$")
    looks = {}
    for v in range(1, UPDATES + 1):
        versions.run(running.pid, v, v)
        running.say("take")
        running.expect("^taken$")
        if v == 1:             # it makes a thread, and keeps the memory
            running.say("check")
            running.expect(f"^checked {v} newest {v} distinct 1$")
        if 2 <= v < 2 + LOOKS or v > UPDATES - LOOKS:
            looks[v] = memory(running.pid)
    running.say("check")
    running.expect(f"^checked {UPDATES} newest {UPDATES} distinct 1$")
    early, late = (least(looks[v] for v in at) for at in (range(2, 2 + LOOKS), range(UPDATES - LOOKS + 1, UPDATES + 1)))
    print(f"(bytes resident, mappings) after update: {looks}; {late[0] - early[0]:+} bytes, {late[1] - early[1]:+} mappings "
          "since the second")
    assert late[1] <= early[1], (early, late)
    assert late[0] - early[0] <= 16 * PAGE, (early, late)
    shown = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in shown["patches"] if p["state"] != "freed"] == [UPDATES]
