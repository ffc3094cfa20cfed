"""The shim, driven from inside one process: each program in shim/test plays psu-bin against the real agent and gates.

The programs are C because they must call through stubs; each says in its head comment what it proves, exits 0 and
prints "ok", or names the check that failed.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from shim_host import SHIM, build, run, shim  # noqa: F401  (shim is a fixture)


def test_needs_no_library_and_exports_only_its_contract(shim: Path) -> None:  # noqa: F811
    dynamic = subprocess.run(["readelf", "-dW", "--dyn-syms", str(shim)], capture_output=True, text=True,
                             check=True).stdout
    assert "NEEDED" not in dynamic
    # With it, dlsym(RTLD_DEFAULT) would find what stands in front of the C library even where it does not stand there.
    assert "SYMBOLIC" not in dynamic
    rows = [line.split() for line in dynamic.splitlines() if re.search(" (DEFAULT|PROTECTED) ", line)]
    exported = {r[7] for r in rows if r[6] != "UND" and r[4] != "LOCAL" and len(r) > 7}
    # On AArch64 patches find the compiler's outlined atomic operations there, which others have hidden.
    if platform.machine() == "aarch64":
        exported = {name for name in exported if not name.startswith("__aarch64_")}
    assert exported == {"psu_runtime", "pthread_create", "thrd_create", "pthread_exit", "thrd_exit", "dl_iterate_phdr",
                        "_dl_find_object"}
    assert all(r[4] == "WEAK" and "@" not in r[7] for r in rows if r[6] == "UND" and len(r) > 7)
    segments = subprocess.run(["readelf", "-lW", str(shim)], capture_output=True, text=True, check=True).stdout
    tls = next(line.split() for line in segments.splitlines() if line.split()[:1] == ["TLS"])
    assert int(tls[5], 16) == 8, "static TLS must be one pointer"


def test_patch_repatch_revert_and_refuse(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "basic.c")) == "ok\n"


@pytest.mark.skipif(not shutil.which("musl-gcc"), reason="no musl-gcc")
def test_same_file_serves_musl(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "basic.c", "musl-gcc")) == "ok\n"


def routine_offsets(shim: Path) -> list[str]:  # noqa: F811
    """Where the routines of retired and pending gates are, from psu_runtime (the tests poke them into gate data)."""
    out = subprocess.run(["nm", str(shim)], capture_output=True, text=True, check=True).stdout
    at = {line.split()[2]: int(line.split()[0], 16) for line in out.splitlines() if len(line.split()) == 3}
    return [str(at[f"psu_{kind}_{routine}"] - at["psu_runtime"])
            for routine in ("pending", "redirect") for kind in ("plain", "side", "full")]


def poor_offsets(shim: Path) -> list[str]:  # noqa: F811
    """Where psu_full_otherwise and poor.c's spares are, from psu_runtime, and the size of the latter."""
    out = subprocess.run(["nm", "-S", str(shim)], capture_output=True, text=True, check=True).stdout
    at = {words[-1]: (int(words[0], 16), int(words[1], 16)) for words in map(str.split, out.splitlines()) if len(words) == 4}
    base = at["psu_runtime"][0]
    return [str(at["psu_full_otherwise"][0] - base), str(at["spares"][0] - base), str(at["spares"][1])]


def test_gates_keep_registers_flags_and_stack_arguments(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "conventions.c"), *routine_offsets(shim), *poor_offsets(shim)) == "ok\n"


# Each instruction costs as many steps as there are before it: the longest, rarest ways are tried at some of theirs.
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_call_cancelled_at_any_instruction_is_counted_out_at_most_once(shim: Path,  # noqa: F811
                                                                         kind: int) -> None:
    out = run(build(shim, "cancelled.c"), str(kind), "3", "0", *routine_offsets(shim), poor_offsets(shim)[0], timeout=300)
    assert out.endswith("\nok\n")


WAYS = ["call", "out", "inside", "switch"]      # what handlers do


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind, stride", [(0, 7), (1, 3), (2, 13)])
def test_a_signal_at_any_instruction_of_a_call_leaves_entries_with_one_owner(shim: Path, kind: int,  # noqa: F811
                                                                             stride: int, way: str) -> None:
    out = run(build(shim, "jumped.c"), way, str(kind), str(stride), *routine_offsets(shim), timeout=300)
    assert out.endswith("\nok\n")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["stacked", "spare"])
def test_a_signal_at_any_instruction_of_a_call_without_memory(shim: Path, where: str, way: str) -> None:  # noqa: F811
    out = run(build(shim, "jumped.c"), way, "2", "13", *routine_offsets(shim), where, *poor_offsets(shim), timeout=300)
    assert out.endswith("\nok\n")


def test_entries_that_others_than_their_place_must_find_are_found_and_those_in_use_kept(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "left.c")).endswith("\nok\n")


def test_calls_by_pointer_inside_an_object_are_not_counted_and_right(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "inner.c")) == "ok\n"


def test_entries_of_hundreds_of_calls_that_are_left_at_once_are_found_again(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "depths.c")).endswith("\nok\n")


def test_start_routines_that_end_their_threads_are_counted_out_once(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "starting.c"), *routine_offsets(shim)) == "ok\n"


def test_free_entries_are_found_when_the_list_is_a_circle_and_memory_is_short(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "lists.c")) == "ok\n"


def test_a_thread_that_starts_the_agent_is_not_left_halfway_by_a_handler(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "jumped.c"), "start", "0", "10", *routine_offsets(shim), timeout=300).endswith("\nok\n")


UNWINDERS = [["-O2"], ["-fno-omit-frame-pointer"], ["-static-libgcc", "-static-libstdc++"]]


@pytest.mark.parametrize("where", ["program", "library", "poor"])
@pytest.mark.parametrize("flags", UNWINDERS)
def test_exceptions_cancellation_and_longjmp_through_gates(shim: Path,  # noqa: F811
                                                           flags: list[str], where: str) -> None:
    assert run(build(shim, "unwind.cc", "g++", *flags), "100", where) == "ok\n"


@pytest.mark.parametrize("flags", UNWINDERS)
def test_unwind_rules_of_injected_code_are_found_and_forgotten(shim: Path, flags: list[str]) -> None:  # noqa: F811
    assert run(build(shim, "frames.cc", "g++", *flags)) == "ok\n"


def test_unwind_rules_are_not_those_of_an_object_that_is_changing(shim: Path) -> None:  # noqa: F811
    if platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        pytest.skip("the C library has no _dl_find_object")
    assert run(build(shim, "found.c"), timeout=120).endswith("\nok\n")


@pytest.mark.skipif(not shutil.which("gdb"), reason="no gdb")
def test_backtrace_is_right_at_every_instruction_of_every_gate(shim: Path) -> None:  # noqa: F811
    program = build(shim, "steps.c")
    done = subprocess.run(["gdb", "-q", "-nx", "-batch", "-x", str(SHIM / "test" / "steps.py"), "--args", str(program)],
                          capture_output=True, text=True, timeout=120, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()
             if line.startswith(("steps ", "wrong ", "seen "))}
    assert lines["wrong"] == "wrong 0", done.stdout
    assert int(lines["steps"].split()[1]) > 1500
    for routine in ("psu_plain_gates", "psu_side_gates", "psu_full_gates", "psu_plain_slow", "psu_plain_redirect",
                    "psu_side_redirect", "psu_full_leave", "psu_full_stacked"):
        assert f"'{routine}'" in lines["seen"]
