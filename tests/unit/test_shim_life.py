"""The shim while threads, processes and libraries come and go: see shim/test/life.c, borrow.c and plugin.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from shim_host import FLAGS, SHIM, build, machine, run, shim  # noqa: F401  (shim is a fixture)

LIBCS = ["gcc", pytest.param("musl-gcc", marks=pytest.mark.skipif(not shutil.which("musl-gcc"), reason="no musl-gcc"))]


@pytest.mark.parametrize("compiler", LIBCS)
@pytest.mark.parametrize("case", ["short-threads", "memory", "poor", "fork", "fork-in-commit", "fork-and-timer", "vfork",
                                  "c11", "agent"])
def test_threads_and_processes(shim: Path, case: str, compiler: str) -> None:  # noqa: F811
    assert run(build(shim, "life.c", compiler), case) == "ok\n"


# Children at some of the instructions: a step, a child with an agent of its own and two commits take milliseconds.
@pytest.mark.parametrize("case, stride", [("plain", 5), ("back", 5), ("reset", 3), ("map", 5), ("resolve", 40)])
def test_child_forked_at_any_instruction_of_the_agent_is_sound(shim: Path, case: str, stride: int) -> None:  # noqa: F811
    assert run(build(shim, "forked.c"), case, str(stride), timeout=300).endswith("\nok\n")


@pytest.mark.parametrize("compiler", LIBCS)
@pytest.mark.parametrize("case, more", [("main-exits", ""), ("main-is-cancelled", ""), ("thread-forks", "ok\n")])
def test_process_whose_main_thread_left_ends_with_its_last_thread(shim: Path, compiler: str,  # noqa: F811
                                                                  case: str, more: str) -> None:
    # Standard output is a pipe: what the C library buffered must be written by exit().
    assert run(build(shim, "life.c", compiler), case, timeout=40) == f"the last thread ended\n{more}"


@pytest.mark.parametrize("compiler", LIBCS)
@pytest.mark.parametrize("value", ["start", "never"])
def test_psu_agent_says_when_the_agent_starts(shim: Path, value: str, compiler: str) -> None:  # noqa: F811
    assert run(build(shim, "life.c", compiler), "environment", PSU_AGENT=value) == "ok\n"


def test_borrowed_thread_comes_back_as_it_was(shim: Path) -> None:  # noqa: F811
    assert run(build(shim, "borrow.c")) == "ok\n"


def test_a_thread_leaves_a_gate_while_another_holds_the_dynamic_linkers_lock(shim: Path) -> None:  # noqa: F811
    library = shim.parent / "joining.so"
    subprocess.run(["gcc", *FLAGS, "-DLIBRARY", "-shared", str(SHIM / "test" / "joining.c"), "-o", str(library)], check=True)
    assert run(build(shim, "joining.c"), str(library)) == "ok\n"


@pytest.mark.parametrize("threads", ["threads", "alone"])
def test_shim_that_comes_with_a_plugin(shim: Path, threads: str) -> None:  # noqa: F811
    plugin, program = shim.parent / "plugin.so", shim.parent / "plugin"
    source = str(SHIM / "test" / "plugin.c")
    subprocess.run(["gcc", *FLAGS, f"-I{SHIM / 'test' / machine('gcc')}", "-DPLUGIN", "-shared",
                    source, "-o", str(plugin), f"-L{shim.parent}",
                    "-Wl,--no-as-needed", "-l:libpsu_shim.so", f"-Wl,-rpath,{shim.parent}"], check=True)
    subprocess.run(["gcc", *FLAGS, source, "-o", str(program)], check=True)
    assert run(program, str(plugin), threads) == "ok\n"
