"""instrument: time and memory of `psu-bin instrument` against the size of the text.

Generated programs of several sizes; the programs of section servers and the engines of section mariadb, as far as they
have been built; and Debian's own mariadbd, stripped: the functions that it exports, and, with its debug file
(--mariadbd-debug FILE, or fetched from the distribution's archive of debug symbols, if that can be reached), all of
them.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import debian
import mariadb_build
import program_build
from attach import BODY
from measure import ROOT, Failed
from report import Options, Plot, Table

TITLE = "psu-bin instrument"


def measure(options: Options) -> dict:
    folder = Path(tempfile.mkdtemp(prefix="psu-bench-instrument-"))
    rows, missing = [], []
    rounds = 1 if options.quick else 5
    try:
        files: list[tuple[str, Path, Path | None]] = []
        for n in (100, 3000) if options.quick else (100, 1000, 3000, 10_000, 30_000, 100_000):
            files.append((f"{n} generated functions", _generated(folder, n), None))
        for name in program_build.BUILDERS:
            path = program_build.CACHE / name / name
            if path.exists():
                files.append((name, path, None))
        for engine in mariadb_build.ENGINES:
            path = mariadb_build.CACHE / "plugins" / engine.library
            if path.exists():
                files.append((engine.library, path, None))
        server = mariadb_build.CACHE / "root/usr/sbin/mariadbd"
        if server.exists():
            files.append(("mariadbd, exported functions", server, None))
            try:
                files.append(("mariadbd, all functions", server, _debug_file(server, options)))
            except debian.Unreachable as e:
                missing.append("mariadbd's debug symbols could not be fetched")
                options.say(f"  {missing[-1]}: {str(e).splitlines()[-1][:200]}")
        else:
            missing.append("mariadbd is not there: section mariadb fetches it")
        for name, path, debug in files:
            samples = [_once(path, debug, folder / "out") for _ in range(rounds)]
            rows.append(
                {
                    "name": name,
                    "text": _text(path),
                    **samples[-1],
                    **{k: statistics.median(s[k] for s in samples) for k in ("seconds", "cpu", "megabytes")},
                }
            )
            options.say(f"  {name}: {rows[-1]['seconds']:.1f} s, {rows[-1]['megabytes']:.0f} MB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"rows": rows, "missing": missing}


def _generated(folder: Path, functions: int) -> Path:
    """A program with realistic density of calls: every function calls two others."""
    text = ["static unsigned table[16]; __attribute__((noinline)) unsigned helper(unsigned x) { return x + 3; }"]
    text += [f"unsigned f{i}(unsigned);" for i in range(functions)]
    text += [
        f"__attribute__((noinline)) unsigned f{i}(unsigned x) {{ {BODY} if (x & 2) x = f{(i * 7 + 1) % functions}(x);"
        f" return x + f{(i * 3 + 2) % functions}(x >> 1); }}"
        for i in range(functions)
    ]
    text += ["int main(int c, char **v) { return f0(c); }"]
    source = folder / f"generated{functions}.c"
    source.write_text("\n".join(text))
    out = source.with_suffix("")
    subprocess.run(["gcc", "-O1", source, "-o", out], check=True)
    return out


def _debug_file(binary: Path, options: Options) -> Path:
    """The file with the symbols of Debian's server.  Raises debian.Unreachable."""
    if options.mariadb_debug:
        return options.mariadb_debug
    notes = subprocess.run(["readelf", "-n", binary], text=True, capture_output=True, check=True).stdout
    build_id = re.search(r"Build ID: ([0-9a-f]+)", notes)[1]
    root = mariadb_build.CACHE / "debug"
    path = root / f"usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    if not path.exists():
        version = next(mariadb_build.CACHE.glob("debs/mariadb-server-core_*")).name.split("_")[1].replace("%3a", ":")
        deb = debian.download_debug("mariadb-server-core-dbgsym", version, mariadb_build.CACHE)
        debian.run("dpkg-deb", "-x", deb, root)
    if not path.exists():
        raise debian.Unreachable(f"the debug package has no {path.name}")
    return path


def _once(path: Path, debug: Path | None, out: Path) -> dict:
    began = time.perf_counter()
    command = [sys.executable, "-m", "psu_bin", "instrument", path, "-o", out, "--json"]
    with tempfile.TemporaryFile("w+") as text, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command + (["--debug-file", debug] if debug else []), stdout=text, stderr=errors, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise Failed(f"instrument {path.name}: status {process.returncode}: {errors.read().strip()[-1000:]}")
        import json

        text.seek(0)
        told = json.load(text)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "megabytes": usage.ru_maxrss / 1024,
        "functions": told["functions"],
        "call_sites": told["call_sites"],
        "not_updatable": len(told["not_updatable"]),
        "grown": out.stat().st_size - path.stat().st_size,
    }


def _text(path: Path) -> int:
    sizes = subprocess.run(["size", "-A", path], text=True, capture_output=True, check=True).stdout
    return int(re.search(r"^\.text\s+(\d+)", sizes, re.M)[1])


def tables(result: dict) -> list[Table]:
    rows = tuple(
        (
            r["name"],
            f"{r['text']:,}",
            f"{r['functions']:,}",
            f"{r['not_updatable']:,}",
            f"{r['call_sites']:,}",
            f"{r['seconds']:.1f}",
            f"{r['cpu']:.1f}",
            f"{r['megabytes']:.0f}",
            f"{r['grown'] / 1024:,.0f}",
        )
        for r in sorted(result["rows"], key=lambda r: r["text"])
    )
    return [
        Table(
            "",
            (
                "",
                ".text bytes",
                "functions",
                "not updatable",
                "call sites",
                "seconds",
                "processor seconds",
                "MB at most",
                "file grows by, KB",
            ),
            rows,
            "; ".join(result["missing"]),
        )
    ]


def plots(result: dict) -> list[Plot]:
    rows = sorted(result["rows"], key=lambda r: r["text"])
    series = {
        "real programs": [(r["text"], r["cpu"]) for r in rows if "generated" not in r["name"]],
        "generated": [(r["text"], r["cpu"]) for r in rows if "generated" in r["name"]],
    }
    return [Plot("instrument", "psu-bin instrument", ".text bytes", "processor seconds", series, logarithmic="xy")]
