"""The trial behind scripts/real: a server is built, instrumented, tested by its own suite, loaded, patched, reverted.

Exit status: 0 done; 1 something was wrong, the last line says what; 2 usage; 75 Debian's packages could not be reached.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import debian   # noqa: E402
import suite    # noqa: E402
from load import PATIENCE, Client, Connection, Watcher   # noqa: E402
from servers import SERVERS, Patch, Server               # noqa: E402

ROOT = debian.ROOT
UNREACHABLE = 75
CLIENTS = 4
# Words before psu-bin's own command; aarch64_live.py sets them.
PREFIX: list[str] = []
Say = Callable[[str], None]


class Failed(Exception):
    """The trial's verdict: what was wrong."""


def psu_bin(*arguments: object) -> str:
    """Run psu-bin as a user would; its standard output.  An error of it ends the trial."""
    done = subprocess.run([*PREFIX, sys.executable, "-m", "psu_bin", *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT)
    if done.returncode:
        raise Failed(f"psu-bin {' '.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def instrument(binary: Path, output: Path) -> dict:
    """Instrument all functions; what psu-bin says (--json), with `seconds` of wall time and peak `megabytes`."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, "-m", "psu_bin", "instrument", binary, "-o", output, "--json"],
                                   stdout=out, stderr=err, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise Failed(f"psu-bin instrument {binary}: status {process.returncode}: {err.read().strip()}")
        return {**json.load(out), "seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "megabytes": usage.ru_maxrss / 1024}


def compile_patch(server: Server, built: Path, patch: Patch, folder: Path) -> Path:
    """The patch object, compiled as the build compiled the file that it changes."""
    command, where = debian.compile_command(built, patch.like, patch.object)
    if patch.source:
        source = patch.source
    else:
        text = (where / patch.like).read_text()
        if text.count(patch.old) != 1:
            raise Failed(f"{where / patch.like}: holds {patch.old!r} {text.count(patch.old)} times, not once")
        source = folder / patch.like     # the name is part of the identity of its static variables
        source.write_text(text.replace(patch.old, patch.new))
    out = folder / f"{patch.name.replace(' ', '-')}.o"
    debian.run(*command, f"-iquote{where}", "-c", source, "-o", out, cwd=where)
    return out


@contextmanager
def running(server: Server, binary: Path, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server on a free port of 127.0.0.1, with its data in `folder`; yields port and process, and ends it."""
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    data = folder / "data"
    data.mkdir()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([binary, *server.start(port, data)], stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, cwd=data)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    Connection(port).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise Failed(f"{binary}: does not start: {_end_of(folder / 'server.log')}") from None
                    time.sleep(0.02)
            yield port, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def live(server: Server, binary: Path, patches: list[tuple[Patch, Path]], folder: Path, seconds: float, say: Say,
         ) -> dict:
    """Load the server, patch it, look, revert; what was measured."""
    with running(server, binary, folder) as (port, process):
        clients = [Client(port, i, server.requests) for i in range(CLIENTS)]
        watcher = Watcher(port, server.asks, server.now_and_then)
        asker = Connection(port)
        wanted = [server.answers]

        def check(what: str) -> None:
            if process.poll() is not None:
                log = _end_of(folder / "server.log")
                raise Failed(f"{what}: the server ended with {process.returncode}\n{log}")
            for c in [*clients, watcher]:
                if c.failed:
                    raise Failed(f"{what}: {c.failed}")
            got = tuple(asker.first_line(ask) for ask in server.asks)
            if got != wanted[-1]:
                raise Failed(f"{what}: {server.asks!r} are answered {got!r}, not {wanted[-1]!r}")

        def step(what: str, action: Callable[[], str]) -> dict:
            for c in clients:
                c.longest = 0.0
            result = json.loads(action())
            longest = max(c.longest for c in clients)
            check(what)
            say(f"  {what}: {len(result['functions'])} functions, {result['seconds']['total']:.2f} s, commit "
                f"{result['seconds']['commit'] * 1e6:.0f} us, threads stopped: {result['threads_stopped']}; longest "
                f"wait of a client {longest * 1000:.0f} ms")
            say("    " + "; ".join(f"{ask.decode().strip()}: {a.decode()}" for ask, a in zip(server.asks, wanted[-1])))
            for text in result.get("warnings", ()):
                say(f"    warning: {text}")
            time.sleep(seconds)
            check(f"{seconds} s after {what}")
            return {"step": what, "longest_ms": longest * 1000, "seconds": result["seconds"],
                    "functions": len(result["functions"]), "threads_stopped": result["threads_stopped"]}

        check("before the load")
        for thread in [*clients, watcher]:
            thread.start()
        time.sleep(seconds)
        check("under load")
        steps = []
        for patch, path in patches:
            wanted.append(patch.answers)
            steps.append(step(f"attach, {patch.name}", lambda p=path: psu_bin("attach", process.pid, p, "--json")))
            if not steps[-1]["functions"]:
                raise Failed(f"attach, {patch.name}: no function was replaced")
        status = json.loads(psu_bin("status", process.pid, "--json"))
        states = [(p["name"], p["state"]) for p in status["patches"]]
        for _, path in patches:
            if not any(path.name in name for name, _ in states):
                raise Failed(f"psu-bin status: {path.name} is not among the patches {states}")
        say("".join(f"  {line[:110]}\n" for line in psu_bin("status", process.pid).splitlines()).rstrip())
        for (patch, _), back in reversed(list(zip(patches, wanted))):
            wanted.append(back)
            steps.append(step(f"revert, {patch.name}", lambda: psu_bin("revert", process.pid, "--json")))
        psu_bin("wait", process.pid, "--timeout", PATIENCE)
        for thread in [*clients, watcher]:
            thread.stopping = True
        for thread in [*clients, watcher]:
            thread.join(PATIENCE)
        check("at the end")
        for i, ask in enumerate(server.asks):
            changes = [a for a, _ in itertools.groupby(answers[i] for answers in wanted)]
            if watcher.seen[i] != changes:
                raise Failed(f"the answers to {ask!r} on one connection were {watcher.seen[i]}, not {changes}")
        held = sum(p["bytes"] for p in json.loads(psu_bin("status", process.pid, "--json"))["patches"])
        process.send_signal(signal.SIGTERM)
        try:
            ended = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("the server does not end by SIGTERM") from None
        if ended not in (0, -signal.SIGTERM):
            raise Failed(f"the server ended with {ended}: {_end_of(folder / 'server.log')}")
        return {"requests": sum(c.answers for c in clients), "failed": 0, "asked": watcher.asked, "steps": steps,
                "bytes_after_revert": held}


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]


def trial(server: Server, which: str, say: Say) -> dict:
    """All of it; raises Failed, debian.Unreachable."""
    built = debian.build(server.package, say=say)
    scratch = Path(tempfile.mkdtemp(prefix=f"{server.package}-run-", dir=debian.CACHE))
    os.environ["XDG_RUNTIME_DIR"] = str(scratch)
    try:
        result = instrument(built / server.binary, scratch / Path(server.binary).name)
        reasons = Counter(n["reason"] for n in result["not_updatable"])
        say(f"\n{built.name}: all functions instrumented in {result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s "
            f"of processor time), {result['megabytes']:.0f} MB")
        say(f"  {'functions, updatable':28}{result['functions']:>8}")
        say(f"  {'call sites rerouted':28}{result['call_sites']:>8}")
        say(f"  {'functions, not updatable':28}{len(result['not_updatable']):>8}")
        for reason, n in reasons.most_common():
            names = [x["name"] for x in result["not_updatable"] if x["reason"] == reason]
            say(f"  {n:8}  {reason}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
        report: dict = {"package": built.name, "instrument": result}
        if which != "none":
            report["suite"] = own_suite(server, built, scratch, which, say)
        say("\nunder load")
        patches = [(p, compile_patch(server, built, p, scratch)) for p in server.patches]
        report["live"] = live(server, Path(result["output"]), patches, scratch, 1.0 if which == "short" else 3.0, say)
        say(f"  {report['live']['requests']} requests answered, none wrong; "
            f"{report['live']['bytes_after_revert']} bytes of patches in memory at the end")
        return report
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def own_suite(server: Server, built: Path, scratch: Path, which: str, say: Say) -> dict:
    """The server's own test suite on the instrumented program; raises Failed for what passes only without psu-bin."""
    plain = built / server.suite_binary
    instrumented = scratch / "suite-binary" / plain.name
    instrumented.parent.mkdir()
    instrument(plain, instrumented)
    items = server.suite_items(built)
    if which == "short":
        items = [i for i in items if i in server.suite_short]
    elif which == "most":
        items = [i for i in items if i not in server.suite_long]
    say(f"\n{server.package}'s own test suite, {len(items)} tests, with {plain.name} instrumented")
    results = suite.judge(server, built, scratch, plain, instrumented, items, say)
    checks = sum(o.passed for o in results.outcomes)
    say(f"  {len(items) - len(results.failed) - len(results.fails_anyway)} of {len(items)} pass, {checks} checks, "
        f"{results.seconds:.0f} s")
    for what, names in (("passed when run again", results.unsteady),
                        ("fail without psu-bin, too", results.fails_anyway)):
        if names:
            say(f"  {what}: {', '.join(names)}")
    if results.failed:
        kept = debian.CACHE / f"{server.package}-failed.log"
        kept.write_text("".join(f"===== {o.item}: status {o.status}\n{o.output}\n" for o in results.failed))
        raise Failed(f"tests that pass without psu-bin and fail with it: {', '.join(o.item for o in results.failed)}; "
                     f"their output is in {kept.relative_to(ROOT)}")
    return {"tests": len(items), "checks": checks, "seconds": results.seconds, "unsteady": results.unsteady,
            "fails_anyway": results.fails_anyway}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/real", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=sorted(SERVERS), nargs="+")
    parser.add_argument("--suite", choices=["none", "short", "most", "all"], default="most",
                        help="how much of the server's own test suite [default: most, all but what takes minutes]")
    parser.add_argument("--json", action="store_true", help="a list on standard output, the rest on standard error")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    # Ended from outside, the trial still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reports = []
    for name in options.server:
        try:
            reports.append(trial(SERVERS[name], options.suite, say))
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
