"""exit() from a patched function, with other threads inside patched functions and updates until the last moment."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import WAIT, updates
from updating import Versions

from psu_bin.attach import borrow, target
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError

UPDATES = updates(100)


@pytest.mark.parametrize("ends", ["between updates", "during updates"])
def test_exit_runs_the_newest_handlers(lab, ends):
    running = lab.start(lab.program("exits"), 2)
    versions = Versions(lab, "exits")
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    last = UPDATES
    running.say("end")
    if ends == "during updates":
        with pytest.raises(PsuError, match="ended meanwhile|it is ending|no such process|is a zombie|has ended"):
            while last < 100 * UPDATES:
                versions.attach(running.pid, last + 1)
                last += 1
    found = int(running.expect(r"^handler (\d+)$")[1])
    # An update that was under way when the process ended may have been committed.
    assert UPDATES <= found <= last + (ends == "during updates")
    status = running.process.wait(timeout=WAIT)
    assert any(status == v % 100 for v in range(UPDATES, found + 1)), (status, found)


def test_ends_while_a_thread_is_looked_for(lab, monkeypatch):
    running = lab.start(lab.program("exits"), 2, env={"PSU_AGENT": "never"})
    running.expect("^ready$")
    found = target.read(Process(running.pid))

    def ends(*_: object) -> list:
        os.kill(running.pid, signal.SIGKILL)
        while "(zombie)" not in Path(f"/proc/{running.pid}/status").read_text():     # whose threads /proc still lists
            time.sleep(0.001)
        return []

    monkeypatch.setattr(borrow, "_candidates", ends)
    with pytest.raises(PsuError, match="ended meanwhile"):
        borrow.start_agent(found)
