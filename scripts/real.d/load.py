"""Clients that load a server without pause and check every answer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

# Seconds until a missing answer is a failure; an emulated machine wants more.
PATIENCE = float(os.environ.get("PSU_TEST_PATIENCE", "30"))


class Connection:
    """One client's connection; every request waits for its answer, at most PATIENCE seconds."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def line(self, request: bytes) -> bytes:
        """The first line of the answer, without its end."""
        self.socket.sendall(request)
        return self.file.readline().rstrip(b"\r\n")

    def exact(self, request: bytes, answer: bytes) -> bytes:
        """As many bytes as `answer` has; one line if that differs at once, so that no wrong answer is waited for."""
        self.socket.sendall(request)
        got = self.file.readline()
        if got == answer[:len(got)] and len(got) < len(answer):
            got += self.file.read(len(answer) - len(got))
        return got

    def first_line(self, request: bytes) -> bytes:
        """The first line of an answer of which a second one, the text of a RESP bulk string, is dropped."""
        got = self.line(request)
        if not got:
            raise OSError("the connection was closed")
        if got.startswith(b"$"):
            self.file.readline()
        return got

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Client(threading.Thread):
    """Goes through rounds of requests; ends at the first wrong answer or error, which is kept in `failed`."""

    def __init__(self, port: int, number: int,
                 requests: Callable[[int, int], list[tuple[bytes, bytes | None]]]) -> None:
        super().__init__(daemon=True)
        self.connection = Connection(port)
        self.number = number
        self.requests = requests
        self.answers = 0
        self.longest = 0.0          # seconds, since it was last set to 0
        self.failed: str | None = None
        self.stopping = False

    def run(self) -> None:
        try:
            n = 0
            while not self.stopping:
                n += 1
                for request, wanted in self.requests(self.number, n):
                    began = time.perf_counter()
                    got = self.connection.line(request) if wanted is None else self.connection.exact(request, wanted)
                    self.longest = max(self.longest, time.perf_counter() - began)
                    if not got or wanted is not None and got != wanted:
                        self.failed = f"{request[:60]!r}: answer {got[:60]!r}"
                        return
                    self.answers += 1
        except OSError as e:
            self.failed = f"client {self.number}: {e}"


class Watcher(threading.Thread):
    """Asks the same questions again and again, and keeps each answer that differs from the one before."""

    def __init__(self, port: int, asks: tuple[bytes, ...], now_and_then: bytes | None) -> None:
        super().__init__(daemon=True)
        self.connection = Connection(port)
        self.other = Connection(port)
        self.asks = asks
        self.now_and_then = now_and_then
        self.seen: tuple[list[bytes], ...] = tuple([] for _ in asks)
        self.asked = 0
        self.failed: str | None = None
        self.stopping = False

    def run(self) -> None:
        try:
            while not self.stopping:
                for ask, seen in zip(self.asks, self.seen):
                    got = self.connection.first_line(ask)
                    if not seen or seen[-1] != got:
                        seen.append(got)
                self.asked += 1
                if self.now_and_then and self.asked % 500 == 0:
                    self._heavy()
        except OSError as e:
            self.failed = f"the client that asks {self.asks!r}: {e}"

    def _heavy(self) -> None:
        assert self.now_and_then
        line = self.other.line(self.now_and_then)
        while line.startswith(b"STAT "):
            line = self.other.file.readline()
