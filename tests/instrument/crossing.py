"""Building for AArch64 on another machine, and running what was built under qemu-user.

On an AArch64 machine the same tests run natively.  Where a compiler is missing they are skipped, with the reason.
The shim is the project's where it has one for AArch64, else a stand-in without any function: instrumented code needs it
to be there, not to do anything before the first attach.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from conftest import compile as run_compiler
from rewriting import PROGRAMS

from psu_bin import descriptor
from psu_bin.instrument import driver

NATIVE = platform.machine() == "aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
UNDER = () if NATIVE else ("qemu-aarch64", "-cpu", "max,pauth-impdef=on", "-L", str(SYSROOT))


def compiler(name: str) -> tuple[str, ...]:
    """The command that compiles for AArch64 with gcc, g++, clang or clang++.  Skips the test where something is missing."""
    if NATIVE:
        words: tuple[str, ...] = (name,)
    elif name.startswith("clang"):
        words = (name, "--target=aarch64-linux-gnu")
    else:
        words = (f"aarch64-linux-gnu-{name}",)
    needed = [words[0]] if NATIVE else [words[0], "aarch64-linux-gnu-gcc", UNDER[0]]
    missing = [w for w in needed if not shutil.which(w)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: scripts/setup.sh installs what AArch64 needs")
    return words


def binary_tool(name: str) -> str:
    """The program of GNU binutils that handles AArch64 files; it comes with the compiler."""
    return name if NATIVE else f"aarch64-linux-gnu-{name}"


def relr() -> tuple[str, ...]:
    """Options of clang for relative relocations in DT_RELR: GNU ld has them for AArch64 from 2.43 and lld from 15 on, and what
    does not know them passes over them.  Skips the test where there is no such lld."""
    found = {int(p.parts[3].removeprefix("llvm-")): p for p in Path("/usr/lib").glob("llvm-[0-9]*/bin/ld.lld")}
    if max(found, default=0) < 15:
        pytest.skip("no lld 15 or later: scripts/setup.sh installs what AArch64 needs")
    return "-fuse-ld=lld", f"--ld-path={found[max(found)]}", "-Wl,-z,pack-relative-relocs"


def cross_compiled(out: Path, *arguments: object, cc: str = "gcc") -> Path:
    """Compile programs/SOURCE... for AArch64; names of sources are relative to programs/."""
    command, *target = compiler(cc)
    words = [PROGRAMS / a if isinstance(a, str) and a.endswith((".c", ".cc", ".S")) else a for a in arguments]
    quiet = ("-Wno-unused-command-line-argument",) if cc.startswith("clang") else ()
    run_compiler(*target, *quiet, *words, f"-I{PROGRAMS}", "-o", out, cc=command)
    return out


@pytest.fixture(scope="session")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what test modules build once, with a shim for AArch64; change.so in it, see programs/change.c."""
    folder = tmp_path_factory.mktemp("aarch64")
    cross_compiled(folder / "change.so", "-shared", "-fPIC", "-O1", "-nostdlib", "-fno-stack-protector", "change.c")
    return folder


@pytest.fixture(autouse=True, scope="session")
def cross_shim(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> object:
    """Let the driver find a shim for AArch64."""
    request.getfixturevalue("cross")
    shim = tmp_path_factory.mktemp("shim") / descriptor.SHIM_SONAME
    if (ROOT / "shim" / "arch" / "aarch64" / "gates.S").exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "shim"), f"CC={' '.join(compiler('gcc'))}", f"OUT={shim}"],
                       check=True)
    else:
        cross_compiled(shim, "-shared", "-nostdlib", "-Wl,-soname," + descriptor.SHIM_SONAME, "-xc", "/dev/null")
    change = pytest.MonkeyPatch()
    real = driver.shim_file
    change.setattr(driver, "shim_file", lambda arch: shim if arch.name == "aarch64" else real(arch))
    yield shim
    change.undo()
