"""Damaged input of every kind: refused with one line, or taken; never another exception, without end, or without measure.

The same damage in each run; scripts/fuzz goes on for as long as one likes, with other damage each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from judge import TooLong, bounded, judge
from targets import INTACT, TARGETS, prepare

EXAMPLES = {"instrument": 250, "analyze": 60, "debug-file": 60}
OTHERS = 300


@pytest.fixture(scope="module", autouse=True)
def built() -> Iterator[None]:
    """Everything is compiled before memory is limited."""
    prepare()
    with bounded():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_intact_input_is_taken(name: str) -> None:
    """Without this, every refusal below could be for a wrong reason."""
    inputs = INTACT[name]()
    assert inputs
    for data in inputs:
        assert judge(TARGETS[name].run, data) == ""


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input(name: str) -> None:
    ended = {"taken": 0, "refused": 0}

    @settings(max_examples=EXAMPLES.get(name, OTHERS), deadline=None, derandomize=True, database=None,
              phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(st.integers(0, (1 << 64) - 1))
    def one(seed: int) -> None:
        data = TARGETS[name].make(Random(seed))
        ended["refused" if judge(TARGETS[name].run, data) else "taken"] += 1
    one()
    assert min(ended.values()) > sum(ended.values()) // 50, f"the damage is too much or too little: {ended}"


def test_the_judge_can_find_fault() -> None:
    """An exception, no end, too much memory and a message of ours about a defect are failures."""
    from psu_bin.errors import PsuError
    from psu_bin.instrument.edits import defect

    def endless(data: bytes) -> None:
        import judge as module
        module.signal.setitimer(module.signal.ITIMER_VIRTUAL, 0.01)
        while True:
            pass

    def wrong(data: bytes) -> None:
        raise defect("file", "something")

    def greedy(data: bytes) -> None:
        bytearray(1 << 40)

    def right(data: bytes) -> None:
        raise PsuError("file", "two\nlines")
    for run, kind in ((lambda data: {}[data], KeyError), (endless, TooLong), (wrong, AssertionError), (greedy, MemoryError)):
        with pytest.raises(kind):
            judge(run, b"")
    assert judge(right, b"") == "file: two\\nlines"
