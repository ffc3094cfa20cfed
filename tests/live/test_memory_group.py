"""A control group whose memory is used up: the kernel would end the program, so psu-bin refuses; nothing changes."""

import os
import re
from pathlib import Path

import pytest
from conftest import layout, psu_bin, updates
from updating import Versions

from psu_bin.attach.pressure import folders
from psu_bin.attach.process import PAGE
from psu_bin.errors import PsuError

LITTLE, ENOUGH = 16 * PAGE, 64 << 20
UPDATES = updates(100)


@pytest.fixture
def group():
    """A new group below ours: its folder, the file that limits it and the one that says what it uses."""
    mine = list(folders(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()))
    for parent, version in mine:
        folder = parent / f"psu-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / version.limit).exists():
            yield folder, folder / version.limit, folder / version.use
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no control group can be made here")


@pytest.mark.parametrize("program, arguments", [("spin", (2,)), ("single", ("wait",))])
def test_no_memory_left_in_the_group(lab, group, program, arguments):
    """With an agent, and where one thread would be borrowed to make it."""
    folder, limit, use = group
    running = lab.start(lab.program(program), *arguments)
    running.expect("^version 0$" if program == "spin" else "ready")
    patch = lab.patch(program, "patch.c", "-DV=1")
    (folder / "cgroup.procs").write_text(str(running.pid))
    limit.write_text(str(LITTLE))
    before = layout(running.pid)
    ran = psu_bin("attach", running.pid, patch, check=False)
    words = r"control group has \d+ KiB of memory left, an update may need \d+: /.*kernel may end"
    assert ran.status == 1 and re.search(words, ran.err), ran.err
    assert running.alive() and layout(running.pid) == before
    limit.write_text(str(ENOUGH))
    psu_bin("attach", running.pid, patch)
    if program == "spin":            # too little, then enough, again and again
        versions = Versions(lab, program)
        for v in range(2, UPDATES + 2):
            limit.write_text(str(int(use.read_text()) + LITTLE))
            with pytest.raises(PsuError, match="of memory left"):
                versions.attach(running.pid, v)
            limit.write_text(str(ENOUGH))
            versions.attach(running.pid, v)
        running.expect(f"^version {UPDATES + 1}$")
    assert running.alive()
    running.stop()
