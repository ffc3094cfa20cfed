"""Programs of shim/test that step a call through a gate, on AArch64: what happens at many of its instructions.

shim/test/cancelled.c   a call that is cancelled there is counted out at most once
shim/test/jumped.c      a signal whose handler calls, jumps out, or goes on with another context leaves entries with one owner
shim/test/life.c        not stepped: what the emulator of programs cannot do of it, processes that fork, and that end with their last thread

One processor: the programs' two processes take turns at every instruction.  tests/unit/test_shim.py has the finer ones, native.
"""

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "unit"))
from shim_host import SHIM, Emulated, build  # noqa: E402
from test_shim import poor_offsets, routine_offsets  # noqa: E402

SKIPPED = 77
pytestmark = pytest.mark.skipif(platform.machine() == "aarch64", reason="test_shim.py does it natively")


# Of each program, the arguments of its runs.  cancelled.c: a call cancelled anywhere is counted out at most once.  jumped.c: at
# stride 3 a gate that looks and then stores, without the exclusive pair, fails at once.
RUNS = {"cancelled.c": [(str(kind), "11", "2") for kind in (0, 1, 2)],
        "jumped.c": [("switch", "1", "3"), ("switch", "0", "41"), ("switch", "2", "97"),
                     *((way, "1", "29") for way in ("call", "out", "inside"))],
        "life.c": [(case,) for case in ("fork", "fork-in-commit", "vfork", "main-exits", "main-is-cancelled", "thread-forks")]}


# One boot for all runs on one processor.  cortex-a53 has none of the atomic instructions of ARMv8.1: its gates count by exclusive pairs.
@pytest.mark.parametrize("cpu, sources", [("max", ("cancelled.c", "jumped.c", "life.c")), ("cortex-a53", ("cancelled.c",))])
def test_a_call_that_is_cancelled_or_interrupted_anywhere(tmp_path, cpu, sources):
    emulated = Emulated("aarch64", cpu)
    if emulated.missing:
        pytest.skip(emulated.missing)
    compiler = emulated.compiler("gcc")
    shim = tmp_path / "libpsu_shim.so"
    subprocess.run(["make", "-s", "-C", str(SHIM), f"CC={compiler}", f"OUT={shim}"], check=True)
    runs = [f"{'' if cpu == 'max' else '! '}grep -q atomics /proc/cpuinfo"]
    for source in sources:
        program = build(shim, source, compiler)
        more = {"cancelled.c": [*routine_offsets(shim), poor_offsets(shim)[0]], "jumped.c": routine_offsets(shim), "life.c": []}
        runs += [shlex.join([str(program), *run, *more[source]]) + " && echo ended" for run in RUNS[source]]
    done = subprocess.run([ROOT / "scripts" / "arm64-guest", "--cpu", cpu, "--smp", "1", "--timeout", "300", "--scratch",
                           tmp_path, "--", "sh", "-c", " && ".join(runs)], capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines.count("ended") == len(runs) - 1, done.stdout + done.stderr
    # Each run ends with "ok", but for those whose main thread does not come to it.
    assert all(line in ("ok", "the last thread ended") for line, after in zip(lines, lines[1:], strict=False) if after == "ended")
