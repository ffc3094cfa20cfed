"""Where in a TOML text each key stands: tomllib gives values without positions, and an error without a line is no use.

A small reader of lines, not of TOML: it follows table headers, `key =` and the brackets and triple quotes that keep a value
open over several lines.  What it does not find (a key inside an inline table) is answered with the line of what holds it.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=(.*)$""")
_TOKEN = re.compile(r"""\"\"\"|'''|"(?:\\.|[^"\\])*"|'[^']*'|[\[\]{}]|\#.*""")


class LineIndex:
    """Lines (from 1) of the keys and tables of one text.  A path is keys and, in arrays of tables, indexes from 0."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {(): 1}
        counts: dict[Path, int] = {}
        table: Path = ()
        depth, quotes = 0, ""
        for number, line in enumerate(text.split("\n"), 1):
            rest = line
            if not depth and not quotes:
                if header := _HEADER.match(line):
                    table = self._header(header[1] == "[[", _parts(header[2]), counts)
                    self._lines.setdefault(table, number)
                    continue
                if key := _KEY.match(line):
                    path = table + _parts(key[1])
                    for n in range(len(table) + 1, len(path) + 1):
                        self._lines.setdefault(path[:n], number)
                    rest = key[2]
            depth, quotes = _open(rest, depth, quotes)

    @staticmethod
    def _header(array: bool, names: Path, counts: dict[Path, int]) -> Path:
        path: Path = ()
        for i, name in enumerate(names):
            path += (name,)
            if array and i == len(names) - 1:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path += (counts[path],)
        return path

    def line(self, *path: str | int) -> int:
        """The line of `path`, or of the nearest thing around it that is known."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]


def _parts(dotted: str) -> Path:
    return tuple(p.strip().strip("\"'") for p in dotted.split("."))


def _open(text: str, depth: int, quotes: str) -> tuple[int, str]:
    """How many brackets, and which triple quote, are open after `text`."""
    for token in _TOKEN.findall(text):
        if quotes:
            if token.startswith(quotes):
                quotes = ""
        elif token in ('"""', "'''"):
            quotes = token
        elif token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
    return depth, quotes
