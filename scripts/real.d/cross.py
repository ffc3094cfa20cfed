"""Debian's source packages cross-compiled for AArch64: the programs that real.d/aarch64.py runs under qemu-user.

Built with Debian's flags for arm64 and -mbranch-protection=standard, by their own makefiles and with as few options as
make a useful program: Debian's arm64 libraries are not needed on the machine.  Everything is kept in
.cache/real/aarch64.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import debian

CACHE = debian.CACHE / "aarch64"
TRIPLET = "aarch64-linux-gnu"
GCC = f"{TRIPLET}-gcc"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """The unpacked source package, in which or under which its makefile ran, and the program."""
    folder: Path
    binary: Path


def flags() -> list[str]:
    """Debian's compiler flags for arm64, without the one that names the build folder."""
    text = subprocess.run(["dpkg-architecture", "-aarm64", "-c", "dpkg-buildflags", "--get", "CFLAGS"], text=True,
                          capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout
    kept = [f for f in text.split() if not f.startswith(("-ffile-prefix-map", "-mbranch-protection"))]
    return [*kept, "-mbranch-protection=standard"]


def build(name: str, say: Say) -> Built:
    """Program `name`, from the cache if it is there.  Raises debian.Unreachable."""
    folder = CACHE / name
    stamp = folder / "built"
    recipe = hashlib.sha256(inspect.getsource(BUILDERS[name]).encode()).hexdigest()
    if not stamp.exists() or recipe not in stamp.read_text().split():
        say(f"{name}: building for AArch64 (once; it stays in .cache/real)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = BUILDERS[name](folder)
        stamp.write_text(f"{made.relative_to(folder)}\n{recipe}\n")
    return Built(folder / "source", folder / stamp.read_text().split()[0])


def _unpack(package: str, folder: Path) -> Path:
    found = sorted(debian.CACHE.glob(f"{package}_*.dsc"))
    debian.run("dpkg-source", "-x", found[-1] if found else debian.download(package), folder)
    return folder


# What dpkg-source writes is newer than what the authors generated from it, which is good as it is.
GENERATED = ("ACLOCAL=:", "AUTOCONF=:", "AUTOHEADER=:", "AUTOMAKE=:")


def _make(folder: Path, *words: object) -> None:
    debian.run("make", f"-j{os.cpu_count() or 1}", *GENERATED, *words, cwd=folder, log=folder / "build.log")


def _link(out: Path, objects: list[Path], *libraries: str) -> Path:
    debian.run(GCC, *flags(), "-pthread", *objects, *libraries, "-o", out)
    return out


def _lua(folder: Path) -> Path:
    source = _unpack("lua5.4", folder / "source")
    (source / "src/lua5.4-deb-multiarch.h").write_text(f'#define DEB_HOST_MULTIARCH "{TRIPLET}"\n')
    objects = []
    for path in sorted((source / "src").glob("*.c")):
        if path.name != "luac.c":
            objects.append(folder / f"{path.stem}.o")
            debian.run(GCC, *flags(), "-w", "-DLUA_COMPAT_5_3", "-DLUA_USE_POSIX", "-DLUA_USE_DLOPEN", "-c", path, "-o",
                       objects[-1])
    return _link(folder / "lua", objects, "-Wl,-E", "-ldl", "-lm")


def _sqlite(folder: Path) -> Path:
    source = _unpack("sqlite3", folder / "source")
    debian.run("./configure", "--disable-tcl", cwd=source)      # for this machine: it makes the library's one file
    _make(source, "sqlite3.c")
    objects = []
    for path in (source / "sqlite3.c", source / "test/speedtest1.c"):
        objects.append(folder / f"{path.stem}.o")
        debian.run(GCC, *flags(), "-w", "-DSQLITE_THREADSAFE=1", "-DSQLITE_ENABLE_RTREE", f"-I{source}", "-c", path, "-o",
                   objects[-1])
    return _link(folder / "speedtest1", objects, "-ldl", "-lm")


def _memcached(folder: Path) -> Path:
    event = _unpack("libevent", folder / "libevent")
    configured = (f"--host={TRIPLET}", f"CFLAGS={' '.join(flags())}")
    debian.run("./configure", *configured, f"--prefix={folder / 'prefix'}", "--disable-shared", "--disable-openssl",
               "--disable-samples", "--disable-libevent-regress", cwd=event)
    _make(event, "install")
    source = _unpack("memcached", folder / "source")
    debian.run("./configure", *configured, f"--with-libevent={folder / 'prefix'}", "--disable-docs", "--disable-werror",
               cwd=source)
    _make(source, "memcached-debug", "memcached")      # the one for its test suite, and what Debian ships
    return source / "memcached-debug"


def _redis(folder: Path) -> Path:
    source = _unpack("redis", folder / "source")
    words = (f"CC={GCC}", f"AR={TRIPLET}-ar", f"RANLIB={TRIPLET}-ranlib", "MALLOC=libc", "BUILD_TLS=no", "USE_SYSTEMD=no",
             f"OPTIMIZATION={' '.join(flags())}", "V=1")
    debian.run("make", "distclean", cwd=source)
    _make(source / "src", *words, "redis-server")
    return source / "src/redis-server"


BUILDERS: dict[str, Callable[[Path], Path]] = {"lua": _lua, "sqlite": _sqlite, "memcached": _memcached, "redis": _redis}
