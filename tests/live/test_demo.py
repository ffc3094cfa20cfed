"""scripts/demo is the first thing that a newcomer runs: every request answered, every version seen, old code freed."""

import os
import re
import subprocess
import sys

from conftest import ROOT, SLOWNESS


def test_the_demonstration(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "scripts" / "demo.py"], capture_output=True, text=True,
                          timeout=300 * SLOWNESS, env={**os.environ, "TMPDIR": str(tmp_path)})     # compilers see this folder
    assert done.returncode == 0, done.stdout + done.stderr
    for n in (1, 2, 3, 4):
        assert f"stats says: version {n} requests" in done.stdout
    assert re.search(r"[1-9]\d* requests answered, 0 wrong", done.stdout)
    assert re.search(r"\b1  freed +0 +0  patch1.o", done.stdout)
    assert re.search(r"version 4 .*\n(.*\n)*.*version 3 requests", done.stdout)   # after the revert
    assert "warning" not in done.stderr
