"""Every reference goes through the slot: with the slot changed, each way of calling reaches the other function (I1).

One program, built in the ways that programs are built.  It must also print what it printed before while nothing is
changed, and compare function pointers as before.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rewriting import Instrumented, compiled, instrument, run, tool

from psu_bin import descriptor

pytest_plugins = ["rewriting"]

SLOTS = {"target": "other", "s_target": "s_other", "deep": "deep_other", "compare": "compare_other",
         "start": "start_other", "handler": "handler_other", "bye": "bye_other"}
WAYS = 31        # in ways.c

PROGRAMS = [
    ("gcc", "-O0"), ("gcc", "-O1"), ("gcc", "-O2"), ("gcc", "-O3"), ("gcc", "-Os"),
    ("gcc", "-O2 -no-pie"), ("gcc", "-Os -no-pie -Wl,--emit-relocs"), ("gcc", "-O2 -flto"),
    ("gcc", "-O2 -fcf-protection=full -Wl,-z,ibt"), ("gcc", "-O2 -fcf-protection=full -Wl,-z,ibt -no-pie -Wl,--emit-relocs"),
    ("gcc", "-O2 -Wl,-z,now -Wl,-z,relro"), ("gcc", "-O2 -fno-plt -Wl,-z,now"),
    ("gcc", "-O2 -Wl,-z,pack-relative-relocs"), ("gcc", "-O2 -Wl,-z,noseparate-code"),
    ("gcc", "-O2 -ffunction-sections -Wl,--emit-relocs"), ("gcc", "-O2 -Wl,-z,max-page-size=0x200000"),
    ("gcc", "-O2 -fuse-ld=gold"), ("gcc", "-O2 -fuse-ld=gold -no-pie -Wl,--emit-relocs"), ("gcc", "-O2 -fuse-ld=lld"),
    ("clang", "-O0"), ("clang", "-O2"), ("clang", "-Os -fuse-ld=lld"), ("clang", "-O3 -flto -fuse-ld=lld"),
    ("clang", "-O2 -fuse-ld=lld -no-pie -Wl,--emit-relocs"),
    ("clang", "-O2 -fcf-protection=full -Wl,-z,force-ibt -fuse-ld=lld -Wl,-z,now"), ("clang", "-O2 -fuse-ld=gold"),
    ("gcc", "-O2 -mcmodel=large -DNO_IFUNC"), ("gcc", "-O2 -mcmodel=large -fPIC -no-pie -DNO_IFUNC"),
    # without resolvers of its own the slots are relocated by one function, see relocations.py
    ("gcc", "-O2 -DNO_IFUNC"), ("gcc", "-O2 -DNO_IFUNC -fuse-ld=gold -Wl,-z,now"),
    ("clang", "-Os -DNO_IFUNC -fuse-ld=lld"), ("clang", "-O2 -DNO_IFUNC -fcf-protection=full -Wl,-z,force-ibt -flto -fuse-ld=lld"),
    ("musl-gcc", "-O2 -DNO_IFUNC"), ("musl-gcc", "-Os -no-pie -DNO_IFUNC -Wl,--emit-relocs"),
]


def name(cc: str, flags: str) -> str:
    return f"{cc}{flags}".replace(" ", "").replace("/", "_").replace(",", "_")


def check(i: Instrumented, program: Path, original: Path, preload: Path, env: dict[str, str],
          under: tuple[str, ...] = ()) -> None:
    """Run before, after, and after with changed slots."""
    before = run(original, env=env, under=under)
    assert run(program, env=env, under=under) == before
    changed = run(program, env={**env, **i.changes(SLOTS)}, preload=preload, under=under)
    assert changed.splitlines()[0] == "chosen 21"
    assert changed.splitlines()[1] == "deep 505"                    # 3 + 502: calls in progress went on in the old one
    assert changed.endswith("bye, other\n") and before.endswith("bye\n")
    values: dict[str, dict[str, str]] = {"before": {}, "after": {}}
    for line in changed.splitlines():
        when, _, rest = line.partition(" ")
        if when in values:
            what, _, value = rest.rpartition(" ")
            values[when][what] = value
    assert values["before"].items() <= dict(way(x) for x in before.splitlines() if x.startswith("before")).items()
    assert same(changed) == same(before)
    assert len(values["after"]) >= WAYS and values["after"].keys() == values["before"].keys()
    missed = [w for w in values["after"] if values["after"][w] == values["before"][w]]
    assert not missed, f"the old function is still reached: {missed}"


def same(text: str) -> set[str]:
    """What the program found when it compared function pointers; compilers get some of it wrong by themselves."""
    return {line for line in text.splitlines() if line.startswith("same address")}


def way(line: str) -> tuple[str, str]:
    what, _, value = line.removeprefix("before ").rpartition(" ")
    return what, value


@pytest.mark.parametrize(("cc", "flags"), PROGRAMS, ids=[" ".join(x) for x in PROGRAMS])
def test_every_way_of_calling_goes_through_the_slot(built: Path, change: Path, cc: str, flags: str) -> None:
    program = compiled(built / name(cc, flags), "ways.c", "target.c", *flags.split(), "-g", "-rdynamic", "-pthread",
                       cc=cc)
    i = instrument(program)
    assert bool(i.descriptor.flags & descriptor.MODULE_IBT) == ("ibt" in flags)      # the start files have no marks
    check(i, i.path, program, change, {})
    stripped = i.path.with_name(i.path.name + ".stripped")
    tool("strip", "-o", stripped, i.path)
    check(i, stripped, program, change, {})


LIBRARIES = [("gcc", "-O2"), ("gcc", "-O2 -fuse-ld=gold -fcf-protection=full"),
             ("gcc", "-O2 -Wl,-Bsymbolic -Wl,-z,now"), ("gcc", "-O2 -fno-semantic-interposition -fno-plt"),
             ("clang", "-O2 -fuse-ld=lld"),
             ("clang", "-Os -Wl,-z,pack-relative-relocs"), ("gcc", "-O2 -DNO_IFUNC"), ("clang", "-O2 -DNO_IFUNC -fuse-ld=lld")]


@pytest.mark.parametrize(("cc", "flags"), LIBRARIES, ids=[" ".join(x) for x in LIBRARIES])
def test_every_way_of_calling_in_a_shared_library(change: Path, tmp_path: Path, cc: str, flags: str) -> None:
    library = compiled(tmp_path / "libways.so", "ways.c", "target.c", *flags.split(), "-DLIBRARY", "-shared", "-fPIC",
                       "-pthread", "-Wl,-soname,libways.so", cc=cc)
    user = compiled(tmp_path / "user", "user.c", library)
    check_library(instrument(library), user, change)


def check_library(i: Instrumented, user: Path, preload: Path, under: tuple[str, ...] = ()) -> None:
    """Run `user` with the library as it was, instrumented, and with changed slots."""
    before = run(user, env={"LD_LIBRARY_PATH": str(i.original.parent)}, under=under)
    assert run(user, env={"LD_LIBRARY_PATH": str(i.path.parent)}, under=under) == before
    changed = run(user, env={"LD_LIBRARY_PATH": str(i.path.parent), **i.changes(SLOTS)}, preload=preload, under=under)
    assert same(changed) == same(before)
    assert "before direct 3" in changed and "after direct 1001" in changed
    old, new = ([x.split(" ", 1)[1] for x in changed.splitlines() if x.startswith(when)]
                     for when in ("before ", "after "))
    assert len(old) == len(new) >= WAYS and not set(old) & set(new)


CXX = [("g++", "-O0"), ("g++", "-O2"), ("g++", "-O2 -no-pie -Wl,--emit-relocs"), ("g++", "-O3 -fcf-protection=full -Wl,-z,ibt"),
       ("g++", "-Os -fuse-ld=gold"), ("clang++", "-O2 -fuse-ld=lld"), ("clang++", "-Os -flto -fuse-ld=lld")]


@pytest.mark.parametrize(("cc", "flags"), CXX, ids=[" ".join(x) for x in CXX])
def test_cxx(built: Path, change: Path, cc: str, flags: str) -> None:
    program = compiled(built / name(cc, flags), "ways.cc", *flags.split(), "-g", cc=cc)
    check_cxx(instrument(program), change)


def check_cxx(i: Instrumented, preload: Path, under: tuple[str, ...] = ()) -> None:
    """Run ways.cc before, after, and after with changed slots."""
    before = run(i.original, under=under)
    assert run(i.path, under=under) == before
    slots = {"_ZN6Square4areaEi": "_ZN5Other4areaEi", "_ZN4Both4areaEi": "_ZN5Other4areaEi",
             "_Z5twiceIiET_S0_": "_Z6thricei", "_Z7throweri": "_Z13thrower_otheri"}
    changed = run(i.path, env=i.changes(slots), preload=preload, under=under).splitlines()
    assert [x for x in changed if x.startswith("before")] == [x for x in before.splitlines() if x.startswith("before")]
    assert [x.removeprefix("after ") for x in changed if x.startswith("after")] == [
        "virtual 3005", "through a thunk 3005", "member pointer 3006", "own member pointer 3006", "known class 3007",
        "function object 24", "template 27", "exception other 10", "exception through a tail call other 11"]
