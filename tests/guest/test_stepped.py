"""Programs of shim/test that step a call through a gate, on AArch64: what happens at many of its instructions.

shim/test/cancelled.c   a call that is cancelled there is counted out at most once
shim/test/jumped.c      a signal whose handler calls, jumps out, or goes on with another context leaves entries with one owner

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


def stepped(folder: Path, cpu: str, source: str, runs: list[tuple[str, ...]]) -> None:
    """Build shim/test/SOURCE and run it in the guest, once for each list of arguments: each run ends with "ok"."""
    emulated = Emulated("aarch64", cpu)
    if emulated.missing:
        pytest.skip(emulated.missing)
    compiler = emulated.compiler("gcc")
    shim = folder / "libpsu_shim.so"
    subprocess.run(["make", "-s", "-C", str(SHIM), f"CC={compiler}", f"OUT={shim}"], check=True)
    program = build(shim, source, compiler)
    more = poor_offsets(shim)[:1] if source == "cancelled.c" else []
    script = " && ".join(shlex.join([str(program), *run, *routine_offsets(shim), *more]) for run in runs)
    done = subprocess.run([ROOT / "scripts" / "arm64-guest", "--cpu", cpu, "--smp", "1", "--timeout", "300", "--scratch",
                           folder, "--", "sh", "-c", script], capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and done.stdout.splitlines().count("ok") == len(runs), done.stdout + done.stderr


@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_a_call_cancelled_anywhere_is_counted_out_at_most_once(tmp_path, cpu):
    stepped(tmp_path, cpu, "cancelled.c", [(str(kind), "11", "2") for kind in (0, 1, 2)])


# At stride 3 a gate that looks and then stores, without the exclusive pair, fails at once.
def test_a_signal_anywhere_in_a_call_leaves_entries_with_one_owner(tmp_path):
    stepped(tmp_path, "max", "jumped.c", [("switch", "1", "3"), ("switch", "0", "41"), ("switch", "2", "61"),
                                          *((way, "1", "13") for way in ("call", "out", "inside"))])
