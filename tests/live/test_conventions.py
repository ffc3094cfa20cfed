"""All calling conventions, called by threads without pause while functions are replaced (testprogs/conventions).

Versions alternate between two compilations of one patch, with and without optimisation: their code has nothing in
common but the convention.  PSU_TEST_CONVENTIONS: updates of each program (100); PSU_TEST_SEED: other signatures.
"""

import os
import subprocess
import sys

import pytest
from conftest import MACHINE, PROGRAMS, WAIT, psu_bin, updates
from updating import Versions

UPDATES = int(os.environ.get("PSU_TEST_CONVENTIONS", updates(100)))
PARTS = 4        # patches that together hold all functions
SEED = os.environ.get("PSU_TEST_SEED", "1")
# Callers in inline assembly push return addresses: no red zone.  -w: notes about conventions that changed long ago.
FLAGS = ("-w", "-Wno-psabi", "-g0", *(("-mno-red-zone",) if MACHINE == "x86_64" else ()))


@pytest.mark.parametrize("cc, level, updates", [("gcc", "-O1", UPDATES), ("clang", "-O1", UPDATES)])
def test_every_bit_arrives_in_every_version(lab, cc, level, updates):
    subprocess.run([sys.executable, PROGRAMS / "conventions" / "generate.py", lab.folder, SEED], check=True)
    here = (f"-I{lab.folder}", "-I.")
    running = lab.start(lab.program("conventions", *FLAGS, level, *here, sources=("main.c", "functions.c"), cc=cc), 2)
    versions = [Versions(lab, "conventions", "patch.c", *FLAGS, *here, optimisation, f"-DPARTS={PARTS}",
                         f"-DPART={part}", cc=cc) for optimisation in ("-O2", "-O0") for part in range(PARTS)]
    running.expect(r"^calling \d{3}$")
    running.expect("^version 0$")
    for v in range(1, updates + 1):
        versions[v % len(versions)].attach(running.pid, v)
    running.expect(f"^version {updates - PARTS + 1}$")
    running.fresh()
    for _ in range(2):
        running.expect("^rounds ")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$")
