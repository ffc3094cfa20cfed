"""psu-bin regress with programs so small that only the harness is at work: tables, files, parallel jobs, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, compile, psu_bin
from test_regress import processes_in

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int same(int x) { return x; }
int twice(int x) { return 2 * x; }
int main(int argc, char **argv)
{
    int n;
    setvbuf(stdout, 0, _IOLBF, 0);
    printf("ready %s %s\n", argc > 1 ? argv[1] : "", getenv("COLOUR") ? getenv("COLOUR") : "");
    while (scanf("%d", &n) == 1) {
        if (n < 0)
            return -n;
        printf("number %d, twice %d\n", n, twice(same(n)));
    }
    pause();
}
"""
HEAD = """[program]
sources = ["main.c"]
env = { COLOUR = "colour-{threads}" }
"""


class Here:
    """A folder with a program and a scenario for it, and what is left of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.logs = folder, folder / "tmp", folder / "logs"
        self.temporary.mkdir()
        (folder / "main.c").write_text(PROGRAM)

    def scenario(self, steps: str, head: str = "") -> Path:
        file = self.folder / "scenario.toml"
        file.write_text(HEAD + head + steps)
        return file

    def run(self, steps: str, *arguments: object, head: str = ""):
        done = psu_bin("regress", self.scenario(steps, head), "--logs", self.logs, *arguments, check=False,
                       env={"TMPDIR": str(self.temporary)})
        self.clean()
        return done

    def clean(self) -> None:
        assert not list(self.temporary.iterdir()) and not processes_in(self.temporary) and not sleeping(self.temporary)

    def begin(self, file: Path, *arguments: str, **more) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "psu_bin", "regress", file, "--logs", self.logs, *arguments],
                                cwd=ROOT, env={**os.environ, "TMPDIR": str(self.temporary)}, **more)


@pytest.fixture
def here(tmp_path):
    return Here(tmp_path)


def step(action: str, *more: str) -> str:
    return "\n".join(["", "[[step]]", action, *more, ""])


READY = step('start = ["{threads}"]') + step("expect = '^ready {threads} (?P<name>\\w*)-{threads}$'")
STOP = step('stop = "TERM"')


def test_send_repeat_and_what_patterns_named(here):
    done = here.run(READY + """
[[step]]
repeat = 2
[[step.step]]
repeat = 3
[[step.step.step]]
send = "1{round}"
[[step.step.step]]
expect = '^number 1{round}, twice 2\\d$'
[[step.step]]
load = "test $PSU_NAME = colour && test {name} = colour && test $PSU_THREADS = 4 && kill -0 $PSU_PID"
""" + step('send = "-7"') + step('stop = "none"', "exit = 7"))
    assert done.status == 0 and "1 passed" in done.out


@pytest.mark.parametrize("steps, expected, seen", [
    (step('send = "-7"') + step('stop = "none"'), "the program ends with status 0",
     "it ended with status 7; the last lines:\n"),
    (step('stop = "TERM"', "exit = 3"), "the program ends with status 3", "it ended by SIGTERM"),
    (step('stop = "CONT"', "within = 0.1"), "the program ends within 0.1 s after CONT",
     "it lives; the last lines:\n      ready"),
    (step('send = "-7"') + step("expect = 'twice'") + STOP, "a line that matches 'twice'",
     "it ended with status 7; the last"),
    (step('load = "sleep 0.1; echo it broke; exit 4"', "background = true") + STOP,
     "sleep 0.1; echo it broke; exit 4 succeeds", "status 4: it broke"),
    (step('load = "sleep 1000"', "background = true", "within = 0.1") + STOP, "sleep 1000 succeeds",
     r"not ended after 0\.\d s: no"),
    (step('load = "sleep 1000 & wait"', "within = 0.1") + STOP, "sleep 1000 & wait succeeds",
     r"not ended after 0\.\d s: no output"),
    (step('load = "kill -9 $PSU_PID; while [ -e /proc/$PSU_PID/exe ]; do :; done"') + STOP, "the program lives",
     "it ended by SIGKILL; the last lines:\n      ready"),
    (step("expect = 'x'", 'from = "1"') + STOP, "a connection to port 1", "Connection refused"),
    (step("wait = 1"), "a stop step at the end", "the program lives when the last step is done"),
])
def test_a_step_that_fails_says_what_was_expected_and_seen(here, steps, expected, seen):
    done = here.run(READY + steps)
    assert done.status == 1 and f"expected {expected}" in done.out and re.search(f"seen {seen}", done.out), done.out
    assert [p.name for p in here.logs.iterdir()] == [f"{here.folder.name}-cc_-O2_pie_4_threads.log"]


@pytest.mark.parametrize("program, head, expected, seen", [
    ("int main(void) { return nothing; }", "", "cc -o ", "nothing"),
    ("int main(void) { return 0; }", '[patches]\np = "p.c"\n', "cc -g ", "wrong"),
    ("int main(void) { return 0; }", "", "", "it ended with status 0"),
])
def test_what_fails_before_the_program_runs(here, program, head, expected, seen):
    (here.folder / "main.c").write_text(program)
    (here.folder / "p.c").write_text("int f(void) { return wrong; }")
    done = here.run(step("start = []") + step("wait = 1") + STOP, head=head)
    assert done.status == 1 and f"expected {expected}" in done.out and seen in done.out.partition("seen ")[2]


def test_a_program_that_does_not_read_what_it_is_sent(here):
    here.folder.joinpath("main.c").write_text(PROGRAM.replace("int n;", "int n = close(0);"))
    done = here.run(READY + step('send = "1"') + STOP)
    assert done.status == 1 and "expected '1' can be sent\n    seen Broken pipe\n" in done.out and "1 failed" in done.out, done


def test_patches_one_by_one_and_together(here):
    """And a program that is there already."""
    (here.folder / "one.c").write_text("int twice(int x) { return 2 * x + 100; }")
    (here.folder / "two.c").write_text("int same(int x) { return x + 1; }")
    (here.folder / "three.c").write_text("int nowhere(int);\nint twice(int x) { return nowhere(x); }")
    compile("-g", "-O1", "-fno-inline", here.folder / "main.c", "-o", here.folder / "made")
    head = """[patches]
