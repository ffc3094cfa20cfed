"""The name under which later patches find a static local that a patch brought along: file, functions that use it, name."""

import subprocess

import pytest
from conftest import COMPILERS

from psu_bin import arch, elf
from psu_bin.attach import anchors, patch, statics

FIRST = """
int apart = 42;
static int fresh[100];
__attribute__((noinline)) int count(void) { static int calls; return calls += 10; }
int round_of(void) { static int rounds = 70; return ++fresh[3] + count() + apart++ + ++rounds; }
__attribute__((noinline)) int other(void) { static int rounds = 7; return rounds -= apart; }
"""
# Without the neighbours.
SECOND = """
int count(void);
int round_of(void) { static int rounds = 70; return count() + ++rounds; }
"""


def identities(folder, cc, text, flags):
    (folder / "p.c").write_text(text)
    subprocess.run([cc, "-O2", *flags, "-c", "p.c"], cwd=folder, check=True)
    loaded = patch.load(folder / "p.o")
    traced = anchors.traced(loaded, arch.for_machine(loaded.machine, loaded.path).link)
    return {statics.identity(traced, s)[1] for s in traced.symbols if s.local and s.type == elf.STT_OBJECT}


def named(found, function, variable):
    """More functions may be named, never fewer: a field on x86-64 may mean either of two neighbours, an anchor in a register
    may be an argument."""
    return any(base == variable and function in users.split(",") for users, _, base in (x.rpartition(".") for x in found))


@pytest.mark.parametrize("flags", [(), ("-fPIC",), ("-O1",), ("-O0",)], ids=lambda f: " ".join(f) or "default")
@pytest.mark.parametrize("cc", COMPILERS)
def test_who_uses_a_static_local_is_in_its_name(tmp_path, cc, flags):
    # GCC for AArch64 takes the address of one variable and uses its neighbours through it (-fsection-anchors), and keeps it
    # in a volatile register over a call of a function that leaves that alone (-fipa-ra).
    found = identities(tmp_path, cc, FIRST, flags)
    for function, variable in (("count", "calls"), ("round_of", "rounds"), ("other", "rounds")):
        assert named(found, function, variable), found
    assert identities(tmp_path, cc, SECOND, flags) == {"round_of.rounds"}
