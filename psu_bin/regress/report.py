"""What a run of scenarios looks like: lines on a terminal, a JSON file, a JUnit file."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psu_bin.errors import PsuError
from psu_bin.regress.runner import Failure, Job, Result

HEADER = f"{'scenario':16} {'build':34} {'result':8} {'s':>6} {'patches':>7} {'pause ms':>8} {'control':>7} {'KiB':>7}"


def row(r: Result) -> str:
    """One line of the table."""
    m = r.measures
    pause, control = ("" if s is None else f"{s * 1e3:.1f}" for s in (m.pause_seconds, m.control_seconds))
    memory = "" if m.memory_kib is None else f"{m.memory_kib:+d}"
    line = (f"{r.job.scenario.name:16} {str(r.job.cell):34} {r.outcome:8} {r.seconds:6.1f} {m.attaches or '':>7} "
            f"{pause:>8} {control:>7} {memory:>7}").rstrip()
    return f"{line}  {r.note}" if r.note else line


def failure(f: Failure) -> str:
    """The lines that explain a failure."""
    seen = f.seen.replace("\n", "\n      ")
    text = f"  {f.where}: {f.step}\n    expected {f.expected}\n    seen {seen}"
    return text + (f"\n    log {f.log}" if f.log else "")


def progress(done: int, total: int, running: Sequence[Job]) -> str:
    """The line that a terminal shows below the table while jobs run."""
    names = ", ".join(f"{j.scenario.name} ({j.cell})" for j in running)
    return f"[{done}/{total}] {names}"[:110]


def summary(results: Sequence[Result]) -> str:
    counts = {o: sum(r.outcome == o for r in results) for o in ("passed", "refused", "skipped", "failed")}
    return ", ".join(f"{n} {o}" for o, n in counts.items() if n)


def write_json(results: Sequence[Result], file: Path) -> None:
    """An object with one entry a job.  PsuError when the file cannot be written."""
    entries: list[dict[str, Any]] = []
    for r in results:
        f = r.failure
        entries.append({"scenario": r.job.scenario.name, "file": str(r.job.scenario.file), **asdict(r.job.cell),
                        "outcome": r.outcome, "note": r.note, "seconds": round(r.seconds, 3), "measures": asdict(r.measures),
                        "failure": f and {"where": f.where, "step": f.step, "expected": f.expected, "seen": f.seen,
                                          "log": str(f.log) if f.log else None}})
    _write(file, json.dumps({"results": entries}, indent=1) + "\n")


def write_junit(results: Sequence[Result], file: Path) -> None:
    """The format that CI systems read: one testcase a job.  PsuError when the file cannot be written."""
    failed = sum(r.outcome == "failed" for r in results)
    skipped = sum(r.outcome == "skipped" for r in results)
    suite = ET.Element("testsuite", name="psu-bin regress", tests=str(len(results)), failures=str(failed),
                       skipped=str(skipped), errors="0", time=f"{sum(r.seconds for r in results):.3f}")
    for r in results:
        case = ET.SubElement(suite, "testcase", classname=r.job.scenario.name, name=str(r.job.cell), time=f"{r.seconds:.3f}")
        if r.failure:
            first = f"{r.failure.where}: {r.failure.step}"
            ET.SubElement(case, "failure", message=_xml(first)).text = _xml(failure(r.failure))
        elif r.outcome == "skipped":
            ET.SubElement(case, "skipped", message=_xml(r.note))
    _write(file, '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n")


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold, escaped or not; a program may print any."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff") else
                   ascii(c)[1:-1] for c in text)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise PsuError(str(file), f"cannot be written: {e.strerror}") from None
