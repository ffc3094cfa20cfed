"""What the tests of the shim share: building it and the programs of shim/test against it, and running them.

Both for this machine and, with a cross compiler and an emulator of programs, for another (Emulated)."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SHIM = Path(__file__).parents[2] / "shim"
FLAGS = ["-std=gnu11", "-g", "-O2", "-fPIC", "-Wall", "-Wextra", "-pthread"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly built libpsu_shim.so, one for all modules (each of which imports this as a fixture of its own)."""
    out = tmp_path_factory.getbasetemp() / "shim" / "libpsu_shim.so"
    if not out.exists():
        out.parent.mkdir()
        subprocess.run(["make", "-s", "-C", str(SHIM), f"OUT={out}"], check=True)
    return out


def build(shim: Path, source: str, compiler: str = "gcc", *flags: str) -> Path:
    """Compile shim/test/SOURCE against the shim, which comes first in its DT_NEEDED."""
    out = shim.parent / f"{Path(source).stem}-{compiler}{''.join(flags).replace('/', '_')}"
    base = [f for f in FLAGS if not (f.startswith("-std") and source.endswith(".cc"))]
    subprocess.run([compiler, *base, *flags, f"-I{SHIM / 'test' / machine(compiler)}",
                    str(SHIM / "test" / source), "-o", str(out), f"-L{shim.parent}",
                    "-Wl,--no-as-needed", "-l:libpsu_shim.so", f"-Wl,-rpath,{shim.parent}", "-rdynamic"], check=True)
    return out


def machine(compiler: str) -> str:
    """The architecture that a compiler makes programs for, as the folders in shim/arch and shim/test are named."""
    done = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True)
    return done.stdout.split("-")[0].strip()


@dataclass(frozen=True)
class Emulated:
    """Programs of another architecture, which an emulator of programs (not of a machine) runs here."""

    arch: str
    cpu: str

    @property
    def missing(self) -> str:
        """Why it cannot be had here, or ''."""
        tools = (self.compiler("gcc"), self.compiler("g++"), f"qemu-{self.arch}")
        return ", ".join(f"no {tool}" for tool in tools if not shutil.which(tool))

    @property
    def prefix(self) -> tuple[str, ...]:
        """What comes before the program's name."""
        return (f"qemu-{self.arch}", "-cpu", self.cpu, "-L", f"/usr/{self.arch}-linux-gnu")

    def compiler(self, name: str) -> str:
        """Its gcc or g++."""
        return f"{self.arch}-linux-gnu-{name}"


def run(program: Path, *arguments: str, timeout: float = 60, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """Run it, behind `prefix`; its standard output.  Fails when it does not exit with 0."""
    done = subprocess.run([*prefix, str(program), *arguments], check=False, capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **environment})
    assert done.returncode == 0, f"{program.name}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
