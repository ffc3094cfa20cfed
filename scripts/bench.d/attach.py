"""attach: how long attach, revert and giving back take, and what the time goes into.

Generated programs: a number of functions, a few threads that call some of them all the time.  Patches replace 1, 10,
... of the functions.  The parts: Python's start and the imports (the whole command less what it reports), linking, the
commit (in the target), the rest (reading the target, mapping, writing, detaching).  `freed`: until `psu-bin wait` is
done.  The real patches, whole engines, are in section mariadb.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, Failed, Spread, psu_bin
from report import Options, Plot, Table

TITLE = "Attach, revert, giving back"
PARTS = ("start", "link", "commit", "rest")
# In a program, functions of this many bytes, roughly.
BODY = "x ^= x >> 7; x *= 2654435761u; x += table[x & 15]; if (x & 1) x = helper(x); x ^= x << 5;"


def write_program(folder: Path, functions: int, threads: int) -> Path:
    """A program of `functions` functions; the first thousand are called by `threads` threads."""
    called = min(functions, 1000)
    text = [
        "#include <pthread.h>",
        "#include <stdio.h>",
        "#include <unistd.h>",
        "static unsigned table[16];",
        "__attribute__((noinline)) unsigned helper(unsigned x) { return x + 3; }",
    ]
    text += [
        f"__attribute__((noinline)) unsigned f{i}(unsigned x) {{ {BODY} return x + {i}; }}" for i in range(functions)
    ]
    text += [
        "static unsigned (*const all[])(unsigned) = {",
        ",".join(f"f{i}" for i in range(functions)),
        "};",
        "static void *work(void *p) { for (unsigned x = 0;; usleep(1000))"
        f" for (int i = 0; i < {called}; i++) x += all[i](x); return p; }}",
        f"int main(void) {{ pthread_t t; for (int i = 0; i < {threads}; i++) pthread_create(&t, 0, work, 0);"
        ' puts("ready"); fflush(stdout); getchar(); return 0; }',
    ]
    source = folder / f"program{functions}.c"
    source.write_text("\n".join(text))
    out = folder / f"program{functions}"
    subprocess.run(["gcc", "-O1", "-g", "-pthread", source.name, "-o", out.name], cwd=folder, check=True)
    return Path(psu_bin("instrument", out)["output"])


def write_patch(folder: Path, functions: int, replaced: int, version: int = 1) -> Path:
    """A new version of the first `replaced` functions of the program."""
    text = ["extern unsigned helper(unsigned); static unsigned table[16];"]
    text += [f"unsigned f{i}(unsigned x) {{ {BODY} return x + {i} + {version}; }}" for i in range(replaced)]
    (folder / "patch").mkdir(exist_ok=True)
    source = folder / "patch" / f"program{functions}.c"  # the name is part of the identity of `table`
    source.write_text("\n".join(text))
    out = folder / f"patch{functions}-{replaced}-{version}.o"
    subprocess.run(["gcc", "-O1", "-g", "-c", source.name, "-o", out], cwd=source.parent, check=True)
    return out


class Running:
    """The program, ended with its context."""

    def __init__(self, program: Path, *arguments: object) -> None:
        self.command = [str(program), *map(str, arguments)]

    def __enter__(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        if self.process.stdout.readline() != "ready\n":
            raise Failed(f"{self.command}: does not begin")
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


def _parts(r: dict) -> dict[str, float]:
    s = r["seconds"]
    return {
        "whole": r["wall"],
        "start": max(r["wall"] - s["total"], 0.0),
        "link": s["link"],
        "commit": s["commit"],
        "rest": max(s["total"] - s["link"] - s["commit"], 0.0),
    }


def measure(options: Options) -> dict:
    shapes = [(10, 1), (1000, 1), (1000, 100), (10_000, 1), (10_000, 1000)]
    if options.quick:
        shapes = [(10, 1), (1000, 100)]
    rounds = 3 if options.quick else 15
    folder = Path(tempfile.mkdtemp(prefix="psu-bench-attach-"))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    rows = []
    try:
        programs: dict[int, Path] = {}
        for functions, replaced in shapes:
            if functions not in programs:
                programs[functions] = write_program(folder, functions, 2)
            patches = [write_patch(folder, functions, replaced, v) for v in (1, 2)]
            samples: dict[str, list[dict[str, float]]] = {"attach": [], "revert": []}
            freed: list[float] = []
            with Running(programs[functions]) as process:
                for n in range(rounds + 1):
                    a = psu_bin("attach", process.pid, patches[n % 2])
                    freed.append(psu_bin("wait", process.pid, "--timeout", 60)["wall"])
                    b = psu_bin("revert", process.pid)
                    if len(a["functions"]) != replaced or a["threads_stopped"]:
                        raise Failed(f"attach: {a}")
                    psu_bin("wait", process.pid, "--timeout", 60)
                    if n:
                        samples["attach"].append(_parts(a))
                        samples["revert"].append(_parts(b) if "seconds" in b else {"whole": b["wall"]})
                if process.poll() is not None:
                    raise Failed(f"the program ended with {process.returncode}")
            rows.append(
                {
                    "functions": functions,
                    "replaced": replaced,
                    "text": programs[functions].stat().st_size,
                    "patch_bytes": patches[0].stat().st_size,
                    "samples": samples,
                    "freed": freed[1:],
                }
            )
            options.say(f"  {functions} functions, {replaced} replaced: {samples['attach'][-1]['whole']:.2f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"rows": rows, "python": _python(rounds)}


def _python(rounds: int) -> dict[str, float]:
    """What the command costs before it does anything: the interpreter, and the interpreter with psu-bin's modules."""
    out = {}
    for name, code in (
        ("interpreter", "pass"),
        ("with psu_bin.attach", "import psu_bin.cli, psu_bin.attach.transaction"),
    ):
        times = []
        for _ in range(rounds):
            text = f"import time, json; {code}"
            import time

            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)
            times.append(time.perf_counter() - began)
        out[name] = statistics.median(times)
    return json.loads(json.dumps(out))


