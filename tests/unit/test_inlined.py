"""Which functions have an inlined copy of another, from real compilers' debug information."""

from pathlib import Path

import pytest
from conftest import compile as run_compiler

from psu_bin.attach import inlined
from psu_bin.elf import Binary

SOURCE = r"""
extern int external(int);
static int deepest(int x) { return x * 3 + 1; }
static int middle(int x) { return deepest(x) - 7; }
static inline int helper(int x) { return x * 5; }
int shared(int x) { return x ^ 99; }
__attribute__((noinline)) int first(int x) { { int y = helper(x); return external(y) + middle(y); } }
__attribute__((noinline)) int second(int x) { return external(helper(x + 1)) + shared(x); }
int main(int n, char **v) { return first(n) + second(n); }
"""
OTHER = r"""
extern int shared(int);
static inline int helper(int x) { return shared(x * 8) + 1; }
__attribute__((noinline)) int external(int x) { return helper(x) + shared(x); }
"""
# Every compiler, every version of the format, names in each of the ways that there are.
BUILDS = [("gcc", "-gdwarf-5"), ("gcc", "-gdwarf-4"), ("gcc", "-gdwarf-3"), ("gcc", "-gdwarf-5 -gz=zlib"),
          ("gcc", "-gdwarf-5 -gdwarf64"), ("gcc", "-gdwarf-4 -fdebug-types-section"), ("gcc", "-g3 -ffunction-sections"),
          ("clang", "-gdwarf-5"), ("clang", "-gdwarf-4"), ("clang", "-gdwarf-5 -fdebug-types-section"),
          ("g++", "-g -x c++"), ("clang++", "-g -x c++")]


def program(folder: Path, cc: str, flags: str) -> Binary:
    for name, text in (("one.c", SOURCE), ("two.c", OTHER)):
        (folder / name).write_text(text)
    run_compiler("-O2", *flags.split(), folder / "one.c", folder / "two.c", "-o", folder / "program", cc=cc)
    return Binary.read(folder / "program")


def names(copies: set[inlined.Copy]) -> set[tuple[str, str, str]]:
    return {(c.function, Path(c.unit).name, c.caller) for c in copies}


@pytest.mark.parametrize(("cc", "flags"), BUILDS, ids=[" ".join(b) for b in BUILDS])
def test_inlined_copies_and_the_functions_that_they_are_in(tmp_path: Path, cc: str, flags: str) -> None:
    binary = program(tmp_path, cc, flags)
    mangle = {"first": "_Z5firsti", "second": "_Z6secondi", "external": "_Z8externali", "shared": "_Z6sharedi",
              "helper": "_ZL6helperi", "middle": "_ZL6middlei", "deepest": "_ZL7deepesti"} if "++" in cc else {}

    def m(name: str) -> str:
        return mangle.get(name, name)

    # C++ compilers leave the linkage name of what is inlined everywhere out at times: then it is known by its plain one.
    found = names(inlined.find(binary, [n for name in ("helper", "deepest", "shared") for n in {name, m(name)}]))
    plain = {(next((k for k, v in mangle.items() if v == f), f), unit, c) for f, unit, c in found}
    assert plain == {("helper", "one.c", m("first")), ("helper", "one.c", m("second")), ("helper", "two.c", m("external")),
                     ("deepest", "one.c", m("first")), ("shared", "one.c", m("second"))}


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_with_lto_copies_are_in_other_units(tmp_path: Path, cc: str) -> None:
    binary = program(tmp_path, cc, "-g -flto" + (" -fuse-ld=lld" if cc == "clang" else ""))
    assert {("shared", "one.c", "second"), ("shared", "one.c", "external")} <= names(inlined.find(binary, ["shared"]))


def test_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert not inlined.find(program(tmp_path, "gcc", "-g0"), ["helper"])
    assert not inlined.find(program(tmp_path, "gcc", "-g -O0"), ["helper"])
    assert not inlined.find(program(tmp_path, "gcc", "-g"), ["main", "help", "per", ""])


def test_damage_is_no_error(tmp_path: Path) -> None:
    binary = program(tmp_path, "gcc", "-gdwarf-5")
    for name in (".debug_info", ".debug_abbrev"):
        s = binary.section(name)
        assert s
        for at in range(s.offset, s.offset + s.size, max(s.size // 200, 1)):
            for value in (0, 0xFF, binary.data[at] ^ 0x41):
                data = bytearray(binary.data)
                data[at] = value
                inlined.find(Binary(bytes(data), "damaged"), ["helper", "deepest"])
