"""Scenario files: what is read, and which file, line and datum each mistake is told with."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from psu_bin.errors import PsuError
from psu_bin.regress import matrix, scenario
from psu_bin.regress.toml_lines import LineIndex

GOOD = """\
[program]
sources = ["main.c"]

[patches]
one = "one.c"

[[step]]
start = []

[[step]]
repeat = 10
short = 2
[[step.step]]
attach = "one"
[[step.step]]
expect = "new"
reject = "old"

[[step]]
stop = "TERM"
"""


def read(tmp_path, text):
    (tmp_path / "main.c").touch()
    (tmp_path / "one.c").touch()
    file = tmp_path / "scenario.toml"
    file.write_text(text)
    return scenario.read(file)


def test_a_good_scenario_is_read_with_defaults(tmp_path):
    s = read(tmp_path, GOOD)
    assert s.name == tmp_path.name
    assert [x.action for x in s.steps] == ["start", "repeat", "stop"]
    attach, expect = s.steps[1].steps
    assert attach.value == ("one",) and attach.options["within"] == scenario.PATIENCE
    assert expect.options["reject"].pattern == "old" and expect.line == 16
    assert s.checks.freed == scenario.PATIENCE and s.checks.memory is None


@pytest.mark.parametrize("old, new, line, what", [
    ('sources = ["main.c"]', 'source = ["main.c"]', 2, "unknown key: source (did you mean sources)"),
    ('"main.c"', '"gone.c"', 2, "no such file: gone.c"),
    ('one = "one.c"', "one = 3", 5, "one should be a text: 3"),
    ("[patches]", "[libraries]\nl = 'gone.c'\n[patches]", 5, "no such file: gone.c"),
    ("[patches]", "libraries = 3\n[patches]", 4, "unknown key: libraries"),
    ('one = "one.c"', '"a/b" = "one.c"', 5, "'a/b' cannot be the name of a file"),
    ("[patches]", "[checks]\npause = { ratoi = 3 }\n[patches]", 5, "pause should be a number above 0 or a table, with some of sec"),
    ("[patches]", "[checks]\npause = { told = '3' }\n[patches]", 5, "pause should be a table whose told is a regular expression with"),
    ("start = []", "strat = []", 8, "a step without an action: strat (did you mean start)"),
    ("repeat = 10", "repeat = 0", 11, "repeat should be a whole number above 0: 0"),
    ('attach = "one"', 'attach = "two"', 14, "unknown patch: two ([patches] has one)"),
    ('expect = "new"', 'expect = "ne(w"', 16, "expect should be a regular expression"),
    ('reject = "old"', 'rejects = "old"', 17, "unknown key: rejects (did you mean reject)"),
    ('reject = "old"', 'send = "old"', 17, "two actions in one step: expect, send"),
    ('stop = "TERM"', 'stop = "TREM"', 20, "stop should be a signal"),
    ('stop = "TERM"', 'stop = ', 20, "not TOML: "),
    ("start = []", "wait = 3", 7, "nothing runs yet: wait"),
])
def test_a_mistake_is_told_with_its_line(tmp_path, old, new, line, what):
    assert old in GOOD
    with pytest.raises(PsuError) as e:
        read(tmp_path, GOOD.replace(old, new))
    assert str(e.value).startswith(f"{tmp_path}/scenario.toml:{line}: {what}")
    assert e.value.status == 2


@pytest.mark.parametrize("data", [b"\xff\xfe", b"step = 3\n", b"[step]\nstart = 1\n", b"program = 1\n", b"", b"patches = 1\n",
                                  b"step = [1]\n[program]\nbuild = 'x'\n", b"[program]\nbuild = 'x'\nenv = 3\n"])
def test_nonsense_is_refused_in_one_line(tmp_path, data):
    file = tmp_path / "x.toml"
    file.write_bytes(data)
    with pytest.raises(PsuError, match=str(file)):
        scenario.read(file)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    with tempfile.TemporaryDirectory() as folder:        # one that a guest and its host share can hold no pipe
        os.mkfifo(Path(folder, "pipe"))
        for file in (Path(folder, "pipe"), Path("/dev/zero"), tmp_path):
            with pytest.raises(PsuError, match="not a regular file") as e:
                scenario.read(file)
            assert e.value.status == 2


def test_lines_of_keys_after_values_of_several_lines():
    index = LineIndex('a = [\n  "x = [",\n]\nb = """\n[c]\nd = 1\n"""\n[c]\nd.e = { f = 1 }\n')
    assert [index.line("a"), index.line("b"), index.line("c"), index.line("c", "d", "e", "f")] == [1, 4, 8, 9]


def test_the_matrix_is_every_combination_and_can_be_narrowed():
    m = scenario.Matrix(("gcc", "clang"), ("-O0", "-O2"), ("pie",), (1, 4))
    assert len(matrix.cells(m, {}, short=False)) == 8
    assert len(matrix.cells(m, {}, short=True)) == 1
    assert [str(c) for c in matrix.cells(m, {"cc": ("clang",), "threads": ("4",)}, short=True)] == ["clang -O0 pie 4 threads"]
    assert {c.cc for c in matrix.cells(m, matrix.parse_only(("cc=clang",)), short=False)} == {"clang"}
    with pytest.raises(PsuError, match="AXIS=VALUE: colour=red"):
        matrix.parse_only(("colour=red",))
