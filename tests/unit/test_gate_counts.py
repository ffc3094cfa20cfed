"""How many instructions a call executes in stubs and gates, on both architectures: docs/DESIGN.md says what the code does.

Counted in the assembled shim: from an entry of a gate along the way that a settled call takes, on which no conditional branch
is taken but the one to the exclusive pairs on processors without atomic instructions; and, at the entry that looks, its own, where the
call does not come from the version's own object.
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
ROWS = ("stub", "stub, marked", *(f"{kind} gate{what}" for kind in ("plain", "side") for what in (
    ", in", ", out", " that looks, in", " that looks, inner call")))
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


def code_at(shim: Path, machine: str, kind: str) -> tuple[list[capstone.CsInsn], list[capstone.CsInsn]]:
    """The first gate of a pool, decoded: what is at its first entry, and at the one that looks."""
    symbol = f"psu_{kind}_gates"
    found = re.search(rf"PSU_{kind.upper()}_LOOK (\d+)", (SHIM / "arch" / machine / "gates.h").read_text())
    assert found
    look = int(found[1])
    names = subprocess.run(["nm", str(shim)], capture_output=True, text=True, check=True).stdout
    start = next(int(line.split()[0], 16) for line in names.splitlines() if line.split()[-1] == symbol)
    # Text lies in the file where it lies in memory, less a constant.
    segments = subprocess.run(["readelf", "-lW", str(shim)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in segments.splitlines() if line.split()[:1] == ["LOAD"] and " R E " in line]
    offset, address = next((int(r[1], 16), int(r[2], 16)) for r in rows if 0 <= start - int(r[2], 16) < int(r[4], 16))
    code = shim.read_bytes()[start - address + offset:][:look + 48]
    decoder = capstone.Cs(*MODES[machine])
    return list(decoder.disasm(code[:look], start)), list(decoder.disasm(code[look:], start + look))


def gate(code: list[capstone.CsInsn], look: list[capstone.CsInsn], pairs: bool) -> list[int]:
    """Instructions before the version's first and behind its last; before its first, by the entry that looks; of an inner call.

    pairs: as a processor without atomic instructions."""
    at = {i.address: i for i in (*code, *look)}
    asks = next(i for i in look if i.mnemonic in ("jae", "tbz"))
    inner = next(n for n, i in enumerate(look, 1) if i.mnemonic in ("br", "notrack jmp"))
    there, back = walk(at, code[0], asks, pairs)
    return [there, back, walk(at, look[0], asks, pairs)[0], inner]


def walk(at: dict[int, capstone.CsInsn], here: capstone.CsInsn, asks: capstone.CsInsn, pairs: bool) -> tuple[int, int]:
    """Instructions from `here` to the version, and back to the caller; `asks` is a branch that is taken."""
    counts = [0]
    while True:
        counts[-1] += 1
        follow = here.address + here.size
        if here.mnemonic in ("ret", "retq"):
            assert len(counts) == 2
            return counts[0], counts[1]
        if here.mnemonic in ("blr", "call", "notrack call"):
            counts.append(0)
        elif here.mnemonic == "b" or here is asks or (pairs and here.mnemonic == "tbz"):
            follow = int(here.op_str.split("#")[-1].split()[-1], 16)
        assert follow in at and sum(counts) < 100, here
        here = at[follow]


def column(shim: Path, machine: str, pairs: bool) -> list[int]:
    stubs = [sum(1 for i in capstone.Cs(*MODES[machine]).disasm(ARCHS[machine].stub(0, 0x10000, flags), 0)
                 if i.mnemonic not in ("int3", "brk")) for flags in (0, MODULE_IBT)]
    return [*stubs, *gate(*code_at(shim, machine, "plain"), pairs), *gate(*code_at(shim, machine, "side"), pairs)]


def test_the_design_states_the_counts(tmp_path: Path) -> None:
    shims = {machine: built(tmp_path, machine) for machine in MODES}
    columns = [column(shims["x86_64"], "x86_64", False), column(shims["aarch64"], "aarch64", False),
               column(shims["aarch64"], "aarch64", True)]
    expected = ["| instructions executed | " + " | ".join(COLUMNS) + " |", "| --- | ---: | ---: | ---: |",
                *(f"| {name} | " + " | ".join(str(c[n]) for c in columns) + " |" for n, name in enumerate(ROWS))]
    design = (ROOT / "docs" / "DESIGN.md").read_text()
    stated = re.search(r"^\| instructions executed .*?(?=\n\n)", design, re.M | re.S)
    assert stated and stated[0].splitlines() == expected
