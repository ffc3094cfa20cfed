"""pause: what the threads of a program notice of attach.

pause.c spins, asks and answers, and blocks in 20 kinds of system calls, with 2 (that is 3: one that spins, one that
asks, one that answers), 64 and 512 threads.  While psu-bin attaches to it the longest gap of the spinning thread and
the longest answer are kept; and the same while the same command looks at another process (--dry-run), which costs the
machine the same and this program nothing.  The two take turns; what counts is their difference.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from attach import Running
from measure import ROOT, Failed, Spread, psu_bin
from report import Options, Plot, Table

TITLE = "What threads notice of attach"
THREADS = (2, 64, 512)
KINDS = ("control", "attach")


def measure(options: Options) -> dict:
    rounds = 6 if options.quick else 40
    folder = Path(tempfile.mkdtemp(prefix="psu-bench-pause-"))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        here = Path(__file__).resolve().parent
        subprocess.run(["gcc", "-O2", "-g", "-pthread", here / "pause.c", "-o", folder / "pause", "-lrt"], check=True)
        program = Path(psu_bin("instrument", folder / "pause")["output"])
        patches = []
        for n in (3, 5):
            source = folder / f"{n}.c"
            source.write_text(f"unsigned step(unsigned x) {{ return x * {n} + 1; }}\n")
            patches.append(folder / f"{n}.o")
            subprocess.run(["gcc", "-O2", "-g", "-c", source, "-o", patches[-1]], check=True)
        out = {}
        with Running(program, 2) as other:
            for threads in THREADS:
                with Running(program, threads) as process:
                    out[str(threads)] = _run(process, other.pid, patches, rounds)
                options.say(f"  {threads} threads")
        return {"threads": out}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(process: subprocess.Popen[str], other: int, patches: list[Path], rounds: int) -> dict:
    def say(line: str) -> str:
        assert process.stdin and process.stdout
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()

    out: dict = {k: [] for k in KINDS}
    stopped = 0
    for n in range(2 * rounds):
        kind = KINDS[(n + n // 2) % 2]
        say("reset")
        if kind == "attach":
            told = psu_bin("attach", process.pid, patches[n // 2 % 2])
            stopped += told["threads_stopped"]
        else:
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "psu_bin",
                    "attach",
                    str(other),
                    str(patches[n // 2 % 2]),
                    "--dry-run",
                    "--json",
                ],
                cwd=ROOT,
                check=True,
                capture_output=True,
            )
        fields = say("report").split()
        if len(fields) != 6 or process.poll() is not None:
            raise Failed(f"the program ended with {process.poll()}: {fields}")
        gap, answer, eintr, returned, spins, answers = map(float, fields)
        if not spins or not answers:
            raise Failed("nothing was measured")
        out[kind].append({"gap_us": gap, "answer_us": answer, "eintr": eintr, "returned": returned})
    psu_bin("wait", process.pid, "--timeout", 60)
    return {**out, "stopped": stopped}


def tables(result: dict) -> list[Table]:
    rows = []
    for threads, r in result["threads"].items():
        for kind in KINDS:
            gap, answer = (Spread.of(s[k] / 1000 for s in r[kind]) for k in ("gap_us", "answer_us"))
            rows.append(
                (
                    f"{threads} threads, {kind}",
                    str(gap.n),
                    f"{gap.median:.2f} ({gap.low:.2f} to {gap.high:.2f})",
                    f"{answer.median:.2f} ({answer.low:.2f} to {answer.high:.2f})",
                    f"{sum(s['eintr'] for s in r[kind]):.0f}",
                    f"{sum(s['returned'] for s in r[kind]):.0f}",
                    str(r["stopped"]) if kind == "attach" else "",
                )
            )
    return [
        Table(
            "",
            ("", "runs", "longest gap, ms", "longest answer, ms", "EINTR", "other returns", "threads stopped"),
            tuple(rows),
            "medians (quartiles); EINTR and other returns: of 20 kinds of blocked system calls, in all runs together",
        )
    ]


def plots(result: dict) -> list[Plot]:
    return [
        Plot(
            "pause",
            "Longest gap of a spinning thread",
            "threads",
            "ms",
            {
                kind: [
                    (threads, statistics.median(s["gap_us"] for s in r[kind]) / 1000)
                    for threads, r in result["threads"].items()
                ]
                for kind in KINDS
            },
            bars=True,
        )
    ]
