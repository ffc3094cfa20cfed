"""memory: what instrumenting and patching cost a process in bytes.

functions  a program with 100 to 10,000 functions, plain and instrumented: private memory when it has started
threads    the same program with 2 to 256 threads, each of which calls patched functions: what a thread adds
patches    one function patched again and again (--patches 10000 for the promise of the README): memory after each step
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from attach import Running, write_patch, write_program
from measure import Failed, memory, psu_bin
from report import Options, Plot, Table

TITLE = "Memory"


def measure(options: Options) -> dict:
    parts = options.names or ("functions", "threads", "patches")
    folder = Path(tempfile.mkdtemp(prefix="psu-bench-memory-"))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    out: dict = {}
    try:
        if "functions" in parts:
            out["functions"] = [
                _by_functions(folder, n) for n in ((100, 1000) if options.quick else (100, 1000, 10_000))
            ]
        if "threads" in parts:
            out["threads"] = [_by_threads(folder, n) for n in ((2, 64) if options.quick else (2, 16, 64, 256))]
        if "patches" in parts:
            out["patches"] = _by_patches(folder, options.patches or (30 if options.quick else 300), options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _by_functions(folder: Path, functions: int) -> dict:
    instrumented = write_program(folder, functions, 2)
    plain = folder / f"program{functions}"
    row: dict = {"functions": functions, "file_plain": plain.stat().st_size, "file": instrumented.stat().st_size}
    for name, path in (("plain", plain), ("instrumented", instrumented)):
        with Running(path) as process:
            time.sleep(0.3)  # every function is called at least once
            row[name] = memory(process.pid)
    return row


def _by_threads(folder: Path, threads: int) -> dict:
    """Private memory with all threads inside patched functions, against the same before the patch."""
    program = write_program(folder, 200, threads)
    with Running(program) as process:
        time.sleep(0.3)
        before = memory(process.pid)
        psu_bin("attach", process.pid, write_patch(folder, 200, 200))
        time.sleep(0.5)
        return {"threads": threads, "before": before, "after": memory(process.pid)}


def _by_patches(folder: Path, number: int, options: Options) -> list[dict]:
    program = write_program(folder, 10, 2)
    patches = [write_patch(folder, 10, 5, v) for v in range(4)]
    rows = []
    with Running(program) as process:
        for n in range(1, number + 1):
            psu_bin("attach", process.pid, patches[n % 4])
            if n <= 4 or n % max(number // 100, 1) == 0:
                psu_bin("wait", process.pid, "--timeout", 60)
                rows.append({"patches": n, **memory(process.pid)})
            if n % max(number // 10, 1) == 0:
                options.say(f"  {n} patches: {rows[-1]['resident'] >> 10} KB resident")
        if process.poll() is not None:
            raise Failed(f"the program ended with {process.returncode}")
    return rows


def tables(result: dict) -> list[Table]:
    out = []
    if "functions" in result:
        rows = []
        for r in result["functions"]:
            added = r["instrumented"]["dirty"] - r["plain"]["dirty"]
            rows.append(
                (
                    f"{r['functions']}",
                    f"{(r['file'] - r['file_plain']) / r['functions']:.0f}",
                    f"{r['plain']['dirty'] / 1024:.0f}",
                    f"{r['instrumented']['dirty'] / 1024:.0f}",
                    f"{added / 1024:.0f}",
                    f"{added / r['functions']:.0f}",
                    f"{(r['instrumented']['resident'] - r['plain']['resident']) / 1024:.0f}",
                )
            )
        out.append(
            Table(
                "Instrumented, before any patch",
                (
                    "functions",
                    "bytes a function in the file",
                    "private, plain, KB",
                    "instrumented, KB",
                    "added, KB",
                    "bytes a function",
                    "resident, added, KB",
                ),
                tuple(rows),
            )
        )
    if "threads" in result:
        first = result["threads"][0]
        rows = []
        for r in result["threads"]:
            added = r["after"]["dirty"] - r["before"]["dirty"]
            base = first["after"]["dirty"] - first["before"]["dirty"]
            more = r["threads"] - first["threads"]
            rows.append((str(r["threads"]), f"{added / 1024:.0f}", f"{(added - base) / more:.0f}" if more else ""))
        out.append(
            Table(
                "A patch of 200 functions, which all threads call",
                ("threads", "added by the patch, KB", "bytes a further thread"),
                tuple(rows),
            )
        )
    if "patches" in result:
        steps = result["patches"]
        chosen = sorted({0, 1, 3, len(steps) // 10, len(steps) // 2, len(steps) - 1} & set(range(len(steps))))
        out.append(
            Table(
                "Patches in a row, 5 functions each",
                ("patches", "resident, KB", "private, KB", "mappings"),
                tuple(
                    (
                        str(steps[n]["patches"]),
                        f"{steps[n]['resident'] / 1024:.0f}",
                        f"{steps[n]['dirty'] / 1024:.0f}",
                        str(steps[n]["mappings"]),
                    )
                    for n in chosen
                ),
            )
        )
    return out


def plots(result: dict) -> list[Plot]:
    if "patches" not in result:
        return []
    return [
        Plot(
            "memory-patches",
            "One process, patched again and again",
            "patches",
            "KB",
            {name: [(r["patches"], r[name] / 1024) for r in result["patches"]] for name in ("resident", "dirty")},
        )
    ]
