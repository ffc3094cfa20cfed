"""Debian's programs with all their functions instrumented (scripts/real): memcached answers some of its own tests and is
patched under load; lua for AArch64 does under qemu-user what the plain program does.

The first run fetches the source package and builds it into .cache/real; later ones need no network.  scripts/real runs the
whole of memcached's test suite, and does the same with redis.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

TRIAL = ROOT / "scripts" / "real.d" / "trial.py"
UNREACHABLE = 75


@pytest.mark.real
@pytest.mark.skipif("PSU_ARM64_GUEST" in os.environ, reason="scripts/real aarch64 live memcached does it in the guest")
def test_memcached_is_instrumented_tested_loaded_and_patched():
    done = subprocess.run([sys.executable, TRIAL, "memcached", "--suite", "short", "--json"], capture_output=True,
                          text=True, timeout=900)
    if done.returncode == UNREACHABLE:
        pytest.skip(f"Debian's packages cannot be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)
    assert report["instrument"]["functions"] > 350
    assert report["instrument"]["call_sites"] > 1200
    for function in report["instrument"]["not_updatable"]:
        assert function["reason"]
    assert report["suite"]["tests"] == 4 and report["suite"]["checks"] > 10_000
    assert not report["suite"]["fails_anyway"]
    live = report["live"]
    assert live["requests"] > 1000 and live["failed"] == 0 and live["asked"] > 10
    one, whole, *reverts = live["steps"]
    assert one["functions"] == 1 and whole["functions"] > 5
    assert [s["functions"] for s in reverts] == [whole["functions"], 1]
    assert all(s["threads_stopped"] == 0 for s in live["steps"])
    assert live["bytes_after_revert"] == 0


@pytest.mark.real
@pytest.mark.skipif(platform.machine() == "aarch64", reason="the test above runs natively")
def test_lua_for_aarch64_does_the_same_when_instrumented():
    done = subprocess.run([sys.executable, TRIAL.with_name("aarch64.py"), "lua", "--suite", "short", "--json"],
                          capture_output=True, text=True, timeout=900)
    if done.returncode == UNREACHABLE:
        pytest.skip(f"Debian's packages cannot be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)
    assert report["instrument"]["functions"] > 650 and report["instrument"]["call_sites"] > 3000
    assert not report["instrument"]["not_updatable"]
    assert report["lines"] == 27
