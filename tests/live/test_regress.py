"""psu-bin regress: a scenario that holds passes; one that does not fails, says why, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import PATIENCE, PROGRAMS, ROOT, psu_bin

SERVER = PROGRAMS / "server" / "scenario.toml"


@pytest.fixture
def temporary(tmp_path):
    """The folder that the harness uses for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def processes_in(folder: Path) -> list[int]:
    """Processes whose executable lies, or lay, in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "exe").startswith(str(folder)):
                found.append(int(entry.name))
        except OSError:
            pass       # ended meanwhile, or not ours
    return found


def test_a_passing_scenario(tmp_path, temporary):
    out = tmp_path / "out.json"
    done = psu_bin("regress", SERVER, "--short", "--logs", tmp_path / "logs", "--json", out, env={"TMPDIR": str(temporary)})
    (result,) = json.loads(out.read_text())["results"]
    assert result["outcome"] == "passed" and result["measures"]["attaches"] == 3 and result["measures"]["retired"] == 0
    assert "1 passed" in done.out
    assert not (tmp_path / "logs").exists() and not list(temporary.iterdir()) and not processes_in(temporary)


# The scenario with one thing changed for the worse: each check can fail.
@pytest.mark.parametrize("old, new, expected, seen", [
    ("^none shape$", "^nothing$", "a line that matches '^nothing$'", "no such line for 1 s"),
    ("current = 2, freed = 1", "current = 3", "status shows 3 current", "2 current"),
    ('reject = "^version [234]"', 'reject = "^version 1"', "none that matches '^version 1'", "rejected: version 1"),
    ('stop = "TERM"', 'load = "echo no; exit 3"', "echo no; exit 3 succeeds", "status 3: no"),
    ('stop = "TERM"', 'load = "kill -9 $PSU_PID; while [ -e /proc/$PSU_PID/exe ]; do :; done; exit 3"', "exit 3 succeeds",
     "the program: it ended by SIGKILL; the last lines:\n      port "),
    ("memory = 8", "memory = 0.001", "memory grows by no more than 0.001 MiB", "MiB more"),
    ('attach = "patch3"', 'attach = "patch3"\nrefused = "never"', "attach is refused with 'never'", "status 0"),
    ('revert = "original"', "revert = 99", "psu-bin revert succeeds", "status 1"),
])
def test_a_scenario_that_does_not_hold_fails(tmp_path, temporary, old, new, expected, seen):
    for file in SERVER.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = SERVER.read_text()
    assert old in text
    changed = text.replace(old, new)
    if "load" in new:
        changed += '[[step]]\nstop = "TERM"\n'
    changed = changed.replace('"^nothing$"', '"^nothing$"\nwithin = 1').replace("current = 3 }", "current = 3 }\nwithin = 1")
    (tmp_path / "scenario.toml").write_text(changed)
    done = psu_bin("regress", tmp_path / "scenario.toml", "--short", "--logs", tmp_path / "logs", "--junit", tmp_path / "x.xml",
                   check=False, env={"TMPDIR": str(temporary)})
    assert done.status == 1 and expected in done.out and seen in done.out and "1 failed" in done.out
    (log,) = (tmp_path / "logs").iterdir()
    assert expected in log.read_text() and "what the program printed:\nport " in log.read_text()
    failure = ET.parse(tmp_path / "x.xml").find("testcase/failure")
    assert failure is not None and failure.text and expected in failure.text
    assert not list(temporary.iterdir()) and not processes_in(temporary)


STALL = "#include <unistd.h>\nstatic int done;\n", "{ if (!__atomic_exchange_n(&done, 1, 5)) usleep(SOME); return"


# A patch whose first call takes long: seen by the thread that makes it, and never freed meanwhile.
@pytest.mark.parametrize("microseconds, checks, step, expected, seen", [
    (700_000, "pause = { told = '^paused for ([\\d.]+) ms', unit = 0.001, seconds = 0.6 }", "attach patch1",
     "no pause longer than 0.6 s around attach and revert\n", " s\n"),
    (0, "pause = { seconds = 1e-6, ratio = 1e-6 }", "stop TERM",
     "no pause longer than 1e-06 s around attach and revert, nor than 1e-06 times the control's", " s (control: "),
    (0, "pause = { told = 'nothing (.)' }", "attach patch1", "lines before and after, to measure the pause, that match",
     "none; the last"),
    (1_000_000_000, "freed = 1", "stop TERM", "no retired code is left within 1 s", "retired"),
])
def test_a_program_that_pauses(tmp_path, temporary, microseconds, checks, step, expected, seen):
    for file in (PROGRAMS / "pauses").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "patch1.c").read_text()
    (tmp_path / "patch1.c").write_text(STALL[0] + text.replace("{ return", STALL[1].replace("SOME", str(microseconds))))
    text = (tmp_path / "scenario.toml").read_text()
    text = re.sub("^pause = .*", lambda _: checks, text, flags=re.MULTILINE)
    (tmp_path / "scenario.toml").write_text(text)
    done = psu_bin("regress", tmp_path / "scenario.toml", "--short", "--logs", tmp_path / "logs", check=False,
                   env={"TMPDIR": str(temporary)})
    assert done.status == 1 and step in done.out and expected in done.out and seen in done.out, done.out
    assert not list(temporary.iterdir()) and not processes_in(temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, temporary, number):
    for file in SERVER.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = SERVER.read_text().replace('stop = "TERM"', 'load = "touch $MARK; sleep 1000"\nwithin = 1000\n[[step]]\nstop = "TERM"')
    (tmp_path / "scenario.toml").write_text(text)
    mark = tmp_path / "reached"
    run = subprocess.Popen([sys.executable, "-m", "psu_bin", "regress", tmp_path / "scenario.toml", "--short",
                            "--logs", tmp_path / "logs"], cwd=ROOT,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={**os.environ, "TMPDIR": str(temporary), "MARK": str(mark)})
    try:
        deadline = time.monotonic() + PATIENCE
        while not mark.exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert processes_in(temporary)
        run.send_signal(number)
        out = run.communicate(timeout=PATIENCE)[0]
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 130 and "interrupted" in out and "failed" not in out and not (tmp_path / "logs").exists()
    assert not list(temporary.iterdir()) and not processes_in(temporary)


def test_a_static_program_is_refused_and_that_is_right(tmp_path):
    done = psu_bin("regress", SERVER, "--only", "link=static-pie", "--only", "cc=gcc", "--only", "opt=-O2", "--only",
                   "threads=4", "--logs", tmp_path, env={"TMPDIR": str(tmp_path)})
    assert "1 refused" in done.out and "statically linked" in done.out
