"""Each defect that fuzzing found, by the smallest damage that shows it."""

from __future__ import annotations

import os
import struct
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import corpus
import pytest
from judge import judge
from memory import Bytes, Range, mapped

from psu_bin import arch, elf
from psu_bin.attach import meta, patch, revert, target
from psu_bin.attach.process import Process
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import driver
from psu_bin.regress import scenario
from recorded import read_all, recording
from targets import BIAS, SHIM_BIAS, _views, instrumented, link


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


# ---- programs -------------------------------------------------------------------------------------------------------

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


def test_an_address_in_the_dynamic_section_that_is_beyond_all_memory(tmp_path: Path) -> None:
    """It made numpy warn, and every number beside it inexact."""
    data = corpus.programs()[3]
    at = dynamic_entry(Binary(data, "good"), 3)          # DT_PLTGOT
    file = tmp_path / "program"
    file.write_bytes(with_field(data, at + 8, "<Q", (1 << 64) - 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert driver.rewritten(file)


# ---- patch objects --------------------------------------------------------------------------------------------------

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


def test_a_thread_local_reference_to_what_is_in_no_section() -> None:
    data = corpus.patches()[0]
    b = Binary(data, "good")
    table = b.section(".symtab")
    assert table and b.symtab
    n = next(n for n in range(len(b.symtab.entries)) if b.symtab.name(n) == "per_thread")
    bad = with_field(data, table.offset + 24 * n + 6, "<H", elf.SHN_ABS)
    with pytest.raises(PsuError, match="per_thread is used as a thread-local variable and is none"):
        link(patch.parse(Binary(bad, "patch.o")), _views(0))


def test_a_large_patch_takes_time_in_proportion() -> None:
    """Linking five times as much took twenty-five times as long, two minutes for 2,000 functions."""
    def seconds(count: int) -> float:
        source = "int leaf(int); int puts(const char *);\n" + "".join(
            f"static int s{n}; static const char *const t{n}[] = {{\"a{n}\", \"b{n}\"}};\n"
            f"__attribute__((noipa)) int f{n}(int x) {{ static int c; s{n} += x; puts(t{n}[x & 1]); return s{n} + ++c; }}\n"
            for n in range(count)) + "int leaf(int x) { return " + " + ".join(f"f{n}(x)" for n in range(count)) + "; }\n"
        p = patch.parse(Binary(corpus.compiled(source, "-O1"), "patch.o"))
        began = time.process_time()
        link(p, _views(0))
        return time.process_time() - began
    seconds(120)                        # what is only done once is done
    assert seconds(600) < 15 * seconds(120)


def test_a_function_symbol_in_data() -> None:
    """It is no code: it was decoded, and where the section has no bytes in the file, that failed."""
    for data in (corpus.patches()[0], *corpus.aarch64_patches()[:1]):
        b = Binary(data, "good")
        table = b.section(".symtab")
        assert table and b.symtab
        n = next(n for n in range(len(b.symtab.entries)) if b.symtab.name(n) == "also_new")
        p = patch.parse(Binary(with_field(data, table.offset + 24 * n + 4, "<B", elf.STT_FUNC), "patch.o"))
        assert "also_new" not in [f.name for f in p.functions]
        link(p, _views(0 if b.machine == elf.EM_X86_64 else len(corpus.programs()) - 1))


# ---- memory ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("address, size", [(BIAS, 1 << 60), (BIAS, 1 << 34), (1 << 64, 8), (-8, 8), (BIAS, -1)])
def test_numbers_from_damaged_memory_are_no_sizes(address: int, size: int) -> None:
    for process in (Process(os.getpid()), Bytes([Range(BIAS, bytes(64))], [])):
        with pytest.raises(PsuError, match="memory cannot be read: "):
            process.read(address, size)


@pytest.mark.parametrize("tag", [5, 6])          # DT_STRTAB, DT_SYMTAB
def test_a_shim_without_a_symbol_table(tag: int) -> None:
    shim = driver.shim_file(arch.for_machine(elf.EM_X86_64, "shim")).read_bytes()
    bad = with_field(shim, dynamic_entry(Binary(shim, "good"), tag), "<Q", 0x7000_0000)
    program, its_maps = mapped(instrumented(), "/program", BIAS)
    ranges, maps = mapped(bad, "/libpsu_shim.so", SHIM_BIAS)
    with pytest.raises(PsuError, match="^process 4711: has no libpsu_shim.so loaded" if tag == 5 else
                       "^/libpsu_shim.so: is not psu-bin's shim: no symbol table"):
        target.read(Bytes(program + ranges, its_maps + maps))


def recorded_with(address: int, value: int) -> Bytes:
    """The recorded process with another 8-byte word at `address`."""
    r = recording()
    bodies = [with_field(body, address - start, "<Q", value) if start <= address < start + len(body) else body
              for start, body in zip(r.starts, r.bodies)]
    assert len(b"".join(bodies)) == len(b"".join(r.bodies))
    return replace(r, bodies=tuple(bodies)).process()


def test_a_list_of_counters_without_end() -> None:
    """Each block counts once, and the walk ends."""
    runtime = target.read(recording().process()).runtime()
    objects = tuple(o.index for o in runtime.read_objects(recording().process()))
    good = runtime.activations(recording().process(), objects)
    assert any(good.values())
    process = recorded_with(runtime.blocks + 16, runtime.blocks)
    assert judge(lambda data: read_all(process), b"") == ""
    assert target.read(process).runtime().activations(process, objects) == good


def test_notes_of_a_function_that_the_module_has_not() -> None:
    t = target.read(recording().process())
    with pytest.raises(PsuError, match="psu-bin's notes in it are damaged: function 99 of "):
        revert._to_original(SimpleNamespace(target=t), meta.FunctionNotes(t.modules[0].key, 99, "f"))  # type: ignore[arg-type]


def test_gates_beyond_the_end_of_memory() -> None:
    at = target.read(recording().process()).runtime_address
    pools = struct.calcsize("<QIIIIIIII")
    with pytest.raises(PsuError, match="psu-bin's state in it is damaged: gates beyond the end of memory"):
        target.read(recorded_with(at + pools, (1 << 64) - 1)).runtime()


# ---- scenarios ------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Callable[[str], str]] = {
    "not TOML: nested too deeply": lambda good: good + "x = " + "[" * 5000,
    "not TOML: exceeds the limit": lambda good: good + "x = " + "9" * 5000,
    r"expect should be a regular expression \(nested": lambda good: good.replace('"line"', f'"{"(" * 3000}{")" * 3000}"'),
    r"expect should be a regular expression \(the rep": lambda good: good.replace('"line"', '"a{99999999999}"'),
    "no such file: xxx": lambda good: good.replace("main.c", "x" * 5000),
}


def test_a_pattern_that_a_later_python_may_read_otherwise(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Python's warning would be two lines on standard error."""
    (tmp_path / "main.c").touch()
    file = tmp_path / "a.toml"
    file.write_text('[program]\nsources = ["main.c"]\n[[step]]\nstart = []\n[[step]]\nexpect = "[[a]"\n')
    assert scenario.read(file).steps[1].value.search("[")
    assert not recwarn.list


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
