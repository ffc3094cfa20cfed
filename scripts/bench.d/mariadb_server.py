"""A MariaDB server of one's own: data folder, socket, no network; and the clients that load it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

from measure import Failed, cpu_clock
from mariadb_build import ENGINES, MariaDB

# The server's own housekeeping is kept out of the measurement as far as it can be.
OPTIONS = (
    "--skip-networking",
    "--user=root",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=4M",
    "--query-cache-type=0",
    "--max-connections=600",
    "--max-heap-table-size=256M",
    "--key-buffer-size=64M",
    "--secure-file-priv=",
    "--performance-schema=0",
    "--table-open-cache=64",
)


class Server:
    """A running mariadbd with the engines' libraries of one folder.  A context manager."""

    def __init__(self, db: MariaDB, plugins: Path, folder: Path, *options: str) -> None:
        self.db, self.plugins, self.folder, self.options = db, plugins, folder, options
        self.socket = folder / "s"
        self.data = folder / "data"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        usr = self.db.root / "usr"
        if not self.data.exists():
            done = subprocess.run(
                [
                    usr / "bin/mariadb-install-db",
                    "--no-defaults",
                    f"--basedir={usr}",
                    f"--datadir={self.data}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--user=root",
                ],
                env=self.db.environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            if done.returncode:
                raise Failed(f"mariadb-install-db: status {done.returncode}: {done.stdout[-3000:]}")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.db.server,
                    "--no-defaults",
                    f"--basedir={usr}",
                    f"--datadir={self.data}",
                    f"--socket={self.socket}",
                    f"--plugin-dir={self.plugins}",
                    f"--lc-messages-dir={usr}/share/mysql",
                    f"--pid-file={self.folder}/pid",
                    "--plugin-maturity=unknown",
                    *(f"--plugin-load-add={e.library}" for e in ENGINES),
                    *OPTIONS,
                    *self.options,
                ],
                env=self.db.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 60
            while self.run("select 1", check=False) is None:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"mariadbd does not start: {self.end_of_log()}")
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def run(self, sql: str, *, database: str = "", check: bool = True) -> str | None:
        """What the statements print, tab-separated, without headings; None if they fail and `check` is False."""
        done = subprocess.run(
            [self.db.program("mariadb"), "--no-defaults", "-N", "-B", f"--socket={self.socket}", "-uroot", database],
            input=sql,
            text=True,
            capture_output=True,
            env=self.db.environment,
        )
        if done.returncode == 0:
            return done.stdout
        if check:
            raise Failed(f"{sql[:200]}: {done.stderr.strip()}; {self.end_of_log()}")
        return None

    def cpu(self) -> float:
        """Seconds of processor time of the whole process."""
        return cpu_clock(self.process.pid)

    def alive(self) -> None:
        """Raises Failed if the server ended."""
        if self.process.poll() is not None:
            raise Failed(f"mariadbd ended with {self.process.returncode}: {self.end_of_log()}")


class Sysbench:
    """One of sysbench's OLTP workloads on tables of one engine."""

    def __init__(self, server: Server, engine: str, *, tables: int = 2, rows: int = 20_000, threads: int = 2) -> None:
        self.server = server
        self.common = [
            f"--mysql-socket={server.socket}",
            "--mysql-user=root",
            f"--mysql-db=sb_{engine.lower()}",
            "--db-driver=mysql",
            f"--mysql-storage-engine={engine}",
            f"--tables={tables}",
            f"--table-size={rows}",
            f"--threads={threads}",
            "--rand-seed=1",
            "--db-ps-mode=disable",
        ]
        self.database = f"sb_{engine.lower()}"
        # HEAP and MyISAM have no transactions; a read/write mix without them must not ask for them.
        self.workload = ["--skip-trx=on"]

    def prepare(self) -> None:
        """Create and fill the tables."""
        self.server.run(f"drop database if exists {self.database}; create database {self.database}")
        done = subprocess.run(
            ["sysbench", "oltp_point_select", *self.common, "prepare"], text=True, capture_output=True
        )
        if done.returncode:
            raise Failed(f"sysbench prepare: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def start(self, test: str, *, seconds: float = 0, events: int = 0, every: int = 0) -> subprocess.Popen[str]:
        """Start a run, until `seconds` have passed or `events` were done."""
        more = [f"--time={seconds:.0f}", f"--events={events}", "--percentile=99", "--histogram=off"]
        if every:
            more.append(f"--report-interval={every}")
        script = test if test.startswith("oltp_point") else Path(__file__).with_name(f"{test}.lua")
        return subprocess.Popen(
            ["sysbench", script, *self.common, *self.workload, *more, "run"],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = 600) -> dict[str, float]:
        """Queries, failed ones, reconnections and the latencies in milliseconds."""
        out, _ = process.communicate(timeout=timeout)
        if process.returncode:
            self.server.alive()
            raise Failed(f"sysbench: status {process.returncode}: {out[-3000:]}")

        def number(pattern: str) -> float:
            found = re.search(pattern, out)
            if not found:
                raise Failed(f"sysbench: no {pattern!r} in {out[-3000:]}")
            return float(found[1])

        return {
            "queries": number(r"queries:\s+(\d+)"),
            "events": number(r"total number of events:\s+(\d+)"),
            "errors": number(r"ignored errors:\s+(\d+)"),
            "reconnects": number(r"reconnects:\s+(\d+)"),
            "p99_ms": number(r"99th percentile:\s+([\d.]+)"),
            "max_ms": number(r"max:\s+([\d.]+)"),
        }


class Prober(threading.Thread):
    """One connection that asks the same small question again and again, and notes how long each answer took."""

    def __init__(self, server: Server, sql: str, answer: re.Pattern[str]) -> None:
        super().__init__(daemon=True)
        self.client = subprocess.Popen(
            [
                server.db.program("mariadb"),
                "--no-defaults",
                "-N",
                "-B",
                "-n",
                "--unbuffered",
                f"--socket={server.socket}",
                "-uroot",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env=server.db.environment,
        )
        self.sql, self.answer = sql, answer
        self.failed: str | None = None
        self.asked = 0
        self.longest = 0.0
        self.stopping = False

    def run(self) -> None:
        assert self.client.stdin and self.client.stdout
        while not self.stopping:
            began = time.perf_counter()
            self.client.stdin.write(self.sql + "\n")
            self.client.stdin.flush()
            line = self.client.stdout.readline()
            self.longest = max(self.longest, time.perf_counter() - began)
            if not self.answer.fullmatch(line.strip()):
                self.failed = f"{self.sql}: {line.strip()!r}"
                break
            self.asked += 1

    def end(self) -> None:
        """Stop asking; raises Failed if an answer was wrong."""
        self.stopping = True
        self.join(60)
        assert self.client.stdin and self.client.stdout
        self.client.stdin.close()
        self.client.stdout.close()
        self.client.wait(60)
        if self.failed:
            raise Failed(self.failed)
