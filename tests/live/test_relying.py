"""Callers that keep values in volatile registers over a call (GCC -fipa-ra), while the callee's versions change these.

PSU_TEST_RELYING: number of updates (100).
"""

import os
import re

import capstone
import pytest
from conftest import MACHINE, ROOT, psu_bin
from updating import Versions

from psu_bin import descriptor
from psu_bin.elf import Binary

pytestmark = pytest.mark.skipif(MACHINE != "x86_64", reason="testprogs/relying is written in x86-64 assembly")

UPDATES = int(os.environ.get("PSU_TEST_RELYING", "100"))
GENERAL = {"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}
VECTOR = {f"xmm{n}" for n in range(16)}
WIDE = {f"ymm{n}" for n in range(16)}


def wide_is_possible():
    with open("/proc/cpuinfo") as f:
        return " avx2 " in f.read()


def kept_over_the_call(path, caller):
    """Registers, as the disassembler names them, that `caller` sets before its one call and reads after it unset."""
    binary = Binary.read(path)
    table = binary.symtab
    [at] = [i for i in range(len(table.entries)) if table.name(i) == caller]
    start, size = int(table.entries["st_value"][at]), int(table.entries["st_size"][at])
    offset = binary.offset_of(start)
    cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    cs.detail = True
    code = list(cs.disasm(binary.data[offset:offset + size], start))
    [call] = [n for n, i in enumerate(code) if i.mnemonic == "call"]
    written_before, written_after, out = set(), set(), set()
    for i in code[:call]:
        written_before.update(map(cs.reg_name, i.regs_access()[1]))
    for i in code[call + 1:]:
        read, written = ({cs.reg_name(r) for r in registers} for registers in i.regs_access())
        out |= read & written_before - written_after
        written_after |= written
    return out


def test_values_in_every_volatile_register_survive(lab):
    program = lab.program("relying", "-w")
    plain = lab.folder / "main"
    # The compiler really did what the test is about.
    kept = {"rely_" + c: kept_over_the_call(plain, "rely_" + c) for c in ("general", "through", "rdx", "vector", "wide")}
    assert kept["rely_general"] | kept["rely_rdx"] >= GENERAL
    assert len(kept["rely_through"] & GENERAL) >= 6
    assert kept["rely_vector"] >= VECTOR
    assert kept["rely_wide"] >= WIDE
    running = lab.start(program)
    spoiling = Versions(lab, "relying", "patch.c", *(("-mavx2",) if wide_is_possible() else ("-DNARROW",)))
    both = Versions(lab, "relying", "both.c", "-w")
    running.expect("^version 0$")
    # The callers in the program, then callers in a patch, in turns.
    for v in range(1, UPDATES + 1):
        (both if v % 10 == 5 else spoiling).attach(running.pid, v)
    running.expect(f"^version {UPDATES}$")
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$")
    psu_bin("wait", running.pid, "--timeout", 60)


def test_a_register_that_no_gate_can_keep(lab):
    program = lab.program("relying", "-w")
    assert "zmm16" in kept_over_the_call(lab.folder / "main", "rely_high")
    running = lab.start(program)
    running.expect("^version 0$")
    listed = psu_bin("analyze", lab.folder / "main", "--json").out
    assert re.search(r'"high".{1,20}callers keep values in registers that no gate can preserve', listed)
    refused = psu_bin("attach", running.pid, lab.patch("relying", "high.c", "-DV=1"), check=False)
    assert refused.status == 1
    assert re.fullmatch(r"psu-bin: \S+: high is not updatable in \S+ \(.*analyze.*\)\n", refused.err)
    Versions(lab, "relying", "patch.c", "-DNARROW").attach(running.pid, 1)
    running.expect("^version 1$")


def test_a_call_site_of_memcached(tmp_path):
    """do_slabs_free needs r9 to r11 after do_slabs_free_chunked."""
    built = sorted((ROOT / ".cache" / "real").glob("memcached_*/memcached"))
    if not built:
        pytest.skip("scripts/real has not built memcached")
    psu_bin("instrument", built[0], "-o", tmp_path / "memcached")
    binary = Binary.read(tmp_path / "memcached")
    functions = descriptor.decode(descriptor.gather(binary.bytes_at, binary.dyn(descriptor.DT_PSU), "memcached"), "memcached").functions
    [preserve] = [f.preserve for f in functions if f.name.startswith("do_slabs_free_chunked")]
    assert preserve >> 9 & 7 == 7
