"""What the tests of references and plans share: compile, plan, and an oracle made from the linker's own relocations.

With -ffunction-sections the assembler can resolve nothing between functions, and --emit-relocs keeps what the linker
resolved: every reference to a function is then on record.  `recorded` reads that record with pyelftools alone.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from psu_bin.arch import for_machine
from psu_bin.elf import ET_EXEC, Binary
from psu_bin.instrument import plan
from psu_bin.instrument.plan_types import Edit, Plan, PlannedFunction, Reroute

ARCH = for_machine(62, "test")


def build(folder: Path, *arguments: object, cc: str = "gcc", out: str = "a.out") -> Path:
    """Compile and link; skips the test where the compiler or linker is missing."""
    path = folder / out
    try:
        done = subprocess.run([cc, *map(str, arguments), "-o", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"no {cc}")
    if done.returncode:
        pytest.fail(f"{cc} {' '.join(map(str, arguments))}:\n{done.stderr}")
    return path


def source(folder: Path, text: str, name: str = "a.c") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Planned:
    """A plan with the binary it is for, and ways to look things up in it."""
    binary: Binary
    plan: Plan

    def function(self, name: str) -> PlannedFunction:
        return next(f for f in self.plan.functions if f.name == name)

    def names(self) -> set[str]:
        return {f.name for f in self.plan.functions}

    def reason(self, name: str) -> str:
        return next(n.reason for n in self.plan.not_updatable if n.name == name)

    @property
    def found(self) -> list[Edit]:
        """What leads to a function: what is edited, and the direct calls that are left (instrument/sites.py)."""
        kind = Reroute[for_machine(self.binary.machine, "").site_form.kind]
        return [*self.plan.edits, *(Edit(kind, at, function, True) for at, function in self.plan.sites)]

    def edits(self, name: str) -> list[Reroute]:
        return [e.kind for e in self.found if self.plan.functions[e.function].name == name]

    def detour(self, name: str):
        return next(d for d in self.plan.detours if self.plan.functions[d.function].name == name)


def planned(path: Path, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), debug: Path | None = None) -> Planned:
    binary = Binary.read(path)
    return Planned(binary, plan.make(binary, ARCH, include, exclude, Binary.read(debug) if debug else None))


def edited_fields(p: Planned) -> dict[int, int]:
    """Address of every field in code or data that the plan reroutes -> entry of the function that it leads to."""
    out = {}
    for e in p.found:
        if e.kind == Reroute.DYNSYM:
            continue
        at = int(p.binary.rela["r_offset"][e.at]) if e.kind == Reroute.RELA_ADDEND else e.at
        out[at] = p.plan.functions[e.function].address
    return out


_PC_RELATIVE = {2, 4}                    # PC32, PLT32
_ABSOLUTE = {1, 10, 11}                  # 64, 32, 32S
_GOT = {9, 41, 42}                       # GOTPCREL and relaxable forms: the linker may replace the load by a lea
_UNLOADED = (".eh_frame", ".debug", ".rela.debug", ".note", ".gcc_except")


def _leads_to(binary: Binary, at: int) -> int:
    """Where the relative 4-byte field at address `at` leads."""
    field = binary.offset_of(at)
    return at + 4 + int.from_bytes(binary.data[field:field + 4], "little", signed=True)


def recorded(path: Path, p: Planned) -> dict[int, int]:
    """Address of every field that a kept relocation makes refer to the entry of a planned function -> that entry."""
    entries = {f.address for f in p.plan.functions}
    dynamic = set(p.binary.rela["r_offset"][p.binary.rela["r_sym"] != 0].tolist())
    plt = [s for s in p.binary.sections if s.name.startswith(".plt")]
    out = {}
    with open(path, "rb") as f:
        elf = ELFFile(f)
        for section in elf.iter_sections():
            if not isinstance(section, RelocationSection) or section["sh_flags"] & 2:
                continue
            target = elf.get_section(section["sh_info"])
            if not target["sh_flags"] & 2 or target.name.startswith(_UNLOADED):
                continue
            code = bool(target["sh_flags"] & 4)
            symbols = elf.get_section(section["sh_link"])
            for r in section.iter_relocations():
                symbol = symbols.get_symbol(r["r_info_sym"])
                kind, value = r["r_info_type"], symbol["st_value"] + r["r_addend"]
                if symbol["st_shndx"] == "SHN_UNDEF" or r["r_offset"] in dynamic:
                    continue
                if kind == 4 and any(s.holds(_leads_to(p.binary, r["r_offset"])) for s in plt):
                    continue            # an exported function of a library: reached through its dynamic symbol
                if kind in _PC_RELATIVE and code and value + 4 in entries:
                    out[r["r_offset"]] = value + 4
                elif kind in _GOT and symbol["st_value"] in entries:
                    if _leads_to(p.binary, r["r_offset"]) == symbol["st_value"]:
                        out[r["r_offset"]] = symbol["st_value"]
                elif kind in _ABSOLUTE and value in entries and (not code or p.binary.type == ET_EXEC):
                    out[r["r_offset"]] = value
    return out
