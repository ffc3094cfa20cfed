"""Clocks, statistics and psu-bin as the measurements use them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A program that is measured has a processor for itself, where there are two, and everything else the others: moved about by the
# scheduler, samples of one process differ by a tenth.
_PROCESSORS = sorted(os.sched_getaffinity(0))
MEASURED, OTHERS = _PROCESSORS[:1], _PROCESSORS[1:] or _PROCESSORS


class Failed(Exception):
    """Something that was measured did not do what it must: a wrong answer, an end, an error of psu-bin."""


class Skipped(Exception):
    """A section cannot be measured here: what is missing."""


@contextmanager
def on(processors: Collection[int]) -> Iterator[None]:
    """This process and what it starts meanwhile, and what that will start, run on these only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_clock(pid: int) -> float:
    """Processor time of any process, in seconds, to the nanosecond (linux/posix-timers.h: CPUCLOCK_SCHED of ~pid)."""
    return time.clock_gettime(~pid << 3 | 2)


def psu_bin(*arguments: object, env: dict[str, str] | None = None) -> dict:
    """Run psu-bin as a user would, with --json; what it printed, and `wall` seconds.  Raises Failed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "psu_bin", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise Failed(f"psu-bin {' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()}")
    return {**json.loads(done.stdout), "wall": took}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        sample = sorted(values)
        if len(sample) < 2:
            return cls(sample[0], sample[0], sample[0], 1)
        low, _, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(statistics.median(sample), low, high, len(sample))

    def json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high, "n": self.n}


def quickest(samples: Sequence[float]) -> float:
    """The first decile: what others' work on the machine does not reach."""
    return statistics.quantiles(samples, n=10, method="inclusive")[0]


def memory(pid: int) -> dict[str, int]:
    """Resident, private and mapped bytes of a process, and its number of mappings."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    rollup = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kb = {"resident": status["VmRSS"], "mapped": status["VmSize"], "dirty": rollup["Private_Dirty"]}
    return {
        **{k: int(v.split()[0]) * 1024 for k, v in kb.items()},
        "mappings": len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
    }
