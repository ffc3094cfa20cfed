"""Each defect that fuzzing found, by the smallest damage that shows it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import corpus
import pytest
from memory import Range

from psu_bin import elf
from psu_bin.attach import patch
from psu_bin.attach.process import Process
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import driver
from psu_bin.regress import scenario
from targets import BIAS, Bytes, link, _views


def with_field(data: bytes, at: int, layout: str, value: int) -> bytes:
    """`data` with one number replaced."""
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout):]


def header_of(b: Binary, name: str) -> int:
    """Offset of the header of section `name`."""
    return b.shoff + 64 * next(s.index for s in b.sections if s.name == name)


def dynamic_entry(b: Binary, tag: int) -> int:
    """Offset of the dynamic entry `tag`."""
    p = b.segment(elf.PT_DYNAMIC)
    assert p
    return p.offset + 16 * [t for t, _ in b.dynamic].index(tag)


def instrument(tmp_path: Path, data: bytes) -> bytes:
    (tmp_path / "program").write_bytes(data)
    return driver.rewritten(tmp_path / "program")


# ---- programs ----------------------------------------------------------------------------------------------------------

def test_two_dynamic_entries_for_one_table(tmp_path: Path) -> None:
    data = corpus.programs()[0]
    at = dynamic_entry(Binary(data, "good"), 9)          # DT_RELAENT
    with pytest.raises(PsuError, match="malformed: two dynamic entries 0x6ffffef5"):
        instrument(tmp_path, with_field(data, at, "<Q", elf.DT_GNU_HASH))


def test_section_names_that_do_not_end(tmp_path: Path) -> None:
    """instrument adds names behind them: the last one would become another."""
    data = corpus.programs()[0]
    b = Binary(data, "good")
    names = b.sections[b.shstrndx]
    with pytest.raises(PsuError, match="malformed: the last string of section .shstrtab does not end"):
        instrument(tmp_path, with_field(data, names.offset + names.size - 1, "<B", 0x78))


def test_a_hash_table_without_a_way_to_its_end(tmp_path: Path) -> None:
    """Symbols of the original code are put behind the last chain: no bucket leads there, so none are made."""
    data = corpus.programs()[2]
    b = Binary(data, "good")
    s = b.section(".gnu.hash")
    assert s
    buckets, _, words, _ = struct.unpack_from("<IIII", data, s.offset)
    first = s.offset + 16 + 8 * words
    values = struct.unpack_from(f"<{buckets}I", data, first)
    bad = with_field(data, first + 4 * values.index(max(values)), "<I", 0)
    grown = [len(Binary(instrument(tmp_path, x), "out").dynsym.entries) - len(b.dynsym.entries) for x in (data, bad)]
    assert grown[0] > 0 and grown[1] == 0


# ---- patch objects -----------------------------------------------------------------------------------------------------

def test_a_global_symbol_without_a_name() -> None:
    data = corpus.patches()[0]
    b = Binary(data, "good")
    table = b.section(".symtab")
    assert table and b.symtab
    n = next(n for n in range(len(b.symtab.entries)) if b.symtab.name(n) == "chosen")
    with pytest.raises(PsuError, match=f"malformed symbol table: global symbol {n} has no name"):
        patch.parse(Binary(with_field(data, table.offset + 24 * n, "<I", 0), "patch.o"))


def test_code_that_is_not_in_the_file() -> None:
    data = corpus.patches()[0]
    at = header_of(Binary(data, "good"), ".text")
    bad = with_field(with_field(data, at + 4, "<I", elf.SHT_NOBITS), at + 8, "<Q", 7)
    with pytest.raises(PsuError, match="malformed section .text"):
        link(patch.parse(Binary(bad, "patch.o")), _views(0))


# ---- memory ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("address, size", [(BIAS, 1 << 60), (BIAS, 1 << 34), (1 << 64, 8), (-8, 8), (BIAS, -1)])
def test_numbers_from_damaged_memory_are_no_sizes(address: int, size: int) -> None:
    for process in (Process(os.getpid()), Bytes([Range(BIAS, bytes(64))], [])):
        with pytest.raises(PsuError, match="memory cannot be read: "):
            process.read(address, size)


# ---- scenarios ---------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Callable[[str], str]] = {
    "not TOML: nested too deeply": lambda good: good + "x = " + "[" * 5000,
    "not TOML: exceeds the limit": lambda good: good + "x = " + "9" * 5000,
    r"expect should be a regular expression \(nested": lambda good: good.replace('"line"', f'"{"(" * 3000}{")" * 3000}"'),
    r"expect should be a regular expression \(the rep": lambda good: good.replace('"line"', '"a{99999999999}"'),
    "no such file: xxx": lambda good: good.replace("main.c", "x" * 5000),
}


@pytest.mark.parametrize("message", SCENARIOS)
def test_scenarios(tmp_path: Path, message: str) -> None:
    good = '[program]\nsources = ["main.c"]\n[[step]]\nstart = []\n[[step]]\nexpect = "line"\n'
    (tmp_path / "main.c").touch()
    file = tmp_path / "a.toml"
    file.write_text(good)
    assert scenario.read(file).steps
    file.write_text(SCENARIOS[message](good))
    with pytest.raises(PsuError, match=message):
        scenario.read(file)