def tables(result: dict) -> list[Table]:
    rows = []
    for r in result["rows"]:
        a, b = r["samples"]["attach"], r["samples"]["revert"]
        whole = Spread.of(x["whole"] for x in a)
        rows.append(
            (
                f"{r['functions']} functions, {r['replaced']} replaced",
                f"{r['patch_bytes'] / 1024:.0f}",
                f"{whole.median:.2f} ({whole.low:.2f} to {whole.high:.2f})",
                *(
                    f"{statistics.median(x[p] for x in a):.3f}"
                    if p != "commit"
                    else f"{statistics.median(x[p] for x in a) * 1e6:.0f} us"
                    for p in PARTS
                ),
                f"{statistics.median(x['whole'] for x in b):.2f}",
                f"{statistics.median(r['freed']):.2f}",
            )
        )
    p = result["python"]
    return [
        Table(
            "Seconds of wall time",
            ("", "patch, KB", "attach, whole command", *PARTS, "revert", "freed: wait command"),
            tuple(rows),
            "medians (quartiles). Of each command, Python's own start takes "
            f"{p['interpreter']:.2f} s, with psu-bin's modules {p['with psu_bin.attach']:.2f} s",
        )
    ]


def plots(result: dict) -> list[Plot]:
    return [
        Plot(
            "attach",
            "attach: whole command",
            "functions replaced",
            "seconds",
            {
                f"{n} functions": [
                    (r["replaced"], statistics.median(x["whole"] for x in r["samples"]["attach"]))
                    for r in result["rows"]
                    if r["functions"] == n
                ]
                for n in dict.fromkeys(r["functions"] for r in result["rows"])
            },
            logarithmic="x",
        )
    ]
