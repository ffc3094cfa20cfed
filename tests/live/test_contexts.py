"""Coroutines that are suspended in patched functions and go on in another thread."""

import pytest
from conftest import WAIT, psu_bin, updates
from updating import FULL, Versions

UPDATES = updates(100)


@pytest.mark.parametrize("flags", [(), (FULL,)])
def test_a_call_that_begins_on_one_thread_and_ends_on_another(lab, flags):
    running = lab.start(lab.program("contexts", *flags))
    versions = Versions(lab, "contexts")
    running.expect(r"^moved \d+$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    running.fresh()
    moved = int(running.expect(r"^moved (\d+)$")[1])
    running.expect(f"^moved {moved + 2}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
