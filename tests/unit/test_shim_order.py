"""The order of the agent's steps in a commit and in reclaiming, held where it matters: see shim/test/order.c."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from shim_host import build, shim  # noqa: F401  (shim is a fixture)

UNAVAILABLE = 77


@pytest.mark.parametrize("case", ["barriers", "sums"])
def test_each_step_is_where_the_argument_wants_it(shim: Path, case: str) -> None:  # noqa: F811
    done = subprocess.run([str(build(shim, "order.c")), case], check=False, capture_output=True, text=True, timeout=120)
    if done.returncode == UNAVAILABLE:
        pytest.skip("no seccomp notifications" if case == "barriers" else "no userfaultfd")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
