"""The protocol of slots, gates, counts and reclaiming as a model (update.pml), explored in full by spin.

Each size is one way in which the real thing is more than two threads and a patch; WEAK is the memory of AArch64, else
it is that of x86-64.  A mutant is the protocol with one mistake: that spin finds it shows that the model is able to
fail.

PSU_TORTURE=long (scripts/torture model) explores larger sizes, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("update.pml")

pytestmark = pytest.mark.skipif(not shutil.which("spin"), reason="no spin")

SIZES = {
    "two threads": "-DTHREADS=2 -DUPDATES=2",
    "gates in turns": "-DTHREADS=1 -DCALLS=2 -DUPDATES=3",
    "two functions": "-DTHREADS=1 -DCALLS=2 -DUPDATES=2 -DFUNCTIONS=2",
    "threads end and begin": "-DTHREADS=1 -DUPDATES=3 -DLIVES=2",
    "signal handler": "-DTHREADS=1 -DUPDATES=2 -DHANDLER",
    "calls inside one object": "-DLOCAL -DTHREADS=1 -DUPDATES=2 -DFUNCTIONS=2",
    "weak order": "-DWEAK -DTHREADS=1 -DCALLS=2 -DUPDATES=3",
    "weak order, two functions": "-DWEAK -DTHREADS=1 -DCALLS=2 -DUPDATES=2 -DFUNCTIONS=2",
    "weak order, calls inside one object": "-DWEAK -DLOCAL -DTHREADS=1 -DUPDATES=2 -DFUNCTIONS=2",
}
LONG = {
    "calls inside one object, three updates": "-DLOCAL -DTHREADS=1 -DUPDATES=3 -DFUNCTIONS=2",
    "weak order, calls inside, three updates": "-DWEAK -DLOCAL -DTHREADS=1 -DUPDATES=3 -DFUNCTIONS=2",
    "two functions, three updates": "-DTHREADS=1 -DCALLS=2 -DUPDATES=3 -DFUNCTIONS=2",
    "three lives": "-DTHREADS=1 -DUPDATES=3 -DLIVES=3",
    "weak order, two threads": "-DWEAK -DTHREADS=2 -DUPDATES=2",
}
EXPLORED = {**SIZES, **LONG} if os.environ.get("PSU_TORTURE") == "long" else SIZES

USED_AFTER_FREE, NOT_NEWEST, COUNT_LOST, NOTHING_THERE = "mapped[", "died[", "state[0]!=2", "(c!=0)"

MUTANTS = {
    # the barrier between redirecting a gate and reading its counts
    "NO_BARRIER": ("gates in turns", USED_AFTER_FREE),
    "COUNT_AFTER_LOAD": ("two threads", USED_AFTER_FREE),
    "ENTERS_FIRST": ("two threads", USED_AFTER_FREE),
    "NO_REDIRECT": ("two threads", USED_AFTER_FREE),
    "FREED_AT_ONCE": ("gates in turns", USED_AFTER_FREE),
    "SETTLE_BEFORE_COMMIT": ("two threads", NOT_NEWEST),
    # the commit's number is stored before the slots are prepared for it
    "COMMIT_FIRST": ("gates in turns", NOT_NEWEST),
    # a pending gate looks at commit_seq after the number that it waits for
    "SEQ_READ_LAST": ("two threads", NOT_NEWEST),
    # a gate is armed with its code word first
    "CODE_FIRST": ("gates in turns", NOT_NEWEST),
    # an object's index, and so its gates, is given away before the object is freed
    "INDEX_REUSED": ("gates in turns", NOT_NEWEST),
    # two functions have one gate by turns
    "GATE_SHARED": ("two functions", NOT_NEWEST),
    # counts of a thread that lives are moved to the totals
    "LIVE_BLOCK_FOLDED": ("threads end and begin", COUNT_LOST),
    # load, add, store in place of one instruction
    "PLAIN_INCREMENT": ("signal handler", COUNT_LOST),
    # mistakes that only AArch64 punishes: a gate's words are first written when slots may lead there
    "NOT_BOUND": ("weak order", NOTHING_THERE),
    "NO_BARRIER_BEFORE_ARM": ("weak order", NOTHING_THERE),
    "NO_BARRIER_BEFORE_COMMIT": ("weak order", NOT_NEWEST),
    # psu_route() without its acquire
    "NO_FENCE": ("weak order, two functions", NOT_NEWEST),
    "LEAVE_NOT_RELEASE": ("weak order, two threads", USED_AFTER_FREE),
    # calls inside an object that a transaction leaves: they still lead to bodies when it is committed
    "LOCAL_NOT_TURNED": ("calls inside one object", NOT_NEWEST),
    "LOCAL_TURNED_LATE": ("calls inside one object", NOT_NEWEST),
    # on the way back to the original the gate lets calls from inside pass, as if nothing was under way
    "BASE_KEPT": ("calls inside one object", NOT_NEWEST),
    # turned before the commit, but not before the barrier (4): x86-64 forgives that
    "LOCAL_TURNED_BEHIND": ("weak order, calls inside one object", NOT_NEWEST),
}

def explore(folder: Path, flags: str, model: Path = MODEL) -> str:
    """What spin's verifier says of the model with these flags.  No state is left out: no hashing of states."""
    made = subprocess.run(["spin", "-a", *flags.split(), str(model)], cwd=folder, capture_output=True, text=True,
                          timeout=60)
    assert made.returncode == 0, made.stdout + made.stderr
    # Unoptimised: the verifier is 20,000 lines, and runs for seconds.
    subprocess.run(["gcc", "-O0", "-w", "-DSAFETY", "-DMEMLIM=3000", "-o", "pan", "pan.c"], cwd=folder, check=True)
    done = subprocess.run(["./pan", "-m100000"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert "max search depth too small" not in done.stdout and "reached -DMEMLIM" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("size", EXPLORED)
def test_no_order_of_events_breaks_the_protocol(tmp_path: Path, size: str) -> None:
    said = explore(tmp_path, EXPLORED[size])
    assert re.search(r"^State-vector .* errors: 0$", said, re.M), said
    states = re.search(r"(\d+) states, stored", said)
    assert states and int(states[1]) > 100_000


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_in_the_protocol_is_found(tmp_path: Path, mutant: str) -> None:
    size, mistake = MUTANTS[mutant]
    said = explore(tmp_path, f"{ {**SIZES, **LONG}[size] } -D{mutant}")
    violated = re.search(r"^pan:1: assertion violated (.*) \(at depth", said, re.M)
    assert violated, said
    assert mistake in violated[1]


def test_every_mutant_of_the_model_is_tested() -> None:
    text = "".join((MODEL.parent / name).read_text() for name in ("update.pml", "threads.pml", "agent.pml"))
    conditions = set(re.findall(r"^#ifn?def ([A-Z_]+)$", text, re.M)) | set(re.findall(r"defined\(([A-Z_]+)\)", text))
    sizes = {"THREADS", "CALLS", "UPDATES", "FUNCTIONS", "LIVES", "HANDLER", "WEAK", "LOCAL"}
    assert conditions - sizes == {*MUTANTS}
