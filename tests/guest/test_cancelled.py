"""shim/test/cancelled.c on AArch64: a call through a gate, cancelled at many of its instructions, is counted out at most once.

One processor: the test's two processes take turns at every instruction.  tests/unit/test_shim.py has the finer one, native.
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


@pytest.mark.skipif(platform.machine() == "aarch64", reason="test_shim.py does it natively")
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_a_call_cancelled_anywhere_is_counted_out_at_most_once(tmp_path, cpu):
    emulated = Emulated("aarch64", cpu)
    if emulated.missing:
        pytest.skip(emulated.missing)
    compiler = emulated.compiler("gcc")
    shim = tmp_path / "libpsu_shim.so"
    subprocess.run(["make", "-s", "-C", str(SHIM), f"CC={compiler}", f"OUT={shim}"], check=True)
    program = build(shim, "cancelled.c", compiler)
    script = "; ".join(shlex.join([str(program), str(kind), "11", "2", *routine_offsets(shim), poor_offsets(shim)[0]])
                       for kind in (0, 1, 2))
    done = subprocess.run([ROOT / "scripts" / "arm64-guest", "--cpu", cpu, "--smp", "1", "--timeout", "300", "--scratch",
                           tmp_path, "--", "sh", "-c", script], capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0 and done.stdout.splitlines().count("ok") == 3, done.stdout + done.stderr
