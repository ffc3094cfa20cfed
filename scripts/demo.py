"""The demonstration behind scripts/demo: a multi-threaded server is patched three times while clients use it.

Every client checks each answer and keeps the longest time that it waited for one; a control period with a harmless command
in attach's place tells how much of that is the machine's own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "testprogs" / "server"
CLIENTS = 3


def psu_bin(*arguments: object) -> str:
    """Run psu-bin as a user would; its standard output."""
    return subprocess.run([sys.executable, "-m", "psu_bin", *map(str, arguments)], check=True, stdout=subprocess.PIPE,
                          text=True, cwd=ROOT).stdout


class Connection:
    """One client's connection; ask() sends a line and returns the answer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = self.socket.makefile("r")

    def ask(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        return self.lines.readline().rstrip("\n")


class Client(threading.Thread):
    """Sets and gets without pause; counts answers that are wrong, and the longest wait for one."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.connection = Connection(port)
        self.number = number
        self.answers = self.failed = 0
        self.longest = 0.0
        self.stopping = False

    def run(self) -> None:
        n = 0
        while not self.stopping:
            n += 1
            key = f"client{self.number}-{n % 100}"
            for line, wanted in ((f"set {key} {n}", "stored"), (f"get {key}", f"value {n}")):
                began = time.perf_counter()
                answer = self.connection.ask(line)
                self.longest = max(self.longest, time.perf_counter() - began)
                self.answers += 1
                self.failed += answer != wanted


def main() -> int:
    """Run the demonstration; the exit status says whether every request was answered."""
    with tempfile.TemporaryDirectory(prefix="psu-demo-") as name:
        os.environ["XDG_RUNTIME_DIR"] = name
        return demonstrate(Path(name))


def demonstrate(folder: Path) -> int:
    """Build, instrument, start, load, patch, show; everything that was started is ended."""
    cc = ["cc", "-O2", "-g", "-pthread", f"-I{SOURCE}"]
    print("$ cc -O2 -g -pthread -o server main.c")
    subprocess.run([*cc, "-o", str(folder / "server"), "main.c"], cwd=SOURCE, check=True)
    print("$ psu-bin instrument server")
    print(psu_bin("instrument", folder / "server").replace(f"{folder}/", ""), end="")
    print("$ ./server.psu 4 &")
    server = subprocess.Popen([folder / "server.psu", "4"], stdout=subprocess.PIPE, text=True)
    clients: list[Client] = []
    try:
        assert server.stdout
        port = int(server.stdout.readline().split()[1])
        clients = [Client(port, i) for i in range(CLIENTS)]
        for c in clients:
            c.start()
        asker = Connection(port)
        print(f"  {CLIENTS} clients set and get on 127.0.0.1:{port}; stats says: {asker.ask('stats')}")
        time.sleep(1)
        show_pause(clients, "control, with `psu-bin --version` in attach's place", lambda: psu_bin("--version"))
        for number in (1, 2, 3):
            subprocess.run([*cc, "-c", f"patch{number}.c", "-o", str(folder / f"patch{number}.o")], cwd=SOURCE, check=True)
            print(f"\n$ psu-bin attach {server.pid} patch{number}.o")
            out = show_pause(clients, "attach", lambda n=number: psu_bin("attach", server.pid, folder / f"patch{n}.o"))
            print(f"  {out}", end="")
            print(f"  stats says: {asker.ask('stats')}; a missing key: {asker.ask('get nothing')}; count: {asker.ask('count')}")
        psu_bin("wait", server.pid, "--timeout", 10)
        print(f"\n$ psu-bin status {server.pid}")
        print(psu_bin("status", server.pid).replace(f"{folder}/", ""), end="")
        print(f"$ psu-bin revert {server.pid}")
        print(psu_bin("revert", server.pid), end="")
        print(f"  stats says: {asker.ask('stats')}")
        status = json.loads(psu_bin("status", server.pid, "--json"))
        held = sum(p["bytes"] for p in status["patches"])
        for c in clients:
            c.stopping = True
        for c in clients:
            c.join(10)
        answers, failed = sum(c.answers for c in clients), sum(c.failed for c in clients)
        print(f"\n{answers} requests answered, {failed} wrong; {held} bytes of patches in memory; "
              f"the server lives: {server.poll() is None}")
        return int(failed > 0 or server.poll() is not None)
    finally:
        server.kill()
        server.wait()


def show_pause(clients: list[Client], what: str, action) -> str:  # noqa: ANN001
    """Run `action` and print the longest wait that any client had meanwhile."""
    for c in clients:
        c.longest = 0.0
    out = action()
    longest = max(c.longest for c in clients)
    print(f"  longest wait of a client during {what}: {longest * 1000:.1f} ms")
    return out


if __name__ == "__main__":
    sys.exit(main())
