"""The trial behind `scripts/real aarch64 live`: a server for AArch64, loaded, patched and reverted in scripts/arm64-guest.

Everything that needs a compiler or much processor time is done on this machine: the server is cross-compiled, all its
functions are instrumented, its patches are compiled.  In the guest, where processes can be traced, this file runs again
(--inside) and does what trial.py does on x86-64: clients ask without pause and compare every answer, one more watches
the answers that the patches change, and psu-bin attaches and reverts while they do.  The load would take all of an emulated
processor, so psu-bin goes first there (nice).

Exit status: 0 done; 1 something was wrong, the last line says what; 2 usage; 75 packages could not be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cross    # noqa: E402
import debian   # noqa: E402
import trial as common   # noqa: E402
from servers import SERVERS                                                      # noqa: E402
from trial import ROOT, UNREACHABLE, Failed, Say, compile_patch, instrument, live   # noqa: E402

NO_GUEST = 77       # scripts/arm64-guest: it cannot be made here
TIMEOUT = 1500      # seconds for all that happens in the guest
PATIENCE = 240      # seconds in which an answer must come there


def prepared(name: str, scratch: Path, patches: int, say: Say) -> dict:
    """Fill `scratch` with the server, instrumented, and its first patches; what psu-bin said about the program."""
    server = SERVERS[name]
    built = cross.build(name, say)
    plain = built.folder / server.binary
    result = instrument(plain, scratch / plain.name)
    say(f"\n{name} for AArch64: {result['functions']} functions instrumented, {result['call_sites']} call sites rerouted, "
        f"{len(result['not_updatable'])} functions not updatable")
    log = next(built.folder.rglob("build.log"))
    for patch in server.patches[:patches]:
        compiled = compile_patch(server, log.parent, patch, scratch)
        compiled.rename(scratch / f"{name}-{compiled.name}")
    return result


def in_guest(name: str, scratch: Path, patches: int, seconds: float, say: Say) -> dict:
    """Boot, and have `inside` run there; its report.  Raises Failed, debian.Unreachable."""
    command = [ROOT / "scripts" / "arm64-guest", "--scratch", scratch, "--timeout", str(TIMEOUT), "--", "env",
               f"PSU_TEST_PATIENCE={PATIENCE}", "python3", "-u", Path(__file__), "--inside", scratch,
               "--patches", str(patches), "--seconds", str(seconds), name]
    # The Python that makes the guest is this one; its output is passed on line by line, as a trial takes minutes.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as guest:
        assert guest.stdout
        lines = []
        try:
            for line in guest.stdout:
                lines.append(line.rstrip("\n"))
                say(lines[-1])
        except BaseException:       # ended from outside: so is the guest
            guest.terminate()
            raise
    if guest.returncode == NO_GUEST:
        raise debian.Unreachable(lines[-1])
    report = scratch / "report.json"
    if guest.returncode or not report.exists():
        raise Failed(f"in the guest: status {guest.returncode}: {lines[-1] if lines else 'no output'}")
    return json.loads(report.read_text())


def inside(name: str, scratch: Path, patches: int, seconds: float) -> int:
    """In the guest: load, attach, revert; the report goes into `scratch`."""
    server = SERVERS[name]
    # The shared folder cannot hold files that are removed while they are open.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        common.PREFIX[:] = ["nice", "-n", "-15"]
        objects = [(p, scratch / f"{name}-{p.name.replace(' ', '-')}.o") for p in server.patches[:patches]]
        try:
            report = live(server, scratch / Path(server.binary).name, objects, Path(folder), seconds,
                          lambda text: print(text, flush=True))
        except Failed as e:
            print(f"FAILED: {e}", flush=True)
            return 1
    (scratch / "report.json").write_text(json.dumps(report))
    return 0


def trial(name: str, patches: int, seconds: float, say: Say) -> dict:
    """All of it for one server; raises Failed, debian.Unreachable."""
    debian.CACHE.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}-guest-", dir=debian.CACHE))
    try:
        result = prepared(name, scratch, patches, say)
        report = in_guest(name, scratch, patches, seconds, say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"  {report['requests']} requests answered, none wrong; {report['bytes_after_revert']} bytes of patches in memory "
        f"at the end")
    return {"package": name, "instrument": result, "live": report}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/real aarch64 live", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=sorted(SERVERS), nargs="+")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load before and after each step [default: 3]")
    parser.add_argument("--patches", type=int, default=1, metavar="N",
                        help="how many of the server's patches; the second is a whole source file [default: 1]")
    parser.add_argument("--json", action="store_true", help="a list on standard output, the rest on standard error")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    if options.inside:
        return inside(options.server[0], options.inside, options.patches, options.seconds)
    # Ended from outside, the trial still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reports = []
    for name in options.server:
        try:
            reports.append(trial(name, options.patches, options.seconds, say))
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
