"""The trial behind `scripts/real aarch64`: AArch64 programs, all functions instrumented, run under qemu-user.

lua and sqlite do the same work as the plain program and must print the same.  memcached and redis answer their own
test suites, which run on this machine: a script in the program's place starts qemu-user.  A test counts against psu-bin
when it fails, also alone, and passes with the plain program, under qemu-user, too.  Nothing is patched here, as qemu-user
knows no ptrace: aarch64_live.py does that, in an arm64 kernel.

Exit status: 0 done; 1 something was wrong, the last line says what; 2 usage; 75 Debian's packages could not be reached.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cross    # noqa: E402
import debian   # noqa: E402
import suite    # noqa: E402
from servers import SERVERS                            # noqa: E402
from trial import UNREACHABLE, Failed, Say, instrument   # noqa: E402

QEMU = ("qemu-aarch64", "-cpu", "max,pauth-impdef=on", "-L", f"/usr/{cross.TRIPLET}")
PATIENCE = 900     # seconds for one job


@dataclass(frozen=True)
class Job:
    """A program that does its work and ends: one list of arguments for each time it is run."""
    runs: tuple[tuple[str, ...], ...]
    short: tuple[tuple[str, ...], ...]
    varies: re.Pattern[str]      # what differs from run to run in what it prints
    last: str                    # in what a whole run prints


JOBS = {
    "lua": Job(((str(HERE.parent / "bench.d" / "work.lua"), "2"), (str(HERE / "lua" / "errors.lua"),)),
               ((str(HERE / "lua" / "errors.lua"),),), re.compile(r"(?!)"), "\n"),
    "sqlite": Job((("--size", "10", "--memdb", "--verify"), ("--size", "5", "--verify", "--journal", "wal", "test.db"),
                   ("--size", "5", "--memdb", "--verify", "--testset", "rtree"),
                   ("--size", "5", "--memdb", "--verify", "--testset", "fp")),
                  (("--size", "1", "--memdb", "--verify"),), re.compile(r" +[0-9.]+s$", re.M), "Verification Hash: "),
}


def job(name: str, plain: Path, instrumented: Path, short: bool, scratch: Path, say: Say) -> dict:
    """Run the work of `name` in both programs; raises Failed when they differ."""
    work = JOBS[name]
    lines = 0
    for number, arguments in enumerate(work.short if short else work.runs):
        seen = []
        for binary in (plain, instrumented):
            folder = scratch / f"{binary.name}-{number}"
            folder.mkdir()
            done = subprocess.run([*QEMU, binary, *arguments], cwd=folder, input="\n", text=True, errors="replace",
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
            seen.append((done.returncode, work.varies.sub("", done.stdout)))
        (status, text), other = seen
        if status or work.last not in text:
            raise Failed(f"{name} {' '.join(arguments)}: the plain program: status {status}\n{text[-2000:]}")
        if other != (status, text):
            kept = [debian.CACHE / f"aarch64-{name}-{which}.log" for which in ("plain", "instrumented")]
            for path, (_, printed) in zip(kept, seen):
                path.write_text(printed)
            raise Failed(f"{name} {' '.join(arguments)}: not what the plain program does, status {other[0]}; what both "
                         f"printed is in {kept[0].relative_to(debian.ROOT)} and {kept[1].name}")
        lines += text.count("\n")
    say(f"  the same as the plain program's: {lines} lines")
    return {"lines": lines}


def own_suite(name: str, plain: Path, instrumented: Path, which: str, scratch: Path, say: Say) -> dict:
    """Run the server's own test suite; raises Failed for what passes only without psu-bin."""
    server = SERVERS[name]
    built = debian.build(server.package, say=say)       # the suite and what else it starts are this machine's
    scripts = []
    for binary in (plain, instrumented):
        script = scratch / f"{binary.name}-under-qemu" / Path(server.suite_binary).name
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.join(QEMU)} {shlex.quote(str(binary))} "$@"\n')
        script.chmod(0o755)
        scripts.append(script)
    items = server.suite_items(built)
    if which == "short":
        items = [i for i in items if i in server.suite_short]
    elif which == "most":
        items = [i for i in items if i not in server.suite_long]
    say(f"  its own test suite, {len(items)} tests")
    results = suite.judge(server, built, scratch, *scripts, items, say)
    checks = sum(o.passed for o in results.outcomes)
    say(f"  {len(items) - len(results.failed) - len(results.fails_anyway)} of {len(items)} pass, {checks} checks, "
        f"{results.seconds:.0f} s")
    for what, names in (("passed when run again", results.unsteady),
                        ("fail under qemu-user without psu-bin, too", results.fails_anyway)):
        if names:
            say(f"  {what}: {', '.join(names)}")
    if results.failed:
        kept = debian.CACHE / f"aarch64-{name}-failed.log"
        kept.write_text("".join(f"===== {o.item}: status {o.status}\n{o.output}\n" for o in results.failed))
        raise Failed(f"tests that pass without psu-bin and fail with it: {', '.join(o.item for o in results.failed)}; "
                     f"their output is in {kept.relative_to(debian.ROOT)}")
    return {"tests": len(items), "checks": checks, "unsteady": results.unsteady, "fails_anyway": results.fails_anyway}


def trial(name: str, which: str, say: Say) -> dict:
    """All of it for one program; raises Failed, debian.Unreachable."""
    plain = cross.build(name, say).binary
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-aarch64-", dir=debian.CACHE))
    try:
        instrumented = scratch / f"{plain.name}.psu"
        result = instrument(plain, instrumented)
        reasons = Counter(n["reason"] for n in result["not_updatable"])
        say(f"\n{name} for AArch64: {result['functions']} functions instrumented in {result['seconds']:.1f} s, "
            f"{result['call_sites']} call sites rerouted, {len(result['not_updatable'])} functions not updatable")
        for reason, n in reasons.most_common():
            say(f"  {n:8}  {reason}")
        how = job(name, plain, instrumented, which == "short", scratch, say) if name in JOBS else own_suite(
            name, plain, instrumented, which, scratch, say)
        return {"program": name, "instrument": result, **how}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/real aarch64", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=sorted(cross.BUILDERS), nargs="+")
    parser.add_argument("--suite", choices=["short", "most", "all"], default="most",
                        help="how much work, and of a server's own test suite [default: most, all but what takes minutes]")
    parser.add_argument("--json", action="store_true", help="a list on standard output, the rest on standard error")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    # Ended from outside, the trial still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reports = []
    for name in options.program:
        try:
            reports.append(trial(name, options.suite, say))
        except Failed as e:
            print(f"real: {name}: FAILED: {e}", file=sys.stderr)
            return 1
        except debian.Unreachable as e:
            print(f"real: {name}: {e}", file=sys.stderr)
            return UNREACHABLE
    if options.json:
        print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
