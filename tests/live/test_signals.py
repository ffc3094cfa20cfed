"""Handlers that call patched functions, at a high rate, nested and on an alternate stack, while the program is updated."""

import pytest
from conftest import SLOWNESS, WAIT, psu_bin, updates
from updating import FULL, Versions

UPDATES = updates(100)


@pytest.mark.parametrize("how, flags", [("storm", ()), ("timer", ()), ("storm", (FULL,))])
def test_handlers_that_call_patched_functions(lab, how, flags):
    running = lab.start(lab.program("signals", *flags), how, SLOWNESS)
    versions = Versions(lab, "signals")
    running.expect(r"^handled \d+$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    running.fresh()
    handled = int(running.expect(r"^handled (\d+)$")[1])
    running.expect(f"^handled {handled + 2}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
