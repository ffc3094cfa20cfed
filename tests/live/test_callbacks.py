"""Functions that the C library, the dynamic linker or the kernel's new thread calls; main; and threads that never return."""

from conftest import PATIENCE, WAIT, psu_bin, updates
from updating import Versions

UPDATES = updates(100)


def held(pid):
    """The patches of which something is still there: number to the whole entry."""
    return {p["id"]: p for p in psu_bin("status", pid, "--json").json["patches"] if p["state"] != "freed"}


def test_callbacks_start_routines_and_main(lab):
    running = lab.start(lab.program("callbacks"))
    versions = Versions(lab, "callbacks")
    running.expect("^early 2$")
    versions.attach(running.pid, 1)
    running.expect("^version 1$")
    running.say("stick")
    running.expect("^stuck 1$")
    versions.run(running.pid, 2, UPDATES)
    running.expect(f"^version {UPDATES}$")
    # The thread that never returned from version 1 keeps it, and it alone; status says who, and in what.
    for _ in range(1000):
        now = held(running.pid)
        if set(now) == {1, UPDATES}:
            break
    assert set(now) == {1, UPDATES}
    assert now[1]["state"] == "retired" and now[1]["activations"] == 1
    assert " in stay" in now[1]["kept_because"] and "1 call in progress of thread " in now[1]["kept_because"]
    running.say("let go")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert set(held(running.pid)) == {UPDATES}
    # main began in the program's own version and ends in it; what exit calls is the newest.
    running.say("end")
    running.expect("^main 0$")
    running.expect(f"^exit {UPDATES}$")
    running.expect(f"^destroyed {UPDATES}$")
    assert running.process.wait(timeout=PATIENCE) == 0
