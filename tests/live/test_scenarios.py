"""Every testprogs/NAME/scenario.toml, in its short variant; the long one is psu-bin regress without --short."""

from __future__ import annotations

import pytest
from conftest import PROGRAMS, psu_bin

SCENARIOS = sorted(PROGRAMS.glob("*/scenario.toml"))


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.parent.name)
def test_the_scenario_holds(tmp_path, file):
    # Programs are built there: compilers for scripts/arm64-guest run outside, and see the tests' folders only.
    done = psu_bin("regress", file, "--short", "--logs", tmp_path, check=False, env={"TMPDIR": str(tmp_path)})
    assert done.status == 0 and "1 passed" in done.out, done.out + done.err
