"""mariadb: a storage engine with every function instrumented, in Debian's unmodified MariaDB server.

MyISAM and HEAP, compiled as plugins (mariadb_build.py).  Three servers run at the same time and take turns: with the
plain plugins, with the instrumented ones, and with instrumented ones of which every function was replaced once.  Then
the entire engine is replaced again and again while sysbench runs.
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
from contextlib import ExitStack
from pathlib import Path

import debian
import mariadb_build as build
from mariadb_server import Prober, Server, Sysbench
from measure import MEASURED, OTHERS, ROOT, Failed, Skipped, Spread, memory, on, psu_bin, quickest
from report import Options, Plot, Table

TITLE = "A storage engine in MariaDB"
VARIANTS = ("plain", "instrumented", "replaced")
SCAN_ROWS = 100_000
WORKLOADS = ("point selects", "read/write", "scan")


def measure(options: Options) -> dict:
    try:
        db = build.prepare(options.say)
    except debian.Unreachable as e:
        raise Skipped(str(e)) from None
    if not shutil.which("sysbench"):
        raise Skipped("sysbench is not installed")
    folder = Path(tempfile.mkdtemp(prefix="mariadb-", dir=build.CACHE))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        plugins, told = _instrument(db, folder)
        result: dict = {"version": db.version, "instrument": told}
        parts = options.names or ("time", "live", "row")
        if "time" in parts:
            result["time"] = _time(db, plugins, folder, options)
        if "live" in parts:
            result["live"] = {e.name: _live(db, e, plugins, folder, options) for e in build.ENGINES}
        if "row" in parts:
            result["row"] = {e.name: _in_a_row(db, e, plugins, folder, options) for e in build.ENGINES}
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _instrument(db: build.MariaDB, folder: Path) -> tuple[Path, dict]:
    plugins = folder / "plugins"
    plugins.mkdir()
    told = {}
    for engine in build.ENGINES:
        r = psu_bin("instrument", db.plain / engine.library, "-o", plugins / engine.library)
        if r["not_updatable"]:
            raise Failed(f"{engine.library}: not updatable: {r['not_updatable']}")
        told[engine.name] = {"functions": r["functions"], "call_sites": r["call_sites"]}
    return plugins, told


def _patches(db: build.MariaDB, engine: build.Engine, n: int) -> list[Path]:
    kept = build.CACHE / "patches"
    kept.mkdir(exist_ok=True)
    return [build.compile_patch(db, engine, kept, i) for i in range(n)]


def _attach(server: Server, patch: Path, engine: build.Engine) -> dict:
    """Replace the whole engine; raises Failed unless nobody was stopped."""
    r = psu_bin("attach", server.process.pid, patch)
    server.alive()
    if r["threads_stopped"]:
        raise Failed(f"attach stopped {r['threads_stopped']} threads")
    return {"functions": len(r["functions"]), "bytes": r["bytes"], "wall": r["wall"], **r["seconds"]}


# ---- processor time -------------------------------------------------------------------------------------------------


def _time(db: build.MariaDB, plugins: Path, folder: Path, options: Options) -> dict:
    rounds, events, scans = (5, 2000, 10) if options.quick else (80, 4000, 10)
    out: dict = {}
    with ExitStack() as stack:
        with on(MEASURED):
            servers = {
                v: stack.enter_context(Server(db, db.plain if v == "plain" else plugins, folder / v)) for v in VARIANTS
            }
        stack.enter_context(on(OTHERS))
        for engine in build.ENGINES:
            benches = {v: Sysbench(s, engine.name) for v, s in servers.items()}
            for v, s in servers.items():
                benches[v].prepare()
                s.run(
                    f"create table scanned (id int not null, k int, c char(60)) engine={engine.name};"
                    f"insert into scanned select seq, seq * 7 % 1000, repeat('x', 50) from seq_1_to_{SCAN_ROWS}",
                    database=benches[v].database,
                )
            replaced = _attach(servers["replaced"], _patches(db, engine, 1)[0], engine)
            work: dict = {w: {v: [] for v in VARIANTS} for w in WORKLOADS}
            for n in range(rounds + 1):
                for v in VARIANTS[n % 3 :] + VARIANTS[: n % 3]:
                    for w in WORKLOADS:
                        t = _once(servers[v], benches[v], w, events, scans)
                        if n:  # the first round warms up
                            work[w][v].append(t)
                options.say(f"  {engine.name}: round {n} of {rounds}")
            share = {w: _share(servers["plain"], benches["plain"], engine, w, events, scans) for w in WORKLOADS}
            out[engine.name] = {"work": work, "share": share, "functions": replaced["functions"]}
    return out


def _once(server: Server, bench: Sysbench, work: str, events: int, scans: int) -> float:
    """Seconds of the server's processor time a query; of a scan, a row."""
    before = server.cpu()
    if work == "scan":
        got = server.run("select sum(k), count(*) from scanned where c like 'x%';" * scans, database=bench.database)
        wanted = f"{sum(i * 7 % 1000 for i in range(1, SCAN_ROWS + 1))}\t{SCAN_ROWS}\n" * scans
        if got != wanted:
            raise Failed(f"scan: {str(got)[:100]!r}")
        return (server.cpu() - before) / (scans * SCAN_ROWS)
    test = "oltp_point_select" if work == "point selects" else "oltp_engine"
    told = bench.finish(bench.start(test, events=events if work == "point selects" else events // 20))
    _no_errors(told)
    return (server.cpu() - before) / told["queries"]


def _no_errors(told: dict[str, float]) -> None:
    if told["errors"] or told["reconnects"]:
        raise Failed(f"sysbench: {told['errors']:.0f} errors, {told['reconnects']:.0f} reconnections")


def _share(server: Server, bench: Sysbench, engine: build.Engine, work: str, events: int, scans: int) -> float | None:
    """The part of the server's processor time that is spent in the engine's own code; None without perf."""
    if not shutil.which("perf"):
        return None
    data = server.folder / "perf.data"
    perf = subprocess.Popen(
        ["perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-o", data, "-p", str(server.process.pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    _once(server, bench, work, events, scans)
    perf.send_signal(2)
    perf.wait()
    text = subprocess.run(
        ["perf", "report", "-q", "--stdio", "--sort", "dso", "-i", data], text=True, capture_output=True
    ).stdout
    found = re.search(rf"([\d.]+)%\s+{re.escape(engine.library)}", text)
    return float(found[1]) / 100 if found else None


# ---- replaced while it works ----------------------------------------------------------------------------------------


def _live(db: build.MariaDB, engine: build.Engine, plugins: Path, folder: Path, options: Options) -> dict:
    """Runs of sysbench with one replacement in the middle, and control runs, in which the same command looks at another
    server instead (--dry-run): what a client waits for at most."""
    pairs = 2 if options.quick else 10
    patches = _patches(db, engine, 2)
    out: dict = {"control": [], "attach": []}
    with Server(db, plugins, folder / "live") as server, Server(db, plugins, folder / "other") as other:
        bench = Sysbench(server, engine.name)
        bench.prepare()
        takes = _dry_run(other, patches[0])
        for n in range(2 * pairs):
            kind = "control" if (n + n // 2) % 2 == 0 else "attach"
            prober = Prober(server, f"select k > 0 from {bench.database}.sbtest1 where id = 7;", re.compile("1|"))
            run = bench.start("oltp_engine", seconds=6 + 6 * takes)
            prober.start()
            time.sleep(1)
            prober.longest = 0.0
            if kind == "attach":
                done = _attach(server, patches[n % 2], engine)
            else:
                done = {"wall": _dry_run(other, patches[n % 2])}
            if run.poll() is not None:
                raise Failed(f"sysbench ended before the command did: {bench.finish(run)}")
            told = bench.finish(run)
            prober.end()
            _no_errors(told)
            out[kind].append(
                {
                    **done,
                    "queries": told["queries"],
                    "max_ms": told["max_ms"],
                    "p99_ms": told["p99_ms"],
                    "probe_ms": prober.longest * 1000,
                    "probes": prober.asked,
                }
            )
            if kind == "attach":
                _check(server, bench, engine, n % 2)
            options.say(
                f"  {engine.name}: {kind}: longest {told['max_ms']:.0f} ms, probe {prober.longest * 1000:.0f} ms, "
                f"command {done['wall']:.2f} s"
            )
    return out


def _dry_run(server: Server, patch: Path) -> float:
    """Seconds that attach takes when it only looks."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "psu_bin", "attach", str(server.process.pid), str(patch), "--dry-run", "--json"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


def _check(server: Server, bench: Sysbench, engine: build.Engine, number: int) -> None:
    """The new version answers, and the tables are whole."""
    keys = server.run(f"show keys from {bench.database}.sbtest1") or ""
    if f" version {number}\t" not in keys:
        raise Failed(f"{engine.name}: version {number} is not in: {keys}")
    for table in ("sbtest1", "sbtest2"):
        answer = (
            server.run(
                f"select count(*), count(distinct id) from {bench.database}.{table}; "
                + (f"check table {bench.database}.{table} extended" if engine is build.MYISAM else "")
            )
            or ""
        )
        if not answer.startswith("20000\t20000\n") or engine is build.MYISAM and "\tstatus\tOK" not in answer:
            raise Failed(f"{engine.name}: {table}: {answer}")


def _in_a_row(db: build.MariaDB, engine: build.Engine, plugins: Path, folder: Path, options: Options) -> dict:
    """Many replacements under one run of sysbench; memory after each."""
    number = 10 if options.quick else 50
    patches = _patches(db, engine, 5)
    rows = []
    with Server(db, plugins, folder / "row") as server:
        bench = Sysbench(server, engine.name)
        bench.prepare()
        run = bench.start("oltp_engine", seconds=3600)
        try:
            for n in range(number):
                done = _attach(server, patches[n % 5], engine)
                if run.poll() is not None:
                    bench.finish(run)
                psu_bin("wait", server.process.pid, "--timeout", 60)
                rows.append({**done, **memory(server.process.pid)})
                if n % 10 == 9:
                    options.say(f"  {engine.name}: {n + 1} replacements, {rows[-1]['resident'] >> 20} MB resident")
            if run.poll() is not None:  # sysbench ends at the first failed query
                bench.finish(run)
            queries = int((server.run("show global status like 'Questions'") or "0").split()[-1])
        finally:
            if run.poll() is None:
                run.terminate()
            run.communicate()
        _check(server, bench, engine, (number - 1) % 5)
        states = [p["state"] for p in psu_bin("status", server.process.pid)["patches"]]
        return {
            "steps": rows,
            "current": states.count("current"),
            "retired": states.count("retired"),
            "queries": queries,
        }


# ---- how it is told -------------------------------------------------------------------------------------------------


def tables(result: dict) -> list[Table]:
    out = []
    told = result["instrument"]
    for name, r in result.get("time", {}).items():
        rows = []
        for work, samples in r["work"].items():
            plain = statistics.median(samples["plain"])
            unit = 1e9 if work == "scan" else 1e6
            share = r["share"].get(work)
            cells = [f"{work}, {'ns a row' if work == 'scan' else 'us a query'}", f"{plain * unit:.1f}"]
            for v in VARIANTS[1:]:
                s = Spread.of(a / b for a, b in zip(samples[v], samples["plain"]))
                cells += f"{s.median:.3f} ({s.low:.3f} to {s.high:.3f})", f"{quickest(samples[v]) / quickest(samples['plain']):.3f}"
            rows.append((*cells, f"{share:.0%}" if share is not None else "?"))
        n = len(next(iter(r["work"].values()))["plain"])
        out.append(
            Table(
                f"{name}: the server's processor time",
                ("", "plain", "instrumented / plain", "quickest", "all replaced / plain", "quickest", "share of the engine"),
                tuple(rows),
                f"{told[name]['functions']} functions, {told[name]['call_sites']} call sites, all instrumented; "
                f"median (quartiles) of the ratios of {n} rounds; quickest: the first deciles of all rounds compared",
            )
        )
    rows = []
    for name, r in result.get("live", {}).items():
        for kind in ("control", "attach"):
            s = r[kind]
            longest, probe = Spread.of(x["max_ms"] for x in s), Spread.of(x["probe_ms"] for x in s)
            rows.append(
                (
                    f"{name}, {kind}",
                    str(len(s)),
                    f"{sum(x['queries'] + x['probes'] for x in s):.0f}",
                    "0",
                    f"{longest.median:.0f} ({longest.low:.0f} to {longest.high:.0f})",
                    f"{probe.median:.0f} ({probe.low:.0f} to {probe.high:.0f})",
                    f"{Spread.of(x['wall'] for x in s).median:.2f}",
                    f"{Spread.of(x['commit'] for x in s).median * 1e6:.0f}" if kind == "attach" else "",
                )
            )
    if rows:
        out.append(
            Table(
                "The entire engine replaced under load",
                (
                    "",
                    "runs",
                    "queries",
                    "failed",
                    "longest transaction, ms",
                    "longest probe, ms",
                    "command, s",
                    "commit, us",
                ),
                tuple(rows),
                "control: the same command, at the same moment, looks at another server. 2 sysbench clients and a "
                "probing one; failed queries end a run, so every number is of a run without any",
            )
        )
    rows = []
    for name, r in result.get("row", {}).items():
        steps = r["steps"]
        for n in sorted({0, 1, len(steps) // 2, len(steps) - 1}):
            s = steps[n]
            rows.append(
                (
                    f"{name}, after {n + 1}",
                    f"{s['functions']}",
                    f"{s['resident'] / 1048576:.1f}",
                    f"{s['dirty'] / 1048576:.1f}",
                    f"{s['mappings']}",
                    f"{s['wall']:.2f}",
                )
            )
    if rows:
        out.append(
            Table(
                "Replacements in a row, under load",
                ("", "functions", "resident, MB", "private dirty, MB", "mappings", "command, s"),
                tuple(rows),
            )
        )
    return out


def plots(result: dict) -> list[Plot]:
    out = []
    if "time" in result:
        series = {
            v: [
                (f"{name} {work}", statistics.median(a / b for a, b in zip(samples[v], samples["plain"])))
                for name, r in result["time"].items()
                for work, samples in r["work"].items()
            ]
            for v in VARIANTS
        }
        out.append(Plot("mariadb-time", "MariaDB: processor time, plain = 1", "", "ratio", series, bars=True))
    if "row" in result:
        out.append(
            Plot(
                "mariadb-row",
                "Memory of mariadbd, entire engine replaced n times",
                "replacements",
                "MB resident",
                {
                    name: [(n + 1, s["resident"] / 1048576) for n, s in enumerate(r["steps"])]
                    for name, r in result["row"].items()
                },
            )
        )
    return out
