"""The longest pause of a program around an attach or revert: what [checks] pause compares.

Seen from outside it is the longest time between two lines of output.  A program may know better, because it has a
thread that does nothing but look at the clock: then `told` finds the number in its lines, each of which tells the
longest pause since the line before, also one that is not over.  Machines pause programs, too, and a busy one for longer than
psu-bin ever would: so there is a control, a psu-bin command in attach's place that costs the machine about the same and
never touches the program, and what is judged is the longest pause of all attaches and reverts beside the longest of as
many controls.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise

from psu_bin.regress.lines import Lines
from psu_bin.regress.scenario import Pause

# Lines after the end that are looked at: the first may have been on its way at the end.
AFTER = 2
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")


def longest(lines: Lines, begin: float, end: float, pause: Pause, limit: float,
            check: Callable[[], None]) -> float | None:
    """Seconds of the longest pause that touches [begin, end], to its own end.  None when the lines that tell it do not
    come within `limit` seconds: one before and two after, the last of which does not tell a pause that still grows.
    `check` is called while it waits."""
    deadline, after = time.monotonic() + limit, AFTER
    while True:
        around = lines.around(begin, end, after, deadline - time.monotonic(), check)
        if around is None:
            return None
        if pause.told is None:
            return max(b - a for (a, _), (b, _) in pairwise(around))
        found = [m[1] or "" for _, line in around if (m := pause.told.search(line))]
        told = [float(number) * pause.unit for number in found if NUMBER.fullmatch(number)]
        if not told:
            return None
        if len(told) < 2 or told[-1] <= told[-2]:    # nothing grows; one that does may be shorter yet than an earlier one
            return max(told)
        after += 1


def allowed(pause: Pause, control: float | None) -> float:
    """Seconds that a pause may last, when the longest of the controls was `control`."""
    return pause.seconds if control is None else max(pause.seconds, pause.ratio * control)
