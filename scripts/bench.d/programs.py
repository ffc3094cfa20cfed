"""servers: real programs with every function instrumented, and with every function replaced once.

Four copies of each program run at the same time and take turns with the same work: plain; plain with one more thread, which
sleeps (idle_thread.c: what the agent costs a program that had one thread); instrumented; and instrumented with a patch that
is the whole program again (all its objects joined by `ld -r`).  Counted is the processor
time that the process itself used, which is steadier than throughput.  Servers are asked in two ways: `alone`, one
request after the other has been answered, as most clients do; and `pipelined`, some hundred at a time, so that little
of the time is the kernel's: the worst case.  sqlite and lua do their whole work in one process a round.

Where valgrind is there, the same work is also counted in instructions, plain against instrumented: exact to 1e-6, but
not the same thing as time, as an indirect jump is one instruction like any other.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import debian
import program_build as build
from client import Client
from measure import MEASURED, OTHERS, Failed, Skipped, Spread, cpu_clock, on, psu_bin, quickest
from report import Options, Plot, Table

TITLE = "Real programs"
VARIANTS = ("plain", "threaded", "instrumented", "replaced")
WAYS = ("alone", "pipelined")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Server:
    """A program that answers requests on a port."""

    name: str
    arguments: Callable[[int, Path], list[str]]  # port, data folder
    first: tuple[bytes, bytes]  # requests that fill it, the end of the answer to them
    batch: tuple[bytes, int]  # requests sent at once, how many they are
    batches: int  # in one sample
    single: bytes  # a request that is also sent alone


@dataclass(frozen=True)
class _Program:
    """What one variant starts."""

    binary: Path
    env: dict[str, str]


@dataclass(frozen=True)
class Job:
    """A program that does its work, once it got a line, and ends."""

    name: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    operations: str  # what one round is


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def _redis_batch() -> tuple[bytes, int]:
    requests = []
    for i in range(25):
        key = b"key:%d" % (i * 37 % 1000)
        requests += [
            _resp(b"GET", key),
            _resp(b"SET", key, b"x" * 100),
            _resp(b"INCR", b"n:%d" % i),
            _resp(b"HSET", b"h:%d" % i, b"f", b"v"),
            _resp(b"HGET", b"h:%d" % i, b"f"),
            _resp(b"ZADD", b"z", b"%d" % (i * 7 % 100), b"m%d" % i),
            _resp(b"ZRANGE", b"z", b"0", b"5"),
            _resp(b"LPUSH", b"l", b"x"),
            _resp(b"RPOP", b"l"),
        ]
    return b"".join(requests), len(requests)


def _memcached_batch() -> tuple[bytes, int]:
    requests = []
    for i in range(50):
        key = b"key:%d" % (i * 37 % 1000)
        requests += [
            b"get %s\r\n" % key,
            b"set %s 0 0 100\r\n%s\r\n" % (key, b"x" * 100),
            b"gets %s\r\n" % key,
            b"incr n:%d 1\r\n" % (i % 10),
        ]
    return b"".join(requests), len(requests)


def _nginx_arguments(port: int, folder: Path) -> list[str]:
    (folder / "index.html").write_text("x" * 500)
    (
        folder / "nginx.conf"
    ).write_text(f"""daemon off; master_process off; error_log {folder}/error.log; pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off; keepalive_requests 1000000000; open_file_cache max=10;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port}; root {folder};
        location /made {{
            set $x $arg_a;
            if ($x ~ "^([0-9]+)$") {{ return 200 "value $1 of $uri for $http_user_agent\\n"; }}
        }}
    }}
}}
""")
    return ["-c", str(folder / "nginx.conf"), "-p", str(folder)]


def _nginx_batch() -> tuple[bytes, int]:
    head = b"Host: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: none\r\n\r\n"
    return b"".join(
        b"GET /index.html HTTP/1.1\r\n" + head + b"GET /made?a=%d HTTP/1.1\r\n" % i + head for i in range(10, 30)
    ), 40


PROGRAMS: tuple[Server | Job, ...] = (
    Server(
        "memcached",
        lambda port, folder: [
            "-l",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "0",
            "-t",
            "2",
            "-m",
            "64",
            *(["-u", "root"] if os.geteuid() == 0 else []),
        ],
        (
            b"".join(b"set key:%d 0 0 100\r\n%s\r\n" % (i, b"x" * 100) for i in range(1000))
            + b"".join(b"set n:%d 0 0 1\r\n1\r\n" % i for i in range(10))
            + b"mn\r\n",
            b"MN\r\n",
        ),
        _memcached_batch(),
        400,
        b"get key:7\r\n",
    ),
    Server(
        "redis",
        lambda port, folder: ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
        (b"".join(_resp(b"SET", b"key:%d" % i, b"x" * 100) for i in range(1000)) + _resp(b"PING"), b"+PONG\r\n"),
        _redis_batch(),
        400,
        _resp(b"GET", b"key:7"),
    ),
    Server(
        "nginx",
        _nginx_arguments,
        (b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n", b"x" * 500),
        _nginx_batch(),
        1000,
        b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    Job("sqlite", ("--size", "12", "--memdb"), ("--size", "4", "--memdb"), "speedtest1"),
    Job("lua", (str(HERE / "work.lua"), "3"), (str(HERE / "work.lua"), "1"), "work.lua"),
)


def measure(options: Options) -> dict:
    folder = Path(tempfile.mkdtemp(prefix="programs-", dir=debian.CACHE if debian.CACHE.is_dir() else None))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    out: dict = {}
    missing = []
    idle = folder / "idle_thread.so"
    try:
        debian.run("gcc", "-O2", "-shared", "-fPIC", "-pthread", HERE / "idle_thread.c", "-o", idle)
        for p in PROGRAMS:
            if options.names and p.name not in options.names:
                continue
            try:
                built = build.build(p.name, options.say)
            except debian.Unreachable as e:
                missing.append(f"{p.name}: {e}")
                continue
            mine = folder / p.name
            mine.mkdir()
            r = psu_bin("instrument", built.binary, "-o", mine / f"{p.name}-instrumented")
            programs = {
                v: _Program(mine / f"{p.name}-instrumented" if v in ("instrumented", "replaced") else built.binary,
                            {**os.environ, "LD_PRELOAD": str(idle)} if v == "threaded" else dict(os.environ))
                for v in VARIANTS
            }
            with on(OTHERS):
                work = (
                    _server(p, built, programs, mine, options)
                    if isinstance(p, Server)
                    else _job(p, built, programs, mine, options)
                )
            out[p.name] = {
                "text": built.text,
                "functions": r["functions"],
                "call_sites": r["call_sites"],
                "not_updatable": len(r["not_updatable"]),
                **work,
            }
            if isinstance(p, Job) and shutil.which("valgrind"):
                out[p.name]["instructions"] = {
                    v: _count(p, programs[v].binary, mine) for v in ("plain", "instrumented")
                }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not out:
        raise Skipped("; ".join(missing) or "no such program")
    return {"programs": out, "missing": missing}


def _replace_all(pid: int, built: build.Built) -> dict:
    """The whole program as a patch of itself.  Raises Failed."""
    r = psu_bin("attach", pid, built.whole)
    return {
        "replaced": len(r["functions"]),
        "threads_stopped": r["threads_stopped"],
        "attach_seconds": r["seconds"]["total"],
    }


# ---- programs that answer -------------------------------------------------------------------------------------------


def _server(p: Server, built: build.Built, programs: dict[str, _Program], folder: Path, options: Options) -> dict:
    """Many short samples in turn, from several processes each: where heap and code happened to be placed counts for more than
    what is looked for."""
    generations, rounds, part = (1, 5, 4) if options.quick else (10, 20, 6)
    samples: dict[str, dict[str, list[float]]] = {way: {v: [] for v in VARIANTS} for way in WAYS}
    told: dict = {}
    for g in range(generations):
        told = _generation(p, built, programs, folder / str(g), rounds, p.batches // part, samples)
    options.say(f"  {p.name}: {generations} times {rounds} rounds")
    return {"unit": "request", "seconds": samples, **told}


def _generation(
    p: Server,
    built: build.Built,
    programs: dict[str, _Program],
    folder: Path,
    rounds: int,
    batches: int,
    samples: dict[str, dict[str, list[float]]],
) -> dict:
    """One process of each variant: rounds are added to `samples`.  Returns what was replaced."""
    folder.mkdir()
    told: dict = {}
    with ExitStack() as stack:
        running: dict[str, tuple[subprocess.Popen, dict[str, tuple[Client, bytes]]]] = {}
        answers = set()
        for v in VARIANTS:
            process, client = stack.enter_context(_started(p, programs[v], folder / v))
            client.until(*p.first)
            if v == "replaced":
                told = _replace_all(process.pid, built)
            client.answer(p.batch[0])
            got = client.answer(p.batch[0])  # the first one made what was not there yet
            answers.add(re.sub(rb"(?m)^(Date|Last-Modified|ETag|VALUE).*$|\d+", b"", got))
            # A connection for each way: the kernel adapts one to how fast it is used (congestion control).
            other = stack.enter_context(Client(client.port, process))
            one = other.answer(p.single)
            running[v] = process, {"pipelined": (client, got), "alone": (other, one)}
        if len(answers) != 1:
            raise Failed(f"{p.name}: the variants answer differently: {[a[:300] for a in answers]}")
        for n in range(rounds + 1):
            for v in VARIANTS[n % 4 :] + VARIANTS[: n % 4]:
                process, clients = running[v]
                for way, request, times, each in (
                    ("pipelined", p.batch[0], batches, p.batch[1]),
                    ("alone", p.single, batches * 20, 1),
                ):
                    client, like = clients[way]
                    before = cpu_clock(process.pid)
                    client.batches(request, like, times)
                    if n:
                        samples[way][v].append((cpu_clock(process.pid) - before) / (times * each))
    return told


class _started:
    """A server of one's own, ended with its context."""

    def __init__(self, p: Server, program: _Program, folder: Path) -> None:
        self.p, self.program, self.folder = p, program, folder

    def __enter__(self) -> tuple[subprocess.Popen, Client]:
        self.folder.mkdir()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        with (self.folder / "log").open("wb") as log, on(MEASURED):
            self.process = subprocess.Popen(
                [self.program.binary, *self.p.arguments(port, self.folder)],
                env=self.program.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        try:
            self.client = Client(port, self.process)
        except BaseException:
            self.__exit__()
            raise
        return self.process, self.client

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# ---- programs that work and end -------------------------------------------------------------------------------------


def _job(p: Job, built: build.Built, programs: dict[str, _Program], folder: Path, options: Options) -> dict:
    rounds = 3 if options.quick else 40
    samples: dict[str, list[float]] = {v: [] for v in VARIANTS}
    outputs = set()
    told: dict = {}
    for n in range(rounds + 1):
        for v in VARIANTS[n % 4 :] + VARIANTS[: n % 4]:
            with on(MEASURED):
                process = subprocess.Popen(
                    [programs[v].binary, *(p.quick if options.quick else p.arguments)],
                    env=programs[v].env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=folder,
                )
            assert process.stdin and process.stdout
            try:
                if process.stdout.readline() != "ready\n":
                    raise Failed(f"{p.name}: does not begin")
                if v == "replaced":
                    told = _replace_all(process.pid, built)
                before = cpu_clock(process.pid)
                process.stdin.write("go\n")
                process.stdin.close()
                out = process.stdout.read()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            finally:
                process.stdout.close()
                if process.returncode is None:
                    process.kill()
                    process.wait()
            if process.returncode:
                raise Failed(f"{p.name}, {v}: ended with {process.returncode}")
            outputs.add(re.sub(r"\d+\.\d+s|\.{2,}", "", out))
            if n:
                samples[v].append(usage.ru_utime + usage.ru_stime - before)
    if len(outputs) != 1:
        raise Failed(f"{p.name}: the variants print different things: {[o[-300:] for o in outputs]}")
    options.say(f"  {p.name}: {rounds} rounds")
    return {"unit": p.operations, "seconds": {"": samples}, **told}


def _count(p: Job, binary: Path, folder: Path) -> int:
    """Instructions of the short form of the work."""
    done = subprocess.run(
        ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={folder}/counts", binary, *p.quick],
        input="go\n",
        text=True,
        capture_output=True,
        cwd=folder,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or not found:
        raise Failed(f"valgrind {binary}: status {done.returncode}: {done.stderr[-1000:]}")
    return int(found[1].replace(",", ""))


# ---- how it is told -------------------------------------------------------------------------------------------------


def tables(result: dict) -> list[Table]:
    rows = []
    counts = []
    for name, r in result["programs"].items():
        for way, s in r["seconds"].items():
            plain = statistics.median(s["plain"])
            cells = [
                f"{name}, {way}, us a {r['unit']}" if way else f"{name}, s a run of {r['unit']}",
                f"{plain * 1e6:.2f}" if way else f"{plain:.2f}",
            ]
            for v in VARIANTS[1:]:
                x = Spread.of(a / b for a, b in zip(s[v], s["plain"]))
                cells += f"{x.median:.3f} ({x.low:.3f} to {x.high:.3f})", f"{quickest(s[v]) / quickest(s['plain']):.3f}"
            cells.append(f"{quickest(s['replaced']) / quickest(s['threaded']):.3f}")
            rows.append((*cells, str(r["functions"]), str(r["replaced"]), str(len(s["plain"]))))
        if "instructions" in r:
            i = r["instructions"]
            counts.append((name, f"{i['plain']:,}", f"{i['instrumented'] / i['plain']:.4f}"))
    out = [
        Table(
            "Processor time of the process",
            (
                "",
                "plain",
                "with an idle thread / plain",
                "quickest",
                "instrumented / plain",
                "quickest",
                "all replaced / plain",
                "quickest",
                "all replaced / with an idle thread, quickest",
                "instrumented functions",
                "replaced",
                "rounds",
            ),
            tuple(rows),
            "median (quartiles) of the ratios of one round; quickest: the first deciles of all rounds compared, which others' work on "
            "the machine does not reach",
        )
    ]
    if counts:
        out.append(Table("Instructions (valgrind)", ("", "plain", "instrumented / plain"), tuple(counts)))
    return out


def plots(result: dict) -> list[Plot]:
    series = {
        v: [
            (f"{name} {way}", statistics.median(a / b for a, b in zip(s[v], s["plain"])))
            for name, r in result["programs"].items()
            for way, s in r["seconds"].items()
        ]
        for v in VARIANTS
    }
    return [Plot("servers", "Processor time of real programs, plain = 1", "", "ratio", series, bars=True)]
