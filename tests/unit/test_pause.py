"""The longest pause that a scenario's program shows, from lines that come through a pipe."""

from __future__ import annotations

import os
import re
import time

import pytest

from psu_bin.regress import pause
from psu_bin.regress.lines import Lines
from psu_bin.regress.scenario import Pause

PATIENCE = 30
TOLD = Pause(1, told=re.compile("paused (.*) ms"), unit=0.001)


@pytest.fixture
def printed():
    """What the program prints, as a function, and the lines that come of it."""
    reading, writing = os.pipe()
    lines = Lines(os.fdopen(reading, "rb"))

    def say(*texts: str) -> float:
        """The time after the last of these came."""
        for text in texts:
            os.write(writing, f"{text}\n".encode())
            assert lines.find(re.compile(re.escape(text)), None, PATIENCE, lambda: None)[0]
        return time.monotonic()
    yield say, lines
    os.close(writing)
    lines.close()


def test_the_time_between_lines(printed):
    say, lines = printed
    say("a")
    time.sleep(0.4)
    before = time.monotonic()
    begin = say("b")
    time.sleep(0.2)
    end = time.monotonic()
    last = say("c")
    say("d")
    seen = pause.longest(lines, begin, end, Pause(1), PATIENCE, lambda: None)
    assert seen is not None and end - begin <= seen <= last - before


def test_the_longest_that_the_program_tells(printed):
    say, lines = printed
    begin = say("paused 900 ms", "paused 7 ms")
    say("paused 9.5 ms", "paused nan ms", "something else", "paused 800 s")
    end = time.monotonic()
    say("paused 4 ms", "paused 3 ms", "paused 700 ms")
    assert pause.longest(lines, begin, end, TOLD, PATIENCE, lambda: None) == pytest.approx(0.0095)


@pytest.mark.parametrize("earlier", [1, 63])
def test_a_pause_that_goes_on_is_followed_to_its_end(printed, earlier):
    say, lines = printed
    begin = say(f"paused {earlier} ms")
    say("paused 2 ms", "paused 20 ms", "paused 40 ms", "paused 60 ms", "paused 65 ms", "paused 1 ms", "paused 500 ms")
    assert pause.longest(lines, begin, begin, TOLD, PATIENCE, lambda: None) == pytest.approx(0.065)


@pytest.mark.parametrize("before, after", [((), ("paused 1 ms",) * 3), (("paused 1 ms",), ("paused 1 ms",)),
                                           (("a",), ("b", "c"))])
def test_without_lines_nothing_is_known(printed, before, after):
    say, lines = printed
    begin = say(*before)
    say(*after)
    assert pause.longest(lines, begin, begin, TOLD, 0.01, lambda: None) is None


def test_what_is_allowed():
    assert pause.allowed(Pause(0.1), None) == 0.1
    assert pause.allowed(Pause(0.1, ratio=4), 0.02) == 0.1
    assert pause.allowed(Pause(0.1, ratio=4), 0.5) == 2
