"""Measurements of psu-bin.  Sections, each with its method in the head of scripts/bench.d/SECTION.py:

  call        what a call costs: direct, stub, every kind of gate
  pause       how long a thread or a request waits during attach, beside a control run; EINTR
  attach      how long attach, revert and reclaiming take, by size of program and patch
  memory      per thread, per function, per patch
  instrument  time and memory of `psu-bin instrument` by size of the text
  servers     memcached, redis, sqlite, lua, nginx: plain, instrumented, all functions replaced
  mariadb     a storage engine in Debian's MariaDB, replaced as a whole under load

What counts is ratios inside one run, with their spread: absolute times are of one machine.  Each section writes its
numbers as JSON and its pictures as SVG into the folder; --results puts the tables into docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts" / "bench.d"), str(ROOT / "scripts" / "real.d"), str(ROOT)]

import report  # noqa: E402
from measure import Failed, Skipped  # noqa: E402

SECTIONS = ("call", "pause", "attach", "memory", "instrument", "servers", "mariadb")
MODULES = {"servers": "programs"}  # the others are called as their section


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="[default: all]")
    parser.add_argument(
        "--quick", action="store_true", help="a minute or so a section: shows that it works, not how fast"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PART",
        help="a part of a section, such as redis of servers; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".cache" / "bench", metavar="FOLDER", help="[default: .cache/bench]"
    )
    parser.add_argument(
        "--again", action="store_true", help="do not measure: tables and pictures from the folder's JSON"
    )
    parser.add_argument("--results", action="store_true", help="put the tables into docs/RESULTS.md")
    parser.add_argument("--json", action="store_true", help="one object on standard output, the rest on standard error")
    parser.add_argument("--patches", type=int, default=0, metavar="N", help="memory: so many patches in a row")
    parser.add_argument(
        "--mariadbd-debug", type=Path, metavar="FILE", help="instrument: debug file of Debian's mariadbd"
    )
    options = parser.parse_args()
    unknown = [s for s in options.sections if s not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}")
    # Ended from outside, a section still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    how = report.Options(
        options.quick, options.out.resolve(), say, tuple(options.only), options.mariadbd_debug, options.patches
    )
    everything, status = {}, 0
    for name in options.sections or SECTIONS:
        section = importlib.import_module(MODULES.get(name, name))
        say(f"{name}: {section.TITLE}")
        try:
            result = _result(section, name, how, options.again)
        except Skipped as e:
            say(f"  skipped: {e}")
            continue
        except Failed as e:
            print(f"bench: {name}: FAILED: {e}", file=sys.stderr)
            status = 1
            continue
        tables = section.tables(result)
        say("\n" + "\n\n".join(t.text() for t in tables) + "\n")
        report.draw(how, section.plots(result))
        if options.results:
            report.write_results(ROOT / "docs" / "RESULTS.md", name, tables, result["machine"], result["quick"])
        everything[name] = result
    if options.json:
        print(json.dumps(everything))
    return status


def _result(section, name: str, how: report.Options, again: bool) -> dict:  # noqa: ANN001
    if again:
        kept = how.folder / f"{name}.json"
        if not kept.exists():
            raise Skipped(f"{kept} is not there")
        return json.loads(kept.read_text())
    machine, began = report.machine(), time.time()
    result = {"machine": machine, "quick": how.quick, **section.measure(how)}
    result["seconds"] = time.time() - began
    report.save(how, name, result)
    return result


if __name__ == "__main__":
    sys.exit(main())
