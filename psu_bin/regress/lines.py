"""What a program prints, or a connection answers, as lines with the time at which each came."""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import IO

KEPT = 200_000       # lines; a program that prints more loses its first ones from the log, not from the checks


class Lines:
    """Filled by a thread of its own, read by the steps: each reading goes on where the one before ended."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._lines: list[tuple[float, str]] = []
        self._dropped = 0
        self._next = 0
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for raw in self._source:
                with self._changed:
                    self._lines.append((time.monotonic(), raw.decode(errors="backslashreplace").rstrip("\r\n")))
                    if len(self._lines) > KEPT and self._next > KEPT // 2:
                        del self._lines[:KEPT // 2]
                        self._dropped += KEPT // 2
                        self._next -= KEPT // 2
                    self._changed.notify_all()
        except (OSError, ValueError):
            pass                             # the connection broke: its end, which `find` reports
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def fresh(self) -> None:
        """Forget what came up to now."""
        with self._changed:
            self._next = len(self._lines)

    def find(self, pattern: re.Pattern[str], reject: re.Pattern[str] | None, limit: float, check: Callable[[], None],
             ) -> tuple[re.Match[str] | None, str]:
        """The next line that matches, or None and why: "rejected", "ended" or "nothing" within `limit` seconds."""
        deadline = time.monotonic() + limit
        with self._changed:
            while True:
                while self._next < len(self._lines):
                    line = self._lines[self._next][1]
                    self._next += 1
                    if reject and reject.search(line):
                        return None, f"rejected: {line}"
                    if found := pattern.search(line):
                        return found, ""
                if self._ended:
                    return None, "its output ended"
                if time.monotonic() >= deadline:
                    return None, f"no such line for {limit:g} s"
                self._changed.wait(0.1)
                check()

    def around(self, begin: float, end: float, after: int, limit: float, check: Callable[[], None],
               ) -> list[tuple[float, str]] | None:
        """The lines, with their times, from the last before `begin` to the `after`-th past `end`, for which it waits up to
        `limit` seconds; None when not all of these come."""
        deadline = time.monotonic() + limit
        with self._changed:
            while True:
                first = bisect_left(self._lines, (begin,)) - 1
                last = bisect_left(self._lines, (end,)) + after
                if first < 0 or self._ended and last > len(self._lines) or time.monotonic() >= deadline:
                    return None
                if last <= len(self._lines):
                    return self._lines[first:last]
                self._changed.wait(0.1)
                check()

    def last(self, n: int) -> list[str]:
        with self._changed:
            return [line for _, line in self._lines[-n:]]

    def text(self) -> str:
        with self._changed:
            head = [f"({self._dropped} lines before)"] if self._dropped else []
            return "\n".join(head + [line for _, line in self._lines]) + "\n"

    def close(self) -> None:
        """The source's other end is gone: read the rest."""
        self._thread.join(5)
