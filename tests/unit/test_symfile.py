"""The file for debuggers names the same function and line for every byte of code as the patch object does."""

import shutil
import struct
import subprocess

import pytest
from conftest import PROGRAMS, compile
from psu_bin.attach import lines, symfile
from psu_bin.attach import patch as patch_module
from psu_bin.errors import PsuError

SOURCES = ("int table[8];\nint one(int n)\n{\n    int sum = 0;\n    for (int i = 0; i < n; i++)\n"
           "        sum += table[i & 7] * i;\n    return sum;\n}\n" + "\n" * 300 +
           "__attribute__((cold)) int two(int n) { return one(n) +\n one(n + 1); }\n"
           "#include \"sub/part.h\"\n#line 70000 \"other.y\"\nint far(int n)\n{\n    if (n > 3)\n"
           "        __builtin_abort();\n"
           "    return in_header(n) +\n        n;\n}\n")
HEADER = ("static inline __attribute__((always_inline)) int in_header(int n)\n{\n"
          "    return n * table[n & 7] +\n        table[1];\n}\n")


def placed(patch):
    return [s.index for s in patch.sections if s.flags & 4 and s.flags & 2 and s.size]


def where(path, addresses, *options):
    done = subprocess.run(["addr2line", "-s", "-f", "-e", str(path), *options, *map(hex, addresses)], text=True, capture_output=True,
                          check=True)
    return [line.split(" (disc")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("cc, flags", [
    ("gcc", "-O2"), ("gcc", "-O0 -ffunction-sections"), ("gcc", "-O3 -gdwarf-4"), ("gcc", "-gdwarf-3 -gstrict-dwarf"),
    ("gcc", "-Os -gz=zlib"), ("gcc", "-gdwarf-2 -gno-as-locview-support"), ("gcc", "-O2 -gsplit-dwarf"),
    ("gcc", "-gdwarf-5 -gdwarf64"), ("clang", "-O2"), ("clang", "-O2 -fdebug-compilation-dir=/nowhere/server"),
    ("clang", "-O1 -gdwarf-4 -ffunction-sections")])
def test_every_byte_has_its_function_and_line(tmp_path, monkeypatch, cc, flags):
    if not shutil.which(cc):
        pytest.skip(f"{cc} is not installed")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "part.h").write_text(HEADER)
    (tmp_path / "a.c").write_text(SOURCES)
    monkeypatch.chdir(tmp_path)
    compile("-g", *flags.split(), "-c", tmp_path / "a.c", "-o", tmp_path / "a.o", cc=cc)
    # What binutils cannot read itself is compared with the same code, described otherwise. (Its 2.40 takes file 1 for
    # the compilation unit's own where clang, compiling a file outside its directory, means the next one by it.)
    plain = [x for x in flags.split() if x not in ("-gsplit-dwarf", "-gdwarf64") and "compilation-dir" not in x]
    compile("-g", *plain, "-c", tmp_path / "a.c", "-o", tmp_path / "plain.o", cc=cc)
    patch = patch_module.load(tmp_path / "a.o")
    sections = placed(patch)
    warnings: list[str] = []
    made = symfile.make(patch, sections, warnings)
    assert not warnings
    code = {s: 0x7F0000001000 + 0x10000 * n for n, s in enumerate(sections)}
    data = made.build(code, min(code.values()), max(code.values()) + 0x10000, 0x7F0000200000, 0)
    assert len(data) == made.size
    (tmp_path / "symfile").write_bytes(data)
    read = subprocess.run(["readelf", "-aW", tmp_path / "symfile"], capture_output=True, text=True, check=True)
    assert not read.stderr
    seen = set()
    for s in sections:
        names, offsets = zip(*((f.name, at) for f in patch.functions_in(s) for at in range(f.start, f.end)))
        expected = where(tmp_path / "plain.o", offsets, "-j", patch.sections[s].name)
        got = where(tmp_path / "symfile", [code[s] + at for at in offsets])
        assert got[1::2] == expected[1::2]
        assert got[::2] == list(names)       # the patch object's own names are those of inlined functions, too
        seen |= set(got)
    assert {"one", "two", "far"} <= seen and any(x.startswith("other.y:7000") for x in seen)
    assert any(x.startswith("part.h:") for x in seen)


def test_lines_are_small(tmp_path):
    compile("-g", "-O2", "-c", PROGRAMS / "crash" / "patch.c", "-o", tmp_path / "a.o")
    patch = patch_module.load(tmp_path / "a.o")
    assert symfile.make(patch, placed(patch), []).size < 1400


@pytest.mark.parametrize("at, value, said", [
    (4, b"\x09\0", "DWARF version 9"), (0, b"\xff\xff\xff\x7f", "cut short"), (14, b"\0", "without opcodes")])
def test_damaged_lines_are_a_warning(tmp_path, at, value, said):
    compile("-g", "-O2", "-gdwarf-5", "-c", PROGRAMS / "crash" / "patch.c", "-o", tmp_path / "a.o")
    patch = patch_module.load(tmp_path / "a.o")
    data = bytearray((tmp_path / "a.o").read_bytes())
    section = next(s for s in patch.sections if s.name == ".debug_line")
    at += 2 * (at > 4) + section.offset
    data[at:at + len(value)] = value
    (tmp_path / "a.o").write_bytes(data)
    patch = patch_module.load(tmp_path / "a.o")
    with pytest.raises(PsuError, match=said):
        lines.read(patch)
    warnings: list[str] = []
    made = symfile.make(patch, placed(patch), warnings)
    assert len(warnings) == 1 and said in warnings[0]
    data = made.build(dict.fromkeys(placed(patch), 0), 0, 0, 0, 0)
    assert struct.unpack_from("<H", data, 16) == (2,)
