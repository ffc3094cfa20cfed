"""The shim for AArch64: the programs of shim/test, cross-compiled, in an emulator of programs.

On two processors: one with the atomic instructions of ARMv8.1 and SVE, one with neither, where gates count by exclusive
pairs.  What this emulator cannot do (fork beside threads, vfork, seccomp, ptrace) is tested in the guest, which has a
kernel: tests/guest.  On an AArch64 machine the tests of test_shim.py are the same ones, native.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
from shim_host import SHIM, Emulated, build, run
from test_shim import poor_offsets, routine_offsets

CPUS = ("max", "cortex-a53")
pytestmark = pytest.mark.skipif(platform.machine() == "aarch64", reason="test_shim.py does it natively")


@pytest.fixture(scope="module", params=CPUS)
def emulated(request: pytest.FixtureRequest) -> Emulated:
    """Where the programs run.  Skips the test where a tool is missing."""
    emulated = Emulated("aarch64", request.param)
    if emulated.missing:
        pytest.skip(emulated.missing)
    return emulated


@pytest.fixture(scope="module")
def cross_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libpsu_shim.so for AArch64, built without a warning."""
    emulated = Emulated("aarch64", "max")
    if emulated.missing:
        pytest.skip(emulated.missing)
    out = tmp_path_factory.mktemp("shim-aarch64") / "libpsu_shim.so"
    done = subprocess.run(["make", "-s", "-C", str(SHIM), f"CC={emulated.compiler('gcc')}", f"OUT={out}"],
                          capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return out


def check(shim: Path, emulated: Emulated, source: str, *arguments: str, flags: tuple[str, ...] = (),
          expected: str = "ok\n", **environment: str) -> None:
    """Build shim/test/SOURCE and run it in the emulator: it prints what is expected."""
    compiler = emulated.compiler("g++" if source.endswith(".cc") else "gcc")
    program = build(shim, source, compiler, *flags)
    assert re.fullmatch(expected, run(program, *arguments, prefix=emulated.prefix, timeout=300, **environment))


def test_it_is_marked_for_branch_protection(cross_shim: Path) -> None:
    notes = subprocess.run(["readelf", "-nW", str(cross_shim)], capture_output=True, text=True, check=True).stdout
    assert "AArch64 feature: BTI" in notes


def test_no_helper_of_the_compiler_is_called(cross_shim: Path) -> None:
    dynamic = subprocess.run(["readelf", "-dW", "--dyn-syms", str(cross_shim)], capture_output=True, text=True,
                             check=True).stdout
    assert "NEEDED" not in dynamic
    undefined = [line.split() for line in dynamic.splitlines() if " UND " in line]
    assert all(r[4] == "WEAK" for r in undefined if len(r) > 7)
    segments = subprocess.run(["readelf", "-lW", str(cross_shim)], capture_output=True, text=True, check=True).stdout
    tls = next(line.split() for line in segments.splitlines() if line.split()[:1] == ["TLS"])
    assert int(tls[5], 16) == 8, "static TLS must be one pointer"


def test_patch_repatch_revert_and_refuse(cross_shim: Path, emulated: Emulated) -> None:
    check(cross_shim, emulated, "basic.c")


def test_gates_keep_registers_flags_and_stack_arguments(cross_shim: Path, emulated: Emulated) -> None:
    check(cross_shim, emulated, "conventions.c", *routine_offsets(cross_shim), *poor_offsets(cross_shim), NO_SECCOMP="1")


@pytest.mark.parametrize("flags", [("-O2",), ("-fno-omit-frame-pointer", "-mbranch-protection=standard"),
                                   ("-static-libgcc", "-static-libstdc++")])
def test_exceptions_cancellation_and_longjmp_through_gates(cross_shim: Path, emulated: Emulated,
                                                           flags: tuple[str, ...]) -> None:
    check(cross_shim, emulated, "unwind.cc", "30", "program", flags=flags)
    check(cross_shim, emulated, "unwind.cc", "30", "poor", flags=flags)


def test_start_routines_that_end_their_threads_are_counted_out_once(cross_shim: Path, emulated: Emulated) -> None:
    check(cross_shim, emulated, "starting.c", *routine_offsets(cross_shim))


def test_entries_that_others_than_their_place_must_find_are_found_and_those_in_use_kept(cross_shim: Path,
                                                                                        emulated: Emulated) -> None:
    check(cross_shim, emulated, "left.c", expected="(.*\n)*ok\n")


def test_calls_by_pointer_inside_an_object_are_not_counted_and_right(cross_shim: Path, emulated: Emulated) -> None:
    check(cross_shim, emulated, "inner.c")


@pytest.mark.parametrize("flags", [("-O2",), ("-static-libgcc", "-static-libstdc++")])
def test_unwind_rules_of_injected_code_are_found_and_forgotten(cross_shim: Path, emulated: Emulated,
                                                               flags: tuple[str, ...]) -> None:
    check(cross_shim, emulated, "frames.cc", flags=flags)


def test_counts_are_exact_while_threads_and_signals_call_and_versions_change(cross_shim: Path,
                                                                             emulated: Emulated) -> None:
    check(cross_shim, emulated, "stress.c", "2", "3", expected="ok .* calls, .*\n")


@pytest.mark.parametrize("case", ["memory", "poor", "c11"])
def test_threads(cross_shim: Path, emulated: Emulated, case: str) -> None:
    check(cross_shim, emulated, "life.c", case)


def test_outlined_atomics_do_what_they_are_named_after(cross_shim: Path, emulated: Emulated) -> None:
    check(cross_shim, emulated, "aarch64/outlined.c")
