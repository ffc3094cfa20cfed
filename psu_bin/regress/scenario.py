"""A scenario: what is built, how it is patched while it runs, and what must be seen.  docs/regress.md describes the file.

`read` checks everything that can be checked without running anything, and names file and line of each mistake.  What it
returns is complete: defaults are filled in, patterns compiled, patches known.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import tomllib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psu_bin.errors import EXIT_USAGE, PsuError
from psu_bin.regress.toml_lines import LineIndex

# Seconds that a step may take when it does not say; an emulated machine wants more.
PATIENCE = float(os.environ.get("PSU_REGRESS_PATIENCE", "30"))
LINKS = ("pie", "no-pie", "static", "static-pie")
STATES = ("current", "retired", "freed", "patches")


@dataclass(frozen=True)
class Step:
    """One step.  action: a key of ACTIONS; value: what stands after it; options: the rest, defaults filled in."""
    action: str
    value: Any
    options: Mapping[str, Any]
    line: int
    steps: tuple[Step, ...] = ()     # of `repeat`

    @property
    def title(self) -> str:
        value = self.value.pattern if isinstance(self.value, re.Pattern) else self.value
        return f"{self.action} {value}" if not isinstance(value, tuple) else f"{self.action} {' '.join(value)}"


@dataclass(frozen=True)
class Program:
    sources: tuple[str, ...]         # compiled in the scenario's folder; or
    build: str                       # a shell command that writes $OUT; or
    binary: str                      # a file that is there already
    flags: tuple[str, ...]
    functions: tuple[str, ...]       # psu-bin instrument --functions
    exclude: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Matrix:
    cc: tuple[str, ...]
    opt: tuple[str, ...]
    link: tuple[str, ...]
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Pause:
    """How long the program may pause around an attach or revert.  seconds: the limit; ratio: with it, `ratio` times the
    longest pause around control commands is allowed, too (0: there are no controls); told: a pattern whose group is the
    number that a line tells, in units of `unit` seconds (None: the time between lines)."""
    seconds: float
    ratio: float = 0
    told: re.Pattern[str] | None = None
    unit: float = 1


@dataclass(frozen=True)
class Checks:
    """What holds at the end.  memory: MiB that the resident set may grow by; freed: seconds until no retired code is
    left.  None: not checked."""
    memory: float | None
    pause: Pause | None
    freed: float | None


@dataclass(frozen=True)
class Scenario:
    file: Path
    name: str
    program: Program
    libraries: Mapping[str, str]     # name -> source, beside the scenario
    patches: Mapping[str, str]       # name -> source or object, beside the scenario
    matrix: Matrix
    checks: Checks
    steps: tuple[Step, ...]

    @property
    def folder(self) -> Path:
        return self.file.resolve().parent


Reader = Callable[[Any], Any]        # value of the file -> value of the scenario; ValueError says what it should be


def _text(v: Any) -> str:
    if not isinstance(v, str) or not v:
        raise ValueError("a text")
    return v


def _texts(v: Any) -> tuple[str, ...]:
    if isinstance(v, str):
        v = [v]
    if not isinstance(v, list) or not all(isinstance(x, str) for x in v):
        raise ValueError("a text or a list of texts")
    return tuple(v)


def _some(v: Any) -> tuple[str, ...]:
    if not (found := _texts(v)):
        raise ValueError("at least one text")
    return found


def _pattern(v: Any) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")          # what may mean something else in a later Python means what it means now
            return re.compile(_text(v))
    except (re.error, OverflowError) as e:
        raise ValueError(f"a regular expression ({e})") from None
    except RecursionError:
        raise ValueError("a regular expression (nested too deeply)") from None


def _seconds(v: Any) -> float:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < 1e6:
        raise ValueError("a number above 0")
    return float(v)


def _seconds_or_no(v: Any) -> float | None:
    return None if v is False else _seconds(v)


def _told(v: Any) -> re.Pattern[str]:
    found = _pattern(v)
    if found.groups != 1:
        raise ValueError("a regular expression with one group")
    return found


PAUSE: dict[str, tuple[Reader, Any]] = {"seconds": (_seconds, 0.1), "ratio": (_seconds, 0), "told": (_told, None),
                                        "unit": (_seconds, 1)}


def _pause(v: Any) -> Pause:
    """A number of seconds, or a table."""
    if not isinstance(v, dict):
        return Pause(_seconds(v))
    if not v or any(k not in PAUSE for k in v):
        raise ValueError(f"a number above 0 or a table, with some of {', '.join(PAUSE)}")
    found = {}
    for name, (reader, default) in PAUSE.items():
        try:
            found[name] = reader(v[name]) if name in v else default
        except ValueError as e:
            raise ValueError(f"a table whose {name} is {e}") from None
    return Pause(**found)


def _count(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, int) or v < 1:
        raise ValueError("a whole number above 0")
    return v


def _counts(v: Any) -> tuple[int, ...]:
    if not isinstance(v, list) or not v:
        raise ValueError("a list of whole numbers above 0")
    return tuple(_count(x) for x in v)


def _whole(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, int):
        raise ValueError("a whole number")
    return v


def _flag(v: Any) -> bool:
    if not isinstance(v, bool):
        raise ValueError("true or false")
    return v


def _env(v: Any) -> dict[str, str]:
    if not isinstance(v, dict) or not all(isinstance(x, str) for x in v.values()):
        raise ValueError("a table of texts")
    return v


def _links(v: Any) -> tuple[str, ...]:
    found = _some(v)
    if any(x not in LINKS for x in found):
        raise ValueError(f"some of {', '.join(LINKS)}")
    return found


def _reverted(v: Any) -> str | int:
    if v is True:
        return "newest"
    if v == "original":
        return "original"
    try:
        return _count(v)
    except ValueError:
        raise ValueError('true (the newest patch), a patch number or "original"') from None


def _states(v: Any) -> dict[str, int]:
    if not isinstance(v, dict) or not v or any(k not in STATES or isinstance(n, bool) or not isinstance(n, int) or n < 0
                                               for k, n in v.items()):
        raise ValueError(f"a table of numbers, with some of {', '.join(STATES)}")
    return v


def _signal(v: Any) -> str:
    if v != "none" and (not isinstance(v, str) or not hasattr(signal, f"SIG{v}")):
        raise ValueError('a signal such as "TERM", or "none" for a program that ends by itself')
    return v


REQUIRED = object()
Options = dict[str, tuple[Reader, Any]]
_WITHIN: Options = {"within": (_seconds, PATIENCE)}

# Each action: what stands after its key, and what may stand beside it.
ACTIONS: dict[str, tuple[Reader, Options]] = {
    "start": (_texts, {}),
    "expect": (_pattern, {"reject": (_pattern, None), "from": (_text, ""), "fresh": (_flag, False), **_WITHIN}),
    "send": (_text, {"to": (_text, "")}),
    "attach": (_some, {"refused": (_pattern, None), **_WITHIN}),
    "revert": (_reverted, dict(_WITHIN)),
    "wait": (_seconds, {}),
    "status": (_states, dict(_WITHIN)),
    "repeat": (_count, {"short": (_count, None)}),
    "load": (_text, {"background": (_flag, False), **_WITHIN}),
    "stop": (_signal, {"exit": (_whole, None), **_WITHIN}),
}
PROGRAM: Options = {"sources": (_some, ()), "build": (_text, ""), "binary": (_text, ""), "flags": (_texts, ()),
                    "functions": (_texts, ()), "exclude": (_texts, ()), "env": (_env, {})}
MATRIX: Options = {"cc": (_some, ("cc",)), "opt": (_some, ("-O2",)), "link": (_links, ("pie",)), "threads": (_counts, (4,))}
CHECKS: Options = {"memory": (_seconds, None), "pause": (_pause, None), "freed": (_seconds_or_no, PATIENCE)}
TOP = ("name", "program", "libraries", "patches", "matrix", "checks", "step")


class _Reader:
    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.index = LineIndex(text)
        self.patches: dict[str, str] = {}

    def error(self, what: str, *path: str | int, hint: str = "") -> PsuError:
        return PsuError(f"{self.file}:{self.index.line(*path)}", what, hint, status=EXIT_USAGE)

    def known(self, table: Any, names: Any, *path: str | int) -> None:
        """`table` is a table and has no key but `names`."""
        if not isinstance(table, dict):
            raise self.error(f"should be a table: {table!r}", *path)
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, list(names), 1)
                raise self.error(f"unknown key: {key}", *path, key,
                                 hint=f"did you mean {near[0]}" if near else f"one of {', '.join(names)}")

    def value(self, reader: Reader, v: Any, *path: str | int) -> Any:
        try:
            return reader(v)
        except ValueError as e:
            raise self.error(f"{path[-1]} should be {e}: {v!r}", *path) from None

    def options(self, table: dict[str, Any], options: Options, *path: str | int) -> dict[str, Any]:
        return {name: self.value(reader, table[name], *path, name) if name in table else default
                for name, (reader, default) in options.items()}

    def section(self, data: dict[str, Any], name: str, options: Options) -> dict[str, Any]:
        table = data.get(name, {})
        self.known(table, options, name)
        return self.options(table, options, name)

    def files(self, data: dict[str, Any], name: str) -> dict[str, str]:
        """A table of files, each of which is there."""
        table = data.get(name, {})
        self.known(table, table, name)
        found = {key: self.value(_text, source, name, key) for key, source in table.items()}
        for key, source in found.items():
            if "/" in key or "\0" in key:
                raise self.error(f"{key!r} cannot be the name of a file", name, key)
            if not _is_file(self.file.parent / source):
                raise self.error(f"no such file: {source}", name, key)
        return found

    def steps(self, value: Any, *path: str | int) -> tuple[Step, ...]:
        if not isinstance(value, list) or not value:
            raise self.error("no steps", *path, hint="write [[step]] tables")
        return tuple(self.step(s, *path, i) for i, s in enumerate(value))

    def step(self, table: Any, *path: str | int) -> Step:
        if not isinstance(table, dict):
            raise self.error(f"a step should be a table: {table!r}", *path)
        named = [a for a in ACTIONS if a in table]
        if len(named) > 1:
            raise self.error(f"two actions in one step: {named[0]}, {named[1]}", *path, named[1])
        if not named:
            unknown = next(iter(table), "nothing")
            near = difflib.get_close_matches(unknown, list(ACTIONS), 1)
            raise self.error(f"a step without an action: {unknown}", *path, unknown,
                             hint=f"did you mean {near[0]}" if near else f"one of {', '.join(ACTIONS)}")
        action = named[0]
        reader, options = ACTIONS[action]
        self.known(table, (action, *options, *(("step",) if action == "repeat" else ())), *path)
        value = self.value(reader, table[action], *path, action)
        if action == "attach":
            for name in value:
                if name not in self.patches:
                    raise self.error(f"unknown patch: {name}", *path, action, hint=f"[patches] has {', '.join(self.patches)}"
                                     if self.patches else "list it in [patches]")
        inner = self.steps(table.get("step"), *path, "step") if action == "repeat" else ()
        return Step(action, value, self.options(table, options, *path), self.index.line(*path, action), inner)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:              # a name that is too long
        return False


def read(file: Path) -> Scenario:
    """The scenario in `file`.  PsuError `FILE:LINE: what: datum` for the first mistake in it."""
    try:
        if file.exists() and not file.is_file():        # a pipe or a device could keep us reading for ever
            raise PsuError(str(file), "is not a regular file", status=EXIT_USAGE)
        text = file.read_text()
        data = tomllib.loads(text)
    except OSError as e:
        raise PsuError(str(file), f"cannot be read: {e.strerror}", status=EXIT_USAGE) from None
    except UnicodeDecodeError:
        raise PsuError(str(file), "is not UTF-8 text", status=EXIT_USAGE) from None
    except tomllib.TOMLDecodeError as e:
        at = re.search(r"\(at line (\d+), column \d+\)", str(e))
        line = int(at[1]) if at else text.count("\n") + 1
        what = str(e).split(" (at ")[0]
        raise PsuError(f"{file}:{line}", f"not TOML: {what[:1].lower()}{what[1:]}", status=EXIT_USAGE) from None
    except RecursionError:
        raise PsuError(str(file), "not TOML: nested too deeply", status=EXIT_USAGE) from None
    except ValueError as e:          # of int(): more digits than Python converts
        raise PsuError(str(file), f"not TOML: {str(e).split(':')[0].split(';')[0].lower()}", status=EXIT_USAGE) from None
    r = _Reader(file, text)
    r.known(data, TOP)
    program = Program(**r.section(data, "program", PROGRAM))
    if sum(map(bool, (program.sources, program.build, program.binary))) != 1:
        raise r.error("program needs exactly one of sources, build and binary", "program")
    libraries, r.patches = r.files(data, "libraries"), r.files(data, "patches")
    for source in (*program.sources, *([program.binary] if program.binary else [])):
        if not _is_file(file.parent / source):
            raise r.error(f"no such file: {source}", "program", "binary" if program.binary else "sources")
    matrix, checks = Matrix(**r.section(data, "matrix", MATRIX)), Checks(**r.section(data, "checks", CHECKS))
    steps = r.steps(data.get("step"), "step")
    running = False
    for i, s in enumerate(steps):
        if s.action == "start" and running:
            raise r.error("is started already", "step", i, hint="stop it first")
        if s.action != "start" and not running:
            raise r.error(f"nothing runs yet: {s.action}", "step", i, hint="begin with start")
        running = s.action != "stop"
        if s.action == "repeat" and any(x.action in ("start", "stop") for x in s.steps):
            raise r.error("start and stop cannot be repeated", "step", i)
    default = file.resolve().parent.name if file.stem == "scenario" else file.stem
    name = r.value(_text, data.get("name", default), "name")
    return Scenario(file, name, program, libraries, r.patches, matrix, checks, steps)
