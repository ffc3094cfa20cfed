"""Which gates look whether a call comes from inside their own object (inner.looks), and how a search tells entries from the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from psu_bin.attach import inner, shim, stacks
from psu_bin.attach.gates import FULL, PLAIN, SIDE, Gate
from psu_bin.descriptor import ADDRESS_TAKEN

FUNCTIONS = 5
FIRST, LOOK, STRIDE, COUNT = 0x10000, 88, 128, 4


class Function(SimpleNamespace):
    """A meaning.BoundFunction, as far as inner.looks asks."""

    __hash__ = object.__hash__

    def __init__(self, number: int) -> None:
        super().__init__(number=number, new=number < 0)


def program(*, executable: bool = True, taken: int = ADDRESS_TAKEN) -> SimpleNamespace:
    rows = [SimpleNamespace(flags=0 if n == 1 else taken) for n in range(FUNCTIONS)]
    return SimpleNamespace(executable=executable, descriptor=SimpleNamespace(functions=rows))


def looking(view: SimpleNamespace, kinds: dict[int, int], in_patch: frozenset[int] = frozenset()) -> set[int]:
    functions = {Function(n): Gate(kind, 0) for n, kind in kinds.items()}
    return {f.number for f in inner.looks(view, functions, {f for f in functions if f.number in in_patch})}     # type: ignore[arg-type]


def test_most_of_a_program_looks_where_addresses_are_taken() -> None:
    kinds = {0: PLAIN, 1: PLAIN, 2: SIDE, 3: FULL}
    assert looking(program(), kinds) == {0, 2}
    assert looking(program(), kinds, frozenset({1, 3})) == {0, 1, 2}
    assert looking(program(taken=0), kinds) == set()


def test_new_functions_look_where_the_patch_takes_their_address() -> None:
    assert looking(program(), {0: PLAIN, 1: PLAIN, 2: PLAIN, -1: SIDE, -2: SIDE}, frozenset({-2})) == {0, 2, -2}


@pytest.mark.parametrize("kinds", [{0: PLAIN, 2: PLAIN}, {0: PLAIN, 2: PLAIN, -1: PLAIN, -2: PLAIN}])
def test_a_small_patch_never_looks(kinds: dict[int, int]) -> None:
    assert looking(program(), kinds, frozenset(kinds)) == set()


def test_a_library_never_looks() -> None:
    assert looking(program(executable=False), dict.fromkeys(range(FUNCTIONS), PLAIN)) == set()


@pytest.mark.parametrize("delta", [0, -0x8000])
def test_neither_entry_is_inside_a_gate(delta: int) -> None:
    pools = (shim.Pool(FIRST, 0, STRIDE, LOOK, COUNT), shim.Pool(2 * FIRST, 0, STRIDE, LOOK, COUNT), shim.Pool(3 * FIRST, 0, 32, 0, COUNT))
    gates = stacks.Gates(SimpleNamespace(pools=pools, near_delta=delta & shim.WORD, leaving=(0x90000, 0x90010)))   # type: ignore[arg-type]
    inside = [n for n in range(STRIDE * COUNT) if gates.at(FIRST + delta + n) == (shim.PLAIN, n // STRIDE)]
    assert inside == [n for n in range(STRIDE * COUNT) if n % STRIDE not in (0, LOOK)]
    assert gates.at(3 * FIRST) is None and gates.at(3 * FIRST + 1) == (shim.FULL, 0) == gates.at(3 * FIRST + 31)
