"""backtrace() inside patched functions and in handlers that interrupt them, while they are replaced."""

import pytest
from conftest import MACHINE, WAIT, psu_bin, updates
from updating import Versions

UPDATES = updates(100)
# The linker's stubs have no unwind rows there: stacks end in them.
NO_PLT = ("-fno-plt",) if MACHINE == "aarch64" else ()


@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-fno-omit-frame-pointer")], ids=" ".join)
def test_stacks_are_whole_in_every_moment(lab, flags):
    running = lab.start(lab.program("unwinding", *flags, *NO_PLT), 2)
    versions = Versions(lab, "unwinding", "patch.c", *flags)
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    running.fresh()
    looked = int(running.expect(r"^looked (\d+)$")[1])
    running.expect(f"^looked {looked + 1}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
