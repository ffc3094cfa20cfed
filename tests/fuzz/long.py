"""scripts/fuzz: damaged input for as long as one likes, other damage each time.

Each batch of cases runs in a process of its own, which tells the number of each case before it begins: a crash of a native
library and an end that does not come are findings like any other.  Of findings with the same traceback one is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from judge import bounded, judge
from targets import TARGETS, prepare

BATCH = 100
WEIGHTS = {"instrument": 8, "patch": 4, "memory": 2}         # shares of the time: those with the most code behind them
HANGS = 200.0        # seconds of the clock without a new case; judge.SECONDS of processor time ends everything in Python


def _place(error: BaseException) -> str:
    """Where it happened: the same for the same defect."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join([type(error).__name__, *(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))])


def _batch(name: str, seeds: list[int], tell: int) -> None:
    """In the child: one line before each case, and one for each finding."""
    target = TARGETS[name]
    with bounded():
        for seed in seeds:
            os.write(tell, f"case {seed}\n".encode())
            try:
                judge(target.run, target.make(random.Random(seed)))
            except BaseException as e:
                text = _place(e) + "\t" + "".join(traceback.format_exception(e))[-3000:].replace("\n", "\t")
                os.write(tell, f"found {text}\n".encode("utf-8", "backslashreplace"))


class Findings:
    """What went wrong, one of a kind, each with its input in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[tuple[str, str], int] = {}

    def add(self, name: str, seed: int, place: str, details: str) -> None:
        self.kinds[name, place] = self.kinds.get((name, place), 0) + 1
        if self.kinds[name, place] > 1:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}-{seed}"
        file.write_bytes(TARGETS[name].make(random.Random(seed)))
        file.with_name(file.name + ".txt").write_text(f"{name}, seed {seed}\n{details}\n", errors="backslashreplace")
        print(f"\n{name}: {place}\n  kept as {file}", flush=True)


def run(name: str, seeds: list[int], findings: Findings) -> int:
    """Run one batch; how many cases were begun.  After a crash the rest of the batch is left out."""
    answer, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        try:
            _batch(name, seeds, tell)
        finally:
            os._exit(0)
    os.close(tell)
    begun, seed, rest, hung = 0, seeds[0], b"", False
    with os.fdopen(answer, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], HANGS)[0]:
                hung = True
                os.kill(pid, signal.SIGKILL)
                break
            got = pipe.read(1 << 16)
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                word, _, value = line.decode(errors="replace").partition(" ")
                if word == "case":
                    begun, seed = begun + 1, int(value)
                else:
                    place, _, details = value.partition("\t")
                    findings.add(name, seed, place, details.replace("\t", "\n"))
            if not got:
                break
    _, status = os.waitpid(pid, 0)
    if status:
        what = "does not end" if hung else f"killed by signal {os.WTERMSIG(status)}"
        findings.add(name, seed, what, what)
    return begun


def _again(files: list[Path]) -> None:
    """Judge kept inputs once more, with the traceback on standard error."""
    for file in files:
        name = next((n for n in sorted(TARGETS, key=len, reverse=True) if file.name.startswith(n)), None)
        if name is None:
            sys.exit(f"scripts/fuzz: {file}: the name does not begin with a target")
        with bounded():
            print(f"{file}: {judge(TARGETS[name].run, file.read_bytes()) or 'taken'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long [10]")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="only this reader (repeatable)")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"), metavar="FOLDER",
                        help="where inputs that make a failure go [fuzz-findings]")
    parser.add_argument("--seed", type=int, default=None, help="begin with this seed [random]")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE", help="only judge these kept inputs")
    options = parser.parse_args()
    prepare()
    if options.again:
        _again(options.again)
        return
    names = options.only or list(TARGETS)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(48)
    print(f"seed {seed}, {options.minutes:g} minutes: {', '.join(names)}")
    findings, cases = Findings(options.save), dict.fromkeys(names, 0)
    spent = dict.fromkeys(names, 0.0)
    end = time.monotonic() + 60 * options.minutes
    while (began := time.monotonic()) < end:
        name = min(names, key=lambda n: spent[n] / WEIGHTS.get(n, 1))
        cases[name] += run(name, list(range(seed, seed + BATCH)), findings)
        spent[name] += time.monotonic() - began
        seed += BATCH
    for name in names:
        print(f"{name:14} {cases[name]:9} cases, {sum(n for (k, _), n in findings.kinds.items() if k == name)} findings")
    sys.exit(1 if findings.kinds else 0)


if __name__ == "__main__":
    main()
