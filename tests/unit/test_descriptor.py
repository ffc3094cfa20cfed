"""The module descriptor: what is encoded is decoded again, and damage is told from content."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psu_bin import descriptor
from psu_bin.descriptor import Descriptor, Function, Symbol
from psu_bin.errors import PsuError

u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
functions = st.builds(Function, names.filter(bool), u64, u64, u32, u32, u32, u32)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    fs = tuple(draw(st.lists(functions, max_size=8)))
    count = draw(st.integers(0, 12))
    symbols = []
    for _ in range(count):
        function = draw(st.integers(0, len(fs) - 1)) if fs and draw(st.booleans()) else descriptor.NO_FUNCTION
        symbols.append(Symbol(
            draw(names), draw(st.integers(0, 4)), draw(st.integers(0, 2)),
            fs[function].address if function != descriptor.NO_FUNCTION else draw(u64), draw(u64), function, draw(u32),
            tuple(draw(st.lists(st.integers(0, count - 1), max_size=3)))))
    return Descriptor(draw(u32), draw(u32), draw(u64), draw(u32), draw(u64), draw(st.binary(max_size=32)), fs,
                      tuple(symbols), tuple(draw(st.lists(names, max_size=3))), tuple(draw(st.lists(u64, max_size=5))))


@settings(deadline=None)      # of a busy machine
@given(descriptors())
def test_round_trip(d: Descriptor) -> None:
    data = descriptor.encode(d)
    assert descriptor.decode(data, "m") == d
    assert descriptor.decode(data + b"what follows", "m") == d
    assert descriptor.packed_size(data[:descriptor.HEADER.size], "m") == len(data)


@settings(deadline=None)
@given(descriptors(), st.data())
def test_two_parts_are_gathered(d: Descriptor, data: st.DataObject) -> None:
    whole = descriptor.encode(d)
    cut = data.draw(st.integers(descriptor.HEADER.size, len(whole)))
    first, rest = descriptor.split(whole, cut, 0x700)
    places = {0x100: first, 0x700: rest}

    def read(at: int, size: int) -> bytes:
        assert len(places[at]) >= size
        return places[at][:size]

    assert len(first) == cut and descriptor.gather(read, 0x100, "m") == whole


def test_a_rest_that_is_larger_than_the_whole_is_damage() -> None:
    whole = descriptor.encode(small())
    with pytest.raises(PsuError, match="damaged: size of the rest"):
        descriptor.gather(lambda at, size: (whole[:descriptor.HEADER.size - 4] + b"\xff" * 4)[:size], 0, "m")


def test_a_python_without_lzma_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)       # import raises
    with pytest.raises(PsuError, match="was built without its lzma module") as e:
        descriptor.encode(small())
    assert e.value.hint


def small() -> Descriptor:
    f = Function("f", 0x1000, 0x1000, 16, 0, 0, 3), Function("g", 0x1010, 0x9000, 32, descriptor.DETOURED, 5, 0)
    s = (Symbol("f", 0, 1, 0x1000, 16, 0, descriptor.NO_FILE), Symbol("g_alias", 0, 0, 0x1010, 32, 1, 0),
         Symbol("v.1", 1, 0, 0x4000, 4, descriptor.NO_FUNCTION, 0, (0, 1)))
    return Descriptor(62, 1, 0x8000, 8, 0xA000, b"\1" * 20, f, s, ("a.c",), (0x1004, 0x1018))


def test_addresses_of_stubs_and_slots() -> None:
    assert (small().stub(1), small().slot(1)) == (0x8008, 0xA008)


def test_a_symbol_that_is_not_where_its_function_is_cannot_be_encoded() -> None:
    d = small()
    wrong = Symbol("f", 0, 1, 0x1001, 16, 0, descriptor.NO_FILE)
    with pytest.raises(ValueError):
        descriptor.encode(Descriptor(d.machine, d.flags, d.stubs, d.stub_size, d.slots, d.build_id, d.functions,
                                     (wrong,), d.files, d.sites))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_an_error_that_names_the_module(data: st.DataObject) -> None:
    good = descriptor.encode(small())
    bad = bytearray(good)
    at = data.draw(st.integers(0, len(bad) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del bad[data.draw(st.integers(0, len(bad) - 1)):]
    try:
        descriptor.decode(bytes(bad), "the module")
    except PsuError as e:
        assert e.where == "the module" and e.hint


def test_another_version_is_named() -> None:
    data = bytearray(descriptor.encode(small()))
    data[8] += 1
    with pytest.raises(PsuError, match=f"version {descriptor.VERSION + 1}"):
        descriptor.decode(bytes(data), "m")


def test_size() -> None:
    fs = tuple(Function(f"subsystem_operation_{i}", 0x1000 + 48 * i, 0x1000 + 48 * i, 40 + i % 7, 0, 0, i % 5)
               for i in range(2000))
    symbols = tuple(Symbol(f.name, 0, 1, f.address, f.size, i, descriptor.NO_FILE) for i, f in enumerate(fs))
    sites = tuple(0x1009 + 48 * i + 17 * k + i % 3 for i in range(2000) for k in range(3))
    d = Descriptor(62, 1, 0x80000, 8, 0xA0000, b"", fs, symbols, (), sites)
    assert len(descriptor.encode(d)) < 12 * len(fs)
