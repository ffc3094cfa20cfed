"""A frozen control group (`docker pause`): psu-bin says so and does not wait until somebody thaws it."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import psu_bin
from updating import Versions

# The file that freezes a group, what it says when it is done, and what goes in.
WAYS = {
    "version 1": ("freezer", "freezer.state", "freezer.state", "FROZEN\n", ("FROZEN", "THAWED")),
    "version 2": ("", "cgroup.freeze", "cgroup.events", "frozen 1\n", ("1", "0")),
}


def mounted(controller):
    """Where the hierarchy with this controller is mounted, "": version 2; None: nowhere."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where, (kind, _, options) = line.split()[4], line.split(" - ")[1].split(" ", 2)
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            return Path(where)
    return None


@pytest.fixture(params=WAYS)
def group(request):
    """(folder of a new group, freeze(yes))"""
    controller, file, told, done, words = WAYS[request.param]
    root = mounted(controller)
    folder = root / f"psu-frozen-{os.getpid()}" if root else Path("/nowhere")
    try:
        folder.mkdir()
    except OSError as e:
        pytest.skip(f"no control group can be made here: {e}")
    if not (folder / file).exists():
        folder.rmdir()
        pytest.skip("this kernel does not freeze")

    def freeze(yes):
        (folder / file).write_text(words[not yes])
        while (done in (folder / told).read_text()) != yes:
            pass
    yield folder, freeze
    freeze(False)
    while pids := (folder / "cgroup.procs").read_text().split():
        for pid in pids:                    # the test has failed
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    folder.rmdir()


@pytest.mark.parametrize("program, arguments, first, words", [
    ("spin", (2,), "^version 0$", "is frozen with its control group"),
    ("single", ("wait",), "ready", "no thread could be borrowed"),
])
def test_a_frozen_process(lab, group, program, arguments, first, words):
    """With an agent, and where one thread would be borrowed to make it."""
    folder, freeze = group
    running = lab.start(lab.program(program), *arguments)
    running.expect(first)
    patch = lab.patch(program, "patch.c", "-DV=1")
    (folder / "cgroup.procs").write_text(str(running.pid))
    freeze(True)
    try:
        ran = psu_bin("attach", running.pid, patch, check=False)
        assert ran.status == 1 and words in ran.err and ran.err.count("\n") == 1, ran.err
    finally:
        freeze(False)
    psu_bin("attach", running.pid, patch)
    if program == "spin":
        running.expect("^version 1$")
        versions = Versions(lab, program)
        for v in range(2, 102):         # frozen and thawed again before each
            freeze(True)
            freeze(False)
            versions.attach(running.pid, v)
        running.expect("^version 101$")
    running.stop()