one = "one.c"
two = "two.c"
three = "three.c"
"""
    before, after = (step('send = "5"') + step(f"expect = '^number 5, twice {n}$'") for n in (10, 112))
    steps = (READY + before + step('attach = ["one", "two"]') + after
             + step('attach = "three"', "refused = 'unresolved symbol: nowhere'") + after
             + step("status = { current = 1, patches = 1 }") + step("revert = 1") + before + step("wait = 30")
             + step("status = { freed = 1 }") + STOP)
    file = here.scenario(steps, head)
    file.write_text(file.read_text().replace('sources = ["main.c"]', 'binary = "made"'))
    done = psu_bin("regress", file, "--logs", here.logs, check=False, env={"TMPDIR": str(here.temporary)})
    assert done.status == 0 and "1 passed" in done.out, done.out


def test_a_mistake_in_a_scenario_is_told_with_its_line_before_anything_runs(here):
    good, bad = here.scenario(READY + STOP), here.folder / "bad.toml"
    bad.write_text(good.read_text().replace("sources", "sauces"))
    done = psu_bin("regress", good, bad, check=False)
    assert done.status == 2 and not done.out
    assert done.err == f"psu-bin: {bad}:2: unknown key: sauces (did you mean sources)\n"
    done = psu_bin("regress", good, good, check=False)
    assert done.status == 2 and f"second scenario of this name: {here.folder.name}" in done.err
    done = psu_bin("regress", "--check", good)
    assert done.out == "1 scenarios, 1 combinations\n"


def test_every_cell_of_the_matrix_is_a_row_in_the_table_and_in_the_files(here):
    """One fails, one has no compiler, one is refused: the log of the one that failed is kept, and only that."""
    head = '[matrix]\ncc = ["cc", "no-such-cc"]\nlink = ["pie", "static-pie"]\nthreads = [1, 3]\n'
    files = here.folder / "x.json", here.folder / "x.xml"
    done = here.run(READY + step('load = "test {threads} = 1"') + STOP, "--json", files[0], "--junit", files[1],
                    head=head)
    assert done.status == 1 and done.out.endswith("\n1 passed, 2 refused, 4 skipped, 1 failed\n")
    rows = [line for line in done.out.splitlines() if line.startswith(here.folder.name)]
    assert [row.split()[1:7] for row in rows][:2] == [["cc", "-O2", "pie", "1", "thread", "passed"],
                                                      ["cc", "-O2", "pie", "3", "threads", "failed"]]
    results = json.loads(files[0].read_text())["results"]
    assert [(r["cc"], r["link"], r["threads"], r["outcome"]) for r in results] == [
        ("cc", "pie", 1, "passed"), ("cc", "pie", 3, "failed"), ("cc", "static-pie", 1, "refused"),
        ("cc", "static-pie", 3, "refused"), *(("no-such-cc", link, n, "skipped")
                                         for link in ("pie", "static-pie") for n in (1, 3))]
    failure = results[1]["failure"]
    assert failure["step"] == "load test 3 = 1" and failure["seen"] == "status 1: no output"
    assert failure["where"].endswith("scenario.toml:16")
    assert [str(p) for p in here.logs.iterdir()] == [failure["log"]]
    assert results[4]["note"] == "no-such-cc is not installed" and results[0]["seconds"] > 0
    suite = ET.parse(files[1]).getroot()
    assert [suite.get(k) for k in ("tests", "failures", "skipped")] == ["8", "1", "4"]
    assert [[x.tag for x in case] for case in suite] == [[], ["failure"], [], [], *[["skipped"]] * 4]


def test_jobs_run_at_the_same_time(here):
    """Each waits for the other."""
    marks = here.folder / "marks"
    marks.mkdir()
    both = f"test -e {marks}/1 && test -e {marks}/2"
    meet = step(f'load = "touch {marks}/{{threads}}; until {both}; do sleep 0.05; done"')
    done = here.run(READY + meet + STOP, "-j", 2, head="[matrix]\nthreads = [1, 2]\n")
    assert done.status == 0 and "2 passed" in done.out


def test_progress_is_shown_on_a_terminal_and_nowhere_else(here):
    """It is written to standard error, over itself, and is gone at the end."""
    file = here.scenario(READY + STOP)
    master, slave = pty.openpty()
    with here.begin(file, stdout=subprocess.PIPE, stderr=slave) as run:
        os.close(slave)
        shown = b""
        try:
            while more := os.read(master, 1000):
                shown += more
        except OSError:
            pass                 # the other end is closed
        assert run.stdout is not None
        out = run.stdout.read()
    os.close(master)
    assert run.returncode == 0 and b"1 passed" in out and b"\r" not in out
    assert f"\r\x1b[K[0/1] {here.folder.name} (cc -O2 pie 4 threads)".encode() in shown and shown.endswith(b"\r\x1b[K")
    done = here.run(READY + STOP)
    assert done.status == 0 and not done.err


def wait_for(mark: Path, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not mark.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["build", "load", "background", "expect"])
def test_signals_at_any_step_leave_nothing(here, where):
    """Several at once, with two jobs at work, one of whose programs ignores what can be ignored."""
    mark = here.folder / "reached"
    hold = f"touch {mark}$PSU_THREADS; trap '' TERM INT HUP; sleep 1000 & sleep 1000"
    head = "[matrix]\nthreads = [1, 2]\n"
    steps = {"build": "", "load": step(f'load = "{hold}"', "within = 1000"),
             "background": step(f'load = "{hold}"', "background = true", "within = 1000"),
             "expect": step(f'load = "touch {mark}{{threads}}"') + step("expect = 'never'", "within = 1000")}[where]
    file = here.scenario(READY + steps + STOP, head)
    if where == "build":
        file.write_text(file.read_text().replace('sources = ["main.c"]', f'build = "cp /bin/sleep $OUT; {hold}"'))
    with here.begin(file, "-j", "2", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        try:
            for n in "12":
                wait_for(Path(f"{mark}{n}"), run)
            # Stopped meanwhile: they come together, and none of them after the last thing that Python does.
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
                run.send_signal(number)
            out = run.communicate(timeout=PATIENCE)[0]
        finally:
            run.kill()
    assert run.returncode == 130 and out.endswith(b"psu-bin: interrupted\n") and b"failed" not in out
    assert not here.logs.exists()
    here.clean()


def sleeping(folder: Path) -> list[int]:
    """Processes that work in, or were told of, `folder`: commands of the steps have executables elsewhere."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"TMPDIR={folder}/".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass       # ended meanwhile, or not ours
    return found


def test_a_reader_of_the_output_that_goes(here):
    """As `psu-bin regress ... | head -1`: the first row that cannot be written ends the run."""
    mark = here.folder / "reached"
    hold = f"test {{threads}} = 1 || exec sleep 1000; touch {mark}"
    file = here.scenario(READY + step(f'load = "{hold}"', "within = 1000") + STOP, "[matrix]\nthreads = [2, 1]\n")
    with here.begin(file, "-j", "2", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        try:
            assert run.stdout is not None and run.stdout.readline().startswith(b"scenario")
            run.stdout.close()
            run.wait(PATIENCE)
        finally:
            run.kill()
    assert run.returncode == 130 and mark.exists()
    here.clean()
