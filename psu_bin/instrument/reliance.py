"""The volatile registers that callers rely on (descriptor.Function.preserve)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import Code
from psu_bin.elf import Binary
from psu_bin.instrument.functions import Functions
from psu_bin.instrument.references import References
from psu_bin.instrument.tables import Tables


@dataclass(frozen=True)
class Reliance:
    """One element a function."""
    preserve: np.ndarray         # uint64: as descriptor.Function.preserve
    odd: np.ndarray              # bool: seen to be called in a way that compilers do not use
    unkeepable: frozenset[int]   # functions whose callers rely on registers that no gate can preserve


def find(binary: Binary, arch: Arch, functions: Functions, code: Code, references: References,
         tables: Tables) -> Reliance:
    """Every volatile register that cannot hold a result: what callers rely on is not yet looked for."""
    n = len(functions.entry)
    every = arch.scan.REGISTERS.representable & ~arch.scan.REGISTERS.results
    return Reliance(np.full(n, every, dtype=np.uint64), np.zeros(n, dtype=bool), frozenset())
