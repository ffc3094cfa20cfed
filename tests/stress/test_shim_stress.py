"""The shim under load: thousands of commits a second while threads and a signal handler call what is replaced."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

SHIM = Path(__file__).parents[2] / "shim"


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shim")
    subprocess.run(["make", "-s", "-C", str(SHIM), f"OUT={out}/libpsu_shim.so"], check=True)
    subprocess.run(["gcc", "-std=gnu11", "-g", "-O2", "-fPIC", "-pthread", str(SHIM / "test" / "stress.c"),
                    f"-I{SHIM / 'test' / platform.machine()}", "-o", str(out / "stress"), f"-L{out}",
                    "-Wl,--no-as-needed", "-l:libpsu_shim.so", f"-Wl,-rpath,{out}"], check=True)
    return out / "stress"


@pytest.mark.parametrize(("threads", "least"), [(1, 1000), (3, 100), (16, 5)])
def test_every_call_runs_a_current_version_and_retired_ones_are_unmapped(stress: Path, threads: int,
                                                                         least: int) -> None:
    done = subprocess.run([str(stress), "2", str(threads)], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok ")
    commits = int(done.stdout.split()[3])
    assert commits >= least, done.stdout
