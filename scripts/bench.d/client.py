"""Who asks a server: a connection whose answers are known by their shape."""

from __future__ import annotations

import socket
import subprocess
import time

from measure import Failed


class Client:
    """A connection that sends a batch and waits for answers of the same length each time."""

    def __init__(self, port: int, process: subprocess.Popen) -> None:
        self.port = port
        deadline = time.monotonic() + 60
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{process.args}: does not answer: {process.returncode}") from None
                time.sleep(0.05)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def until(self, request: bytes, end: bytes) -> None:
        self.socket.sendall(request)
        got = b""
        while not got.endswith(end):
            data = self.socket.recv(1 << 20)
            if not data:
                raise Failed(f"the connection was closed after {got[-200:]!r}")
            got += data

    def answer(self, request: bytes, settle: float = 0.3) -> bytes:
        """All that comes back until nothing has come for a while: what a batch's answer is like."""
        self.socket.sendall(request)
        got = self.socket.recv(1 << 20)
        self.socket.settimeout(settle)
        try:
            while data := self.socket.recv(1 << 20):
                got += data
        except TimeoutError:
            pass
        self.socket.settimeout(60)
        return got

    def batches(self, request: bytes, like: bytes, n: int) -> None:
        """n batches, one after the other, whose answers have as many lines as `like`; numbers in them may have grown.

        Being woken for every piece of an answer would be a fifth of the server's time, and differ from run to run: so this sleeps
        until about the whole of it is there (SO_RCVLOWAT, socket(7))."""
        for _ in range(n):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(like))
            self.socket.sendall(request)
            left = max(like.count(b"\n"), 1)
            while left > 0:
                data = self.socket.recv(1 << 20)
                if not data:
                    raise Failed("the connection was closed")
                left -= data.count(b"\n")
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
