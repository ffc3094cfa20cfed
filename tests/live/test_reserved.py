"""A program that reserved far more memory than there is: what searches it looks at what was touched."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from conftest import ROOT, WAIT, psu_bin

from psu_bin.attach import pagemap


def searched():
    """Whether this kernel finds the pages that are there by itself; before Linux 6.7 nobody looks through 16 TiB."""
    with open("/proc/self/pagemap", "rb", buffering=0) as f:
        return pagemap.scan(f, 0, 1 << 20) is not None


@pytest.mark.skipif(not searched(), reason="this kernel has no PAGEMAP_SCAN")
def test_calls_that_were_left_are_found(lab):
    """With 2 GiB of address space: the 8 bytes that pagemap has for each page of the target would be 32 GiB."""
    p = lab.start(lab.program("reserved"))
    p.expect("version 0")
    for n in (1, 2):
        psu_bin("attach", p.pid, lab.patch("reserved", f"patch{n}.c", out=f"patch{n}.o"))
        p.expect(f"version {n}")
    done = subprocess.run([sys.executable, "-m", "psu_bin", "wait", str(p.pid), "--timeout", str(WAIT)], cwd=ROOT,
                          capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)))
    assert done.returncode == 0, done.stderr
    assert p.alive()
