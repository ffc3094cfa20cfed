"""Which builds of a scenario are tried: every combination of compiler, optimisation, link mode and thread count."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass

from psu_bin.errors import EXIT_USAGE, PsuError
from psu_bin.regress.scenario import Matrix

# What a link mode means to the compiler (when compiling and when linking).
LINK_FLAGS = {"pie": ("-fPIE", "-pie"), "no-pie": ("-fno-pie", "-no-pie"),
              "static": ("-static",), "static-pie": ("-fPIE", "-static-pie")}
# Programs without a dynamic loader cannot load the shim: psu-bin instrument must say so, and that is what is checked.
REFUSED = ("static", "static-pie")


@dataclass(frozen=True)
class Cell:
    cc: str
    opt: str
    link: str
    threads: int

    def __str__(self) -> str:
        return f"{self.cc} {self.opt} {self.link} {self.threads} thread{'s' if self.threads != 1 else ''}"

    @property
    def missing(self) -> str:
        """Why this cell cannot be tried on this machine, or ""."""
        command = self.cc.split()[0]
        return "" if shutil.which(command) else f"{command} is not installed"


def cells(matrix: Matrix, only: dict[str, tuple[str, ...]], *, short: bool) -> list[Cell]:
    """The cells of `matrix` that `only` (axis -> values) lets through; if `short`, the first such value of each axis."""
    axes = {axis: [v for v in getattr(matrix, axis) if axis not in only or str(v) in only[axis]]
            for axis in Cell.__dataclass_fields__}
    n = 1 if short else None
    return [Cell(*values) for values in itertools.product(*(values[:n] for values in axes.values()))]


def parse_only(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """`("cc=clang", "threads=4")` as a mapping.  PsuError for anything else."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        axis, equals, value = text.partition("=")
        if not equals or axis not in Cell.__dataclass_fields__:
            raise PsuError("--only", f"should be AXIS=VALUE: {text}", f"axes: {', '.join(Cell.__dataclass_fields__)}",
                           status=EXIT_USAGE)
        found[axis] = (*found.get(axis, ()), value)
    return found
