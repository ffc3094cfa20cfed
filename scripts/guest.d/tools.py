"""Runs one compiler call for the guest; qemu starts it for each connection, with the connection as stdin and stdout.

The request: NUL-terminated strings: how many arguments, the working folder, the tool, the arguments (sent by init/tool, which
is gcc, clang and all the others in the guest).  The answer: "STATUS LENGTH", a newline, LENGTH bytes of the tool's standard
output, then its standard error.  Paths mean the same on both sides; only tools of the list are run, only in the shared folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRIPLET = "aarch64-linux-gnu"
BINUTILS = ("addr2line", "ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
HERE: dict[str, list[str]] = {
    **{name: [f"{TRIPLET}-{name}"] for name in ("gcc", "g++", *BINUTILS)},
    "cc": [f"{TRIPLET}-gcc"], "c++": [f"{TRIPLET}-g++"],
    "clang": ["clang", f"--target={TRIPLET}"], "clang++": ["clang++", f"--target={TRIPLET}"],
    "make": ["make", f"CC={TRIPLET}-gcc", f"CXX={TRIPLET}-g++"],
    "patchelf": ["patchelf"], "eu-strip": ["eu-strip"], "eu-elflint": ["eu-elflint"], "eu-readelf": ["eu-readelf"],
    # A rewritten file is the same wherever psu-bin runs: test fixtures let the host do it.
    "psu-bin-instrument": [sys.executable, "-m", "psu_bin", "instrument"],
}


def answer(status: int, out: bytes, err: bytes) -> None:
    sys.stdout.buffer.write(f"{status} {len(out)}\n".encode() + out + err)
    sys.stdout.buffer.flush()


def string() -> str:
    """The next string of the request; raises EOFError when the guest is gone."""
    text = bytearray()
    while (byte := sys.stdin.buffer.read(1)) != b"\0":
        if not byte:
            raise EOFError
        text += byte
    return text.decode("utf-8", "surrogateescape")


def main() -> None:
    root, shared = sys.argv[1], [Path(p).resolve() for p in sys.argv[1:3]]
    count = int(string())
    folder, tool, *arguments = (string() for _ in range(count + 2))
    if tool not in HERE:
        return answer(127, b"", f"arm64-guest: no such tool on the host: {tool}\n".encode())
    if not any(Path(folder).resolve().is_relative_to(p) for p in shared):
        return answer(126, b"", f"arm64-guest: {tool}: the host does not see this folder: {folder}\n".encode())
    environment = {"PYTHONPATH": root} if tool == "psu-bin-instrument" else {}
    try:
        done = subprocess.run([*HERE[tool], *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                              env={**os.environ, **environment})
    except OSError as e:
        return answer(127, b"", f"arm64-guest: {tool}: {e}\n".encode())
    return answer(done.returncode if done.returncode >= 0 else 128 - done.returncode, done.stdout, done.stderr)


if __name__ == "__main__":
    main()
