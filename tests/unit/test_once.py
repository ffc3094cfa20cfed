"""Test processes that want the same file at the same moment: one makes it, none sees it half made."""

import os
import subprocess
import sys
from pathlib import Path

import once
import pytest

PROCESSES = 8
CODE = """
import sys, time
from pathlib import Path
from once import made_once

def make(folder):
    with open(folder / "made", "a") as f:
        for _ in range(50):
            f.write("line\\n"); f.flush(); time.sleep(0.002)

sys.stdin.readline()
print((made_once("key", make) / "made").read_text().count("line"))
"""


def test_processes_side_by_side(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(once.__file__).parent)}
    all_of_them = [subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
                   for _ in range(PROCESSES)]
    for p in all_of_them:
        assert p.stdin
        p.stdin.write("go\n")
        p.stdin.flush()
    assert [p.communicate()[0] for p in all_of_them] == ["50\n"] * PROCESSES


def test_what_failed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.delenv("PSU_ARM64_GUEST", raising=False)
    monkeypatch.setattr(once.tempfile, "gettempdir", lambda: str(tmp_path))

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    with pytest.raises(ValueError):
        once.made_once("key", fails)
    assert (once.made_once("key", lambda folder: (folder / "whole").touch()) / "whole").exists()
    once.made_once("key", fails)
