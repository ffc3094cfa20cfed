"""Callers that keep values in volatile registers over a call (GCC -fipa-ra), while the callee's versions change these.

PSU_TEST_RELYING: number of updates (100).
"""

import os
import re
import subprocess

import capstone
import pytest
from conftest import MACHINE, ROOT, WAIT, psu_bin, updates
from updating import Versions

from psu_bin import descriptor
from psu_bin.elf import Binary

UPDATES = int(os.environ.get("PSU_TEST_RELYING", updates(100)))
DISASSEMBLER = {"x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64),
                "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)}[MACHINE]
CALL = {"x86_64": "call", "aarch64": "bl"}[MACHINE]
# What callers must have been compiled to rely on, each in all it can be kept in, for the test to be about something.
RELIED = {
    "x86_64": {"general": {"rax", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11"}, "rdx": {"rdx"},
               "vector": {f"xmm{n}" for n in range(16)}, "wide": {f"ymm{n}" for n in range(16)}},
    "aarch64": {"general": {f"x{n}" for n in (*range(2, 16), 18)}, "vector": {f"v{n}" for n in range(16, 32)},
                "wide": {f"upper v{n}" for n in range(8, 12)}},
}[MACHINE]
WIDE_FLAG = {"x86_64": "-mavx2", "aarch64": "-O2"}[MACHINE]
GENERAL = {"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}
THROUGH = {"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", *(f"x{n}" for n in range(16))}


def wide_is_possible():
    with open("/proc/cpuinfo") as f:
        return MACHINE != "x86_64" or " avx2 " in f.read()


def parts(name):
    """A register as a set of parts: AArch64's vector registers have several names, some of which mean the lower half."""
    if MACHINE != "aarch64" or name[0] not in "bhsdqv" or not name[1:].isdigit():
        return {name}
    return {f"v{name[1:]}"} | ({f"upper v{name[1:]}"} if name[0] in "qv" else set())


def kept_over_the_call(path, caller):
    """Registers, as the disassembler names them, that `caller` sets before its one call and reads after it unset."""
    binary = Binary.read(path)
    table = binary.symtab
    [at] = [i for i in range(len(table.entries)) if table.name(i) == caller]
    start, size = int(table.entries["st_value"][at]), int(table.entries["st_size"][at])
    offset = binary.offset_of(start)
    cs = capstone.Cs(*DISASSEMBLER)
    cs.detail = True
    code = list(cs.disasm(binary.data[offset:offset + size], start))
    [call] = [n for n, i in enumerate(code) if i.mnemonic == CALL]
    written_before, written_after, out = set(), set(), set()
    for i in code[:call]:
        written_before |= {p for r in i.regs_access()[1] for p in parts(cs.reg_name(r))}
    for i in code[call + 1:]:
        read, written = ({p for r in registers for p in parts(cs.reg_name(r))} for registers in i.regs_access())
        out |= read & written_before - written_after
        written_after |= written
    return out


def test_values_in_every_volatile_register_survive(lab):
    program = lab.program("relying", "-w")
    plain = lab.folder / "main"
    # The compiler really did what the test is about.
    for what, registers in RELIED.items():
        kept = kept_over_the_call(plain, f"rely_{what}")
        assert kept >= registers, (what, kept)
    assert len(kept_over_the_call(plain, "rely_through") & THROUGH) >= 6
    running = lab.start(program)
    spoiling = Versions(lab, "relying", "patch.c", WIDE_FLAG if wide_is_possible() else "-DNARROW")
    both = Versions(lab, "relying", "both.c", "-w")
    running.expect("^version 0$")
    # The callers in the program, then callers in a patch, in turns.
    for v in range(1, UPDATES + 1):
        (both if v % 10 == 5 else spoiling).attach(running.pid, v)
    running.expect(f"^version {UPDATES}$")
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$")
    psu_bin("wait", running.pid, "--timeout", WAIT)


@pytest.mark.skipif(MACHINE != "x86_64", reason="on AArch64 gates keep all that compilers use")
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


# Callers of real programs and the registers that each keeps (testprogs/sites).
SITES = {"sqlite_site": ("rowSetNDeepTree", {"rcx", "rdx", "r9"}),
         "ull2string": ("digits10", {"rsi", "rdi", "r8"}),
         "split_slab_page_into_freelist": ("do_slabs_free_chunked", {"r9", "r10", "r11"})}


def read_behind(path, caller, callee):
    """Registers that `caller` reads behind a call of `callee`, on some way, before it sets them."""
    binary = Binary.read(path)
    table = binary.symtab
    where = {table.name(i): (int(table.entries["st_value"][i]), int(table.entries["st_size"][i]))
             for i in range(len(table.entries))}
    [(start, size)] = [w for name, w in where.items() if name.split(".")[0] == caller]
    offset = binary.offset_of(start)
    cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    cs.detail = True
    code = {i.address: i for i in cs.disasm(binary.data[offset:offset + size], start)}
    whole = {"e" + r[1:]: r for r in GENERAL} | {f"r{n}d": f"r{n}" for n in range(8, 12)}
    ways = [(i.address + i.size, frozenset()) for i in code.values() if i.op_str == hex(where[callee][0])
            and i.mnemonic == "call"]
    assert ways
    out, seen = set(), set()
    while ways:
        at, written = ways.pop()
        if (at, written) in seen or at not in code:
            continue
        seen.add((at, written))
        i = code[at]
        read, sets = ({whole.get(cs.reg_name(r), cs.reg_name(r)) for r in registers} for registers in i.regs_access())
        out |= (read & GENERAL) - written
        written |= sets & GENERAL
        if i.mnemonic == "ret" or i.mnemonic == "call":
            continue
        if i.mnemonic.startswith("j"):
            ways.append((int(i.op_str, 16), written))
        if i.mnemonic != "jmp":
            ways.append((at + i.size, written))
    return out


@pytest.mark.skipif(MACHINE != "x86_64", reason="registers of x86-64's compilers")
def test_call_sites_of_sqlite_redis_and_memcached(lab):
    program = lab.program("sites")
    binary = Binary.read(program)
    functions = descriptor.decode(binary.contents(binary.section(descriptor.SECTION_DESCRIPTOR)), "sites").functions
    preserve = {f.name: f.preserve for f in functions}
    numbers = {"rcx": 1, "rdx": 2, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9, "r10": 10, "r11": 11}
    for caller, (callee, kept) in SITES.items():
        # The compiler really did what the test is about.
        assert read_behind(lab.folder / "main", caller, callee) >= kept
        assert preserve[callee] & (wanted := sum(1 << numbers[r] for r in kept)) == wanted
    be_replaced(lab, lab.start(program), UPDATES)


@pytest.mark.skipif(MACHINE != "x86_64", reason="registers of x86-64's compilers")
def test_call_sites_whose_threads_get_no_memory(lab):
    """What gates keep is on the threads' own stacks then; nothing stays behind."""
    be_replaced(lab, lab.start(lab.program("sites"), "poor"), UPDATES // 2)


def be_replaced(lab, running, updates):
    versions = Versions(lab, "sites")
    running.expect("^version 0$")
    versions.run(running.pid, 1, updates)
    running.expect(f"^version {updates}$")
    psu_bin("revert", running.pid, "--original")
    psu_bin("wait", running.pid, "--timeout", 60)
    assert running.alive()


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
