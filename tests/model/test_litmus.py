"""The memory orders that psu-bin relies on hold under Arm's axioms (litmus.py), and each mistake in them is punished.

armv8.py decides; it is itself tested with the classic tests whose verdicts are known, and, where herd7 is installed (Debian
has no package of it), compared with herd7 and Arm's own model on all of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import armv8
import pytest
from litmus import TESTS, Protocol, variants

# name: threads (X0 points to x, X1 to y, X2 to z), the end asked about, can it happen
CLASSICS = {
    "MP": (("MOV W9,#1; STR W9,[X0]; STR W9,[X1]", "LDR W2,[X1]; LDR W3,[X0]"), "1:X2=1 1:X3=0", True),
    "MP+dmb+po": (("MOV W9,#1; STR W9,[X0]; DMB ISH; STR W9,[X1]", "LDR W2,[X1]; LDR W3,[X0]"), "1:X2=1 1:X3=0", True),
    "MP+dmb+dmb": (("MOV W9,#1; STR W9,[X0]; DMB ISH; STR W9,[X1]", "LDR W2,[X1]; DMB ISH; LDR W3,[X0]"),
                   "1:X2=1 1:X3=0", False),
    "MP+dmb+dmbld": (("MOV W9,#1; STR W9,[X0]; DMB ISH; STR W9,[X1]", "LDR W2,[X1]; DMB ISHLD; LDR W3,[X0]"),
                     "1:X2=1 1:X3=0", False),
    "MP+dmb+ctrl": (("MOV W9,#1; STR W9,[X0]; DMB ISH; STR W9,[X1]", "LDR W2,[X1]; CBZ W2,L0; L0:; LDR W3,[X0]"),
                    "1:X2=1 1:X3=0", True),
    "MP+rel+acq": (("MOV W9,#1; STR W9,[X0]; STLR W9,[X1]", "LDAR W2,[X1]; LDR W3,[X0]"), "1:X2=1 1:X3=0", False),
    "MP+rel+po": (("MOV W9,#1; STR W9,[X0]; STLR W9,[X1]", "LDR W2,[X1]; LDR W3,[X0]"), "1:X2=1 1:X3=0", True),
    "SB": (("MOV W9,#1; STR W9,[X0]; LDR W2,[X1]", "MOV W9,#1; STR W9,[X1]; LDR W2,[X0]"), "0:X2=0 1:X2=0", True),
    "SB+dmbs": (("MOV W9,#1; STR W9,[X0]; DMB ISH; LDR W2,[X1]", "MOV W9,#1; STR W9,[X1]; DMB ISH; LDR W2,[X0]"),
                "0:X2=0 1:X2=0", False),
    "SB+dmblds": (("MOV W9,#1; STR W9,[X0]; DMB ISHLD; LDR W2,[X1]", "MOV W9,#1; STR W9,[X1]; DMB ISHLD; LDR W2,[X0]"),
                  "0:X2=0 1:X2=0", True),
    "SB+rel-acqs": (("MOV W9,#1; STLR W9,[X0]; LDAR W2,[X1]", "MOV W9,#1; STLR W9,[X1]; LDAR W2,[X0]"), "0:X2=0 1:X2=0",
                    False),
    # the read of a STADD is not one that DMB ISHLD knows
    "SB+stadds+dmblds": (("MOV W9,#1; STADD W9,[X0]; DMB ISHLD; LDR W2,[X1]",
                          "MOV W9,#1; STADD W9,[X1]; DMB ISHLD; LDR W2,[X0]"), "0:X2=0 1:X2=0", True),
    "LB": (("MOV W9,#1; LDR W2,[X0]; STR W9,[X1]", "MOV W9,#1; LDR W2,[X1]; STR W9,[X0]"), "0:X2=1 1:X2=1", True),
    "LB+datas": (("LDR W2,[X0]; STR W2,[X1]", "LDR W2,[X1]; STR W2,[X0]"), "0:X2=1 1:X2=1", False),
    "LB+ctrls": (("MOV W9,#1; LDR W2,[X0]; CBZ W2,L0; L0:; STR W9,[X1]", "MOV W9,#1; LDR W2,[X1]; CBZ W2,L1; L1:; STR W9,[X0]"),
                 "0:X2=1 1:X2=1", False),
    "CoRR": (("MOV W9,#1; STR W9,[X0]", "LDR W2,[X0]; LDR W3,[X0]"), "1:X2=1 1:X3=0", False),
    "WRC+data+dmb": (("MOV W9,#1; STR W9,[X0]", "LDR W2,[X0]; STR W2,[X1]", "LDR W2,[X1]; DMB ISH; LDR W3,[X0]"),
                     "1:X2=1 2:X2=1 2:X3=0", False),
    "WRC+po+dmb": (("MOV W9,#1; STR W9,[X0]", "MOV W9,#1; LDR W2,[X0]; STR W9,[X1]", "LDR W2,[X1]; DMB ISH; LDR W3,[X0]"),
                   "1:X2=1 2:X2=1 2:X3=0", True),
    "IRIW": (("MOV W9,#1; STR W9,[X0]", "MOV W9,#1; STR W9,[X1]", "LDR W2,[X0]; LDR W3,[X1]", "LDR W2,[X1]; LDR W3,[X0]"),
             "2:X2=1 2:X3=0 3:X2=1 3:X3=0", True),
    "IRIW+dmbs": (("MOV W9,#1; STR W9,[X0]", "MOV W9,#1; STR W9,[X1]", "LDR W2,[X0]; DMB ISH; LDR W3,[X1]",
                   "LDR W2,[X1]; DMB ISH; LDR W3,[X0]"), "2:X2=1 2:X3=0 3:X2=1 3:X3=0", False),
    # two increments are never one
    "atomic": (("MOV W9,#1; STADD W9,[X0]; DMB ISH; STR W9,[X1]", "MOV W9,#1; STADD W9,[X0]; DMB ISH; STR W9,[X2]",
                "LDR W2,[X1]; LDR W3,[X2]; DMB ISH; LDR W4,[X0]"), "2:X2=1 2:X3=1 2:X4=1", False),
    "atomic-pair": (("MOV W9,#1; LDXR W2,[X0]; ADD W2,W2,W9; STXR W3,W2,[X0]; DMB ISH; STR W9,[X1]",
                     "MOV W9,#1; LDXR W2,[X0]; ADD W2,W2,W9; STXR W3,W2,[X0]; DMB ISH; STR W9,[X2]",
                     "LDR W2,[X1]; LDR W3,[X2]; DMB ISH; LDR W4,[X0]"), "0:X3=0 1:X3=0 2:X2=1 2:X3=1 2:X4=1", False),
    "not-atomic": (("MOV W9,#1; LDR W2,[X0]; ADD W2,W2,W9; STR W2,[X0]; DMB ISH; STR W9,[X1]",
                    "MOV W9,#1; LDR W2,[X0]; ADD W2,W2,W9; STR W2,[X0]; DMB ISH; STR W9,[X2]",
                    "LDR W2,[X1]; LDR W3,[X2]; DMB ISH; LDR W4,[X0]"), "2:X2=1 2:X3=1 2:X4=1", True),
}
MISTAKES = [(test, mistake) for test in TESTS for mistake in test.mistakes]


def classic(name: str) -> str:
    threads, end, _ = CLASSICS[name]
    [(_, text)] = variants(Protocol(name, "a classic", {"x": 0, "y": 0, "z": 0}, ("X0=x X1=y X2=z",) * len(threads), threads,
                                    end, {}))
    return text


def can_happen(text: str) -> bool:
    return armv8.allowed(armv8.parse(text))


@pytest.mark.parametrize("name", CLASSICS)
def test_the_verdicts_on_classic_tests_are_known(name: str) -> None:
    assert can_happen(classic(name)) == CLASSICS[name][2]


@pytest.mark.parametrize("test", TESTS, ids=lambda t: t.name)
def test_what_must_not_happen_cannot(test: Protocol) -> None:
    assert [name for name, text in variants(test) if can_happen(text)] == []


@pytest.mark.parametrize("test, mistake", MISTAKES, ids=lambda x: getattr(x, "name", x))
def test_with_a_mistake_it_can(test: Protocol, mistake: str) -> None:
    assert any(can_happen(text) for _, text in variants(test, mistake))


@pytest.mark.parametrize("test", TESTS, ids=lambda t: t.name)
def test_it_is_one_value_that_makes_the_difference(test: Protocol) -> None:
    """The threads do get to the end that is asked about, but for the value that would be wrong: nothing is vacuous."""
    most = {name: re.sub(r" /\\ [12]:X[34]=0", "", text) for name, text in variants(test)}
    assert all(most[name] != text for name, text in variants(test))
    assert any(can_happen(text) for text in most.values())


@pytest.mark.skipif(not shutil.which("herd7"), reason="no herd7")
def test_herd7_agrees(tmp_path: Path) -> None:
    texts = {name: classic(name) for name in CLASSICS}
    for test, mistake in [*((t, None) for t in TESTS), *MISTAKES]:
        texts.update(variants(test, mistake))
    for name, text in texts.items():
        (tmp_path / f"{name}.litmus").write_text(text)
    said = subprocess.run(["herd7", *sorted(tmp_path.glob("*.litmus"))], capture_output=True, text=True, check=True)
    verdicts = dict(re.findall(r"^Observation (\S+) (Never|Sometimes|Always) ", said.stdout, re.M))
    assert {name: verdict != "Never" for name, verdict in verdicts.items()} == {
        name: can_happen(text) for name, text in texts.items()}, said.stderr
