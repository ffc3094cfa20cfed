"""scripts/fuzz keeps what it finds: exceptions, crashes of the process, and cases that do not end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import long
import pytest
from targets import TARGETS, Target


def crash(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(data: bytes) -> None:
    time.sleep(1000)


def fault(data: bytes) -> None:
    raise KeyError(data)


@pytest.mark.parametrize("broken, place, details", [
    (fault, "KeyError < test_long.py:", "KeyError: b'input 8"), (crash, "killed by signal 9", "killed"),
    (sleep, "does not end", "does not end")])
def test_findings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[bytes], None], place: str,
                           details: str) -> None:
    def run(data: bytes) -> None:
        if data >= b"input 8":
            broken(data)
    monkeypatch.setitem(TARGETS, "broken", Target(lambda chance: b"input %d" % number(chance), run))
    if broken is sleep:
        monkeypatch.setattr(long, "HANGS", 4.0)
    numbers = iter(range(100))

    def number(chance: object) -> int:
        return next(numbers)
    findings = long.Findings(tmp_path / "found")
    assert long.run("broken", list(range(10)), findings) == (10 if broken is fault else 9)
    ((name, where), times), = findings.kinds.items()
    assert name == "broken" and where.startswith(place) and times == (2 if broken is fault else 1)
    assert sorted(f.name for f in (tmp_path / "found").iterdir()) == ["broken-8", "broken-8.txt"]
    assert details in (tmp_path / "found" / "broken-8.txt").read_text()


def test_nothing_found(tmp_path: Path) -> None:
    findings = long.Findings(tmp_path / "found")
    assert long.run("proc", list(range(50)), findings) == 50
    assert not findings.kinds and not (tmp_path / "found").exists()
