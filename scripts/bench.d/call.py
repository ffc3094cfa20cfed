"""call: what a call costs, in processor time, in each shape: direct, a bare indirect jump,
stubs as instrument emits them, the plainest counting wrapper that could be written by hand, and each kind of gate.

With 1, 2 and 4 threads; of an empty function and of one of 100 instructions; the gates after 1 patch and after 100.
The loop around the call is the same for all shapes, which take turns within one run (shim/test/calls.c): what counts
are the ratios of their medians.  Before any patch a call is a stub and nothing else.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile

from measure import ROOT
from report import Options, Plot, Table

TITLE = "What a call costs"
ROUNDS, CALLS = 41, 400_000
CASES = {"empty function": (0, 1), "empty function, 100 patches": (0, 100), "100 instructions": (100, 1)}
SHAPES = {
    "direct": "direct call",
    "bare": "indirect jump, bare",
    "stub": "stub",
    "stub-ibt": "stub with a branch mark",
    "wrapper": "stub and the plainest counting wrapper",
    "plain": "plain gate",
    "side": "side gate",
    "full": "full gate",
    "full-preserve": "full gate that keeps 9 registers",
}
# (name, the ratio of which shapes, target)
RATIOS = (
    ("stub / bare jump", "stub", "bare", 1.05),
    ("stub with a branch mark / bare jump", "stub-ibt", "bare", 1.05),
    ("plain gate / (stub and wrapper)", "plain", "wrapper", 1.3),
    ("side gate / (stub and wrapper)", "side", "wrapper", None),
)


def measure(options: Options) -> dict:
    from psu_bin.arch import x86_64
    from psu_bin.descriptor import MODULE_IBT

    stubs = [x86_64.stub(0, 4096, flags).hex() for flags in (0, MODULE_IBT)]
    rounds, calls = (11, CALLS // 4) if options.quick else (ROUNDS, CALLS)
    samples: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["make", "-s", "-C", str(ROOT / "shim"), f"OUT={folder}/libpsu_shim.so"], check=True)
        program = f"{folder}/calls"
        subprocess.run(
            [
                "gcc",
                "-std=gnu11",
                "-O2",
                "-fPIC",
                "-pthread",
                f"-I{ROOT / 'shim' / 'test' / 'x86_64'}",
                str(ROOT / "shim" / "test" / "calls.c"),
                "-o",
                program,
                f"-L{folder}",
                "-Wl,--no-as-needed",
                "-l:libpsu_shim.so",
                f"-Wl,-rpath,{folder}",
            ],
            check=True,
        )
        for case, (length, patches) in CASES.items():
            samples[case] = {}
            for threads in (1, 2, 4):
                out = subprocess.run(
                    [program, str(threads), str(rounds), str(calls), *stubs, str(length), str(patches)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                samples[case][str(threads)] = {
                    name: [float(n) for n in numbers] for name, *numbers in (line.split() for line in out.splitlines())
                }
            options.say(f"  {case}")
    return {"nanoseconds": samples}


def medians(result: dict, case: str) -> dict[str, dict[str, float]]:
    """By threads and shape."""
    return {
        threads: {name: statistics.median(values) for name, values in shapes.items()}
        for threads, shapes in result["nanoseconds"][case].items()
    }


def tables(result: dict) -> list[Table]:
    out = []
    for case in result["nanoseconds"]:
        m = medians(result, case)
        direct = m["1"]["direct"]
        out.append(
            Table(
                f"ns a call: {case}",
                ("", *(f"{n} thread{'s' * (n != '1')}" for n in m), "1 thread, direct = 1"),
                tuple((SHAPES[s], *(f"{m[n][s]:.2f}" for n in m), f"{m['1'][s] / direct:.2f}") for s in m["1"]),
            )
        )
    m = medians(result, "empty function")
    rows = []
    for name, a, b, target in RATIOS:
        ratio = max(t[a] / t[b] for t in m.values())
        rows.append((name, f"{ratio:.3f}", "" if target is None else f"{target}", _verdict(ratio, target)))
    for n in ("2", "4"):
        ratio = m[n]["plain"] / m["1"]["plain"]
        rows.append((f"plain gate, {n} threads / 1 thread", f"{ratio:.3f}", "1.1", _verdict(ratio, 1.1)))
    return [*out, Table("Ratios, worst of 1, 2 and 4 threads", ("", "ratio", "target", ""), tuple(rows))]


def _verdict(ratio: float, target: float | None) -> str:
    return "" if target is None else "holds" if ratio <= target else "missed"


def plots(result: dict) -> list[Plot]:
    series = {
        case: [(s, v) for s, v in medians(result, case)["1"].items()]
        for case in result["nanoseconds"]
        if case.startswith("empty")
    }
    return [Plot("call", "A call of an empty function, 1 thread", "", "ns", series, bars=True)]
