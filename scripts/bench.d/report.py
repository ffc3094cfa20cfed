"""What a section hands back, and how it becomes text, Markdown, JSON and pictures.

A section is a module with TITLE, `measure(options) -> dict` (plain values, kept as JSON), `tables(result)` and
`plots(result)`.  Only measure() measures: tables and pictures can be made again from the JSON.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How a section is to be run."""

    quick: bool
    folder: Path  # results
    say: Callable[[str], None]
    names: tuple[str, ...] = ()  # parts of a section; none: all
    mariadb_debug: Path | None = None  # debug file of Debian's mariadbd
    patches: int = 0  # memory: how many; 0: the section's own number


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; the first column is left-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self) -> str:
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for row in (self.columns, *self.rows):
            first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
            lines.append("  " + "  ".join([first, *rest]))
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])

    def markdown(self) -> str:
        head = [f"**{self.title}**", ""] if self.title else []
        rows = [
            "| " + " | ".join(row) + " |"
            for row in (self.columns, ("---",) + ("---:",) * (len(self.columns) - 1), *self.rows)
        ]
        return "\n".join([*head, *rows, *(["", self.note] if self.note else [])])


@dataclass(frozen=True)
class Plot:
    """One picture: lines through points, or bars when `bars`."""

    name: str
    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float | str, float]]] = field(default_factory=dict)
    logarithmic: str = ""  # "x", "y" or "xy"
    bars: bool = False


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.M)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": str(os.cpu_count()),
        "virtual": "yes" if " hypervisor" in info else "no",
        "memory": f"{int(memory[1]) / 1048576:.0f} GB" if memory else "?",
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def save(options: Options, name: str, result: dict) -> None:
    (options.folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def draw(options: Options, plots: list[Plot]) -> None:
    """Write the pictures as SVG, if matplotlib is there (pip install psu-bin[bench])."""
    try:
        import matplotlib
    except ImportError:
        options.say("no pictures: matplotlib is not installed")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "psu-bin"  # the same numbers make the same file
    from matplotlib import pyplot

    for plot in plots:
        figure, axes = pyplot.subplots(figsize=(7, 4.2))
        for n, (label, points) in enumerate(plot.series.items()):
            if plot.bars:
                width = 0.8 / len(plot.series)
                at = [i - 0.4 + width * (n + 0.5) for i in range(len(points))]
                axes.bar(at, [y for _, y in points], width, label=label)
                axes.set_xticks(range(len(points)), [str(x) for x, _ in points], rotation=25, ha="right")
            else:
                axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=label)
        if "x" in plot.logarithmic:
            axes.set_xscale("log")
        if "y" in plot.logarithmic:
            axes.set_yscale("log")
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        if len(plot.series) > 1:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(options.folder / f"{plot.name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def write_results(document: Path, name: str, tables: list[Table], where: dict[str, str], quick: bool) -> None:
    """Put the tables between the document's marks `<!-- bench NAME -->` and `<!-- end NAME -->`."""
    text = document.read_text()
    begin, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"bench: {document.name}: no place for {name}: it wants {begin} and {end}")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    how = f"{where['processor']}, {where['processors']} processors" + (", virtual" if where["virtual"] == "yes" else "")
    how += f"; Linux {where['kernel']}; load {where['load']} before the run" + (
        "; short form (`--quick`)" if quick else ""
    )
    body = "\n\n".join([*(t.markdown() for t in tables), f"*{how}*"])
    document.write_text(f"{before}{begin}\n{body}\n{end}{after}")
