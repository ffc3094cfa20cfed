"""How many instructions a call executes in stubs and gates, on both architectures: docs/DESIGN.md says what the code does.

Counted in the assembled shim: from a gate's first instruction along the way that a settled call takes, on which no
conditional branch is taken but the first one, where the call does not come from the version's own object, and the one to the
exclusive pairs on processors without atomic instructions.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import capstone
import pytest
from shim_host import SHIM

from psu_bin.arch import aarch64, x86_64
from psu_bin.descriptor import MODULE_IBT

ROOT = Path(__file__).resolve().parents[2]
MODES = {"x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64), "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)}
ARCHS = {"x86_64": x86_64.ARCH, "aarch64": aarch64.ARCH}
ROWS = ("stub", "stub, marked", "plain gate, inner call", "plain gate, in", "plain gate, out", "side gate, inner call",
        "side gate, in", "side gate, out")
COLUMNS = ("x86-64", "AArch64", "AArch64 before ARMv8.1")


def built(folder: Path, machine: str) -> Path:
    """The shim for `machine`.  Skips the test where it cannot be compiled."""
    compiler = "gcc" if platform.machine() == machine else f"{machine}-linux-gnu-gcc"
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    out = folder / machine / "libpsu_shim.so"
    out.parent.mkdir()
    subprocess.run(["make", "-s", "-C", str(SHIM), f"CC={compiler}", f"OUT={out}"], check=True)
    return out


def code_at(shim: Path, machine: str, symbol: str) -> list[capstone.CsInsn]:
    """The first gate of a pool, decoded."""
    names = subprocess.run(["nm", str(shim)], capture_output=True, text=True, check=True).stdout
    start = next(int(line.split()[0], 16) for line in names.splitlines() if line.split()[-1] == symbol)
    # Text lies in the file where it lies in memory, less a constant.
    segments = subprocess.run(["readelf", "-lW", str(shim)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in segments.splitlines() if line.split()[:1] == ["LOAD"] and " R E " in line]
    offset, address = next((int(r[1], 16), int(r[2], 16)) for r in rows if 0 <= start - int(r[2], 16) < int(r[4], 16))
    code = shim.read_bytes()[start - address + offset:][:320]
    return list(capstone.Cs(*MODES[machine]).disasm(code, start))


def walk(code: list[capstone.CsInsn], pairs: bool) -> tuple[int, int, int]:
    """Instructions of an inner call; and, of another one, before the version's first and behind its last.

    pairs: as a processor without atomic instructions."""
    at = {i.address: i for i in code}
    inner = next(n for n, i in enumerate(code, 1) if i.mnemonic in ("br", "notrack jmp"))
    asks = next(i for i in code if i.mnemonic in ("jae", "tbz"))
    counts, here = [0], code[0]
    while True:
        counts[-1] += 1
        follow = here.address + here.size
        if here.mnemonic in ("ret", "retq"):
            assert len(counts) == 2
            return inner, counts[0], counts[1]
        if here.mnemonic in ("blr", "call", "notrack call"):
            counts.append(0)
        elif here.mnemonic == "b" or here is asks or (pairs and here.mnemonic == "tbz"):
            follow = int(here.op_str.split("#")[-1].split()[-1], 16)
        assert follow in at and sum(counts) < 100, here
        here = at[follow]


def column(shim: Path, machine: str, pairs: bool) -> list[int]:
    stubs = [sum(1 for i in capstone.Cs(*MODES[machine]).disasm(ARCHS[machine].stub(0, 0x10000, flags), 0)
                 if i.mnemonic not in ("int3", "brk")) for flags in (0, MODULE_IBT)]
    return [*stubs, *walk(code_at(shim, machine, "psu_plain_gates"), pairs),
            *walk(code_at(shim, machine, "psu_side_gates"), pairs)]


def test_the_design_states_the_counts(tmp_path: Path) -> None:
    shims = {machine: built(tmp_path, machine) for machine in MODES}
    columns = [column(shims["x86_64"], "x86_64", False), column(shims["aarch64"], "aarch64", False),
               column(shims["aarch64"], "aarch64", True)]
    expected = ["| instructions executed | " + " | ".join(COLUMNS) + " |", "| --- | ---: | ---: | ---: |",
                *(f"| {name} | " + " | ".join(str(c[n]) for c in columns) + " |" for n, name in enumerate(ROWS))]
    design = (ROOT / "docs" / "DESIGN.md").read_text()
    stated = re.search(r"^\| instructions executed .*?(?=\n\n)", design, re.M | re.S)
    assert stated and stated[0].splitlines() == expected
