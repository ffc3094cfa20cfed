"""What the tests of instrument share: building programs, instrumenting them, running them with slots changed."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from conftest import compile as run_compiler

from psu_bin import descriptor
from psu_bin.arch import EM_AARCH64, for_machine
from psu_bin.elf import Binary
from psu_bin.instrument import driver

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def change(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that changes slots, see programs/change.c; and a built shim for the driver."""
    out = tmp_path_factory.mktemp("change") / "change.so"
    run_compiler("-shared", "-fPIC", "-O1", "-nostdlib", "-fno-stack-protector", PROGRAMS / "change.c", "-o", out)
    shim = ROOT / "psu_bin" / "shim" / descriptor.SHIM_SONAME
    if not shim.exists():
        shim.parent.mkdir(exist_ok=True)
        own = shim.with_name(f"{shim.name}.{os.getpid()}")      # another process of the tests may be at it, too
        subprocess.run(["make", "-s", "-C", str(ROOT / "shim"), f"OUT={own}"], check=True)
        own.replace(shim)
    return out


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, change: Path) -> Path:
    """A folder for what test modules build once."""
    return tmp_path_factory.mktemp("built")


@dataclass(frozen=True)
class Instrumented:
    """A program or library, before and after."""
    original: Path
    path: Path
    result: driver.InstrumentResult

    @property
    def binary(self) -> Binary:
        return Binary.read(self.path)

    @property
    def descriptor(self) -> descriptor.Descriptor:
        b = self.binary
        return descriptor.decode(descriptor.gather(b.bytes_at, b.dyn(descriptor.DT_PSU) or 0, str(self.path)), str(self.path))

    def changes(self, pairs: dict[str, str]) -> dict[str, str]:
        """The environment that lets change.so put the original of the second function into the slot of the first."""
        d = self.descriptor
        index = {s.name: s.function for s in d.symbols if s.function != descriptor.NO_FUNCTION}
        missing = [n for n in (*pairs, *pairs.values()) if n not in index]
        assert not missing, f"not updatable: {missing} {[n for n in self.result.not_updatable if n.name in missing]}"
        lines = [f"{a} {d.slot(index[a]):x} {d.functions[index[b]].original:x} {self._turned(d, index[a])}"
                 for a, b in pairs.items()]
        module = "" if self.binary.segment(3) else self.path.name        # 3: PT_INTERP
        return {"PSU_TEST_CHANGES": "\n".join(lines), "PSU_TEST_MODULE": module,
                **({"PSU_TEST_GUARDED": "1"} if d.flags & descriptor.MODULE_IBT else {})}

    def calls(self, d: descriptor.Descriptor, function: int) -> list[tuple[int, bytes]]:
        """(address of the field, what it holds) of the direct calls of a function that attach turns."""
        form, b = for_machine(d.machine, "").site_form, self.binary
        fields = [(at, b.bytes_at(at, 4)) for at in d.sites]
        return [(at, field) for at, field in fields if form.target(at, field) == d.functions[function].address]

    def _turned(self, d: descriptor.Descriptor, function: int) -> str:
        """How many direct calls of the function have to be turned, and where each is, and what it holds then.

        Nobody executes them yet, so they can go to the table's stub at once, or to one in programs/far.c, which is made so."""
        form = for_machine(d.machine, "").site_form
        found = self.calls(d, function)
        to, words = d.stub(function), []
        if d.flags & descriptor.MODULE_FAR:
            to = next(s.address for s in d.symbols if s.name == "far_room") + function * d.stub_size
            stub = form.stub(to, d.slot(function), d.flags)
            words = [(to + n, stub[n:n + 4]) for n in range(0, len(stub), 4)]
        words += [(at, form.turned(at, field, to)) for at, field in found]
        return " ".join([f"{len(words):x}"] + [f"{at:x} {int.from_bytes(word, 'little'):x}" for at, word in words])


def compiled(out: Path, *arguments: object, cc: str = "gcc") -> Path:
    """Compile programs/SOURCE... with flags; names of sources are relative to programs/."""
    words = [PROGRAMS / a if isinstance(a, str) and a.endswith((".c", ".cc")) else a for a in arguments]
    run_compiler(*words, f"-I{PROGRAMS}", "-o", out, cc=cc)
    return out


def instrument(path: Path, output: Path | None = None, **how: object) -> Instrumented:
    """Instrument `path` into a folder beside it (or `output`)."""
    if output is None:
        output = path.parent / "psu" / path.name
    output.parent.mkdir(exist_ok=True)
    arguments = {"include": (), "exclude": (), "debug_file": None, **how}
    return Instrumented(path, output, driver.instrument(path, output, **arguments))   # type: ignore[arg-type]


def run(path: Path, *arguments: str, env: dict[str, str] | None = None, preload: Path | None = None,
        status: int = 0, under: tuple[str, ...] = ()) -> str:
    """Standard output of a program; fails when it ends otherwise than with `status`.

    under: qemu-user and its arguments, for programs of another architecture."""
    changed = {**(env or {}), **({"LD_PRELOAD": str(preload)} if preload else {})}
    wanted = {**os.environ, **changed}
    words = [str(path), *arguments]
    if under:          # the program's own environment: qemu is not to preload anything into itself
        wanted = dict(os.environ)
        words = [*under, *(w for k, v in changed.items() for w in ("-E", f"{k}={v.replace(',', ',,')}")), *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=wanted)
    assert done.returncode == status, f"{path}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def tool(*words: object) -> str:
    """Output of a binary tool, errors included; fails when it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def check_form(program: Instrumented) -> None:
    """readelf has no complaint about the file, and elflint none that it had not before."""
    for words in (("readelf", "-aW"), ("llvm-readelf", "-aW")):
        text = tool(*words, program.path)
        assert "warning" not in text.lower() and "error:" not in text.lower()
    before = complaints(program.original)
    assert not [x for x in complaints(program.path) if x not in before]


def complaints(path: Path) -> list[str]:
    """What elflint has to say about a file."""
    done = subprocess.run(["eu-elflint", "--gnu-ld", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    # Numbers of sections and symbols change.  Our own dynamic tag is unknown to it, and so is R_AARCH64_IRELATIVE: it complains
    # likewise about what GNU ld makes of a program with IFUNC.
    known = ("No errors", "unknown tag", *(("invalid type",) if Binary.read(path).machine == EM_AARCH64 else ()))
    return [re.sub(r" ?\d+", "N", x) for x in lines if not any(k in x for k in known)]
