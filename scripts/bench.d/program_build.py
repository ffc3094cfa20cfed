"""The programs of section `servers`: from Debian's source packages to an executable and the objects that it was linked
of.

memcached and redis are built by Debian's own rules; the others by their own makefiles with Debian's compiler flags, as
Debian's rules build many variants of them and need hundreds of megabytes of packages for that.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import debian

CACHE = debian.CACHE / "programs"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """An executable, and one object with everything in it that is not a shared library's: a patch of all functions."""

    binary: Path
    whole: Path
    text: int  # bytes of .text


def flags() -> list[str]:
    """Debian's compiler flags, without the one that names the build folder."""
    text = subprocess.run(["dpkg-buildflags", "--get", "CFLAGS"], text=True, capture_output=True, check=True).stdout
    return [f for f in text.split() if not f.startswith("-ffile-prefix-map")]


def build(name: str, say: Say) -> Built:
    """Program `name`, from the cache if it is there.  Raises debian.Unreachable."""
    folder = CACHE / name
    binary, whole = folder / name, folder / f"{name}-all.o"
    if not whole.exists():
        say(f"  building {name} (once)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made, objects = BUILDERS[name](folder, say)
        shutil.copy(made, binary)
        # An archive gives the members that are needed, as in the program's own link.
        debian.run("ld", "-r", *objects, "-o", whole.with_suffix(".new"))
        whole.with_suffix(".new").rename(whole)
    sizes = subprocess.run(["size", "-A", binary], text=True, capture_output=True, check=True).stdout
    return Built(binary, whole, int(re.search(r"^\.text\s+(\d+)", sizes, re.M)[1]))


def _unpack(package: str, folder: Path) -> Path:
    found = sorted(debian.CACHE.glob(f"{package}_*.dsc"))
    debian.run("dpkg-source", "-x", found[-1] if found else debian.download(package), folder / "source")
    return folder / "source"


def _by_debian(package: str, link: str, where: str) -> Callable[[Path, Say], tuple[Path, list[Path]]]:
    """A program of a package that real.d builds; `link` begins the end of the command that linked it."""

    def make(folder: Path, say: Say) -> tuple[Path, list[Path]]:
        built = debian.build(package, say=say)
        lines = [
            line for line in (built / "build.log").read_text(errors="replace").splitlines() if f" -o {link} " in line
        ]
        words = shlex.split(lines[-1].split(f" -o {link} ", 1)[1])
        return built / where / link, [built / where / w for w in words if w.endswith((".o", ".a"))]

    return make


def _sqlite(folder: Path, say: Say) -> tuple[Path, list[Path]]:
    """speedtest1, with the library as one file as its authors compile it."""
    source = _unpack("sqlite3", folder)
    debian.run("./configure", "--disable-tcl", cwd=source)
    debian.run("make", f"-j{os.cpu_count()}", "sqlite3.c", cwd=source)
    (folder / "wait.c").write_text(WAIT)
    objects = []
    for path, more in (
        (source / "sqlite3.c", ["-DSQLITE_THREADSAFE=1", "-DSQLITE_ENABLE_RTREE"]),
        (source / "test/speedtest1.c", ["-Dmain=program_main", "-DSQLITE_ENABLE_RTREE"]),
        (folder / "wait.c", []),
    ):
        objects.append(folder / f"{path.stem}.o")
        debian.run("gcc", *flags(), "-w", *more, f"-I{source}", "-c", path, "-o", objects[-1])
    return _link(folder / "speedtest1", objects, "-lpthread", "-ldl", "-lm"), objects


def _lua(folder: Path, say: Say) -> tuple[Path, list[Path]]:
    source = _unpack("lua5.4", folder)
    machine = subprocess.run(["gcc", "-print-multiarch"], text=True, capture_output=True, check=True).stdout.strip()
    (source / "src/lua5.4-deb-multiarch.h").write_text(f'#define DEB_HOST_MULTIARCH "{machine}"\n')
    objects = []
    for path in sorted((source / "src").glob("*.c")):
        if path.name != "luac.c":
            objects.append(folder / f"{path.stem}.o")
            debian.run(
                "gcc",
                *flags(),
                "-w",
                "-DLUA_COMPAT_5_3",
                "-DLUA_USE_POSIX",
                "-DLUA_USE_DLOPEN",
                "-c",
                path,
                "-o",
                objects[-1],
            )
    return _link(folder / "lua-linked", objects, "-Wl,-E", "-ldl", "-lm"), objects


def _nginx(folder: Path, say: Say) -> tuple[Path, list[Path]]:
    debian.install("libpcre2-dev", "zlib1g-dev", "libssl-dev")
    source = _unpack("nginx", folder)
    debian.run(
        "./configure",
        f"--with-cc-opt={' '.join(flags())}",
        "--with-threads",
        "--with-http_ssl_module",
        "--with-http_v2_module",
        "--with-http_realip_module",
        "--with-http_stub_status_module",
        "--with-stream",
        cwd=source,
    )
    log = debian.run("make", f"-j{os.cpu_count()}", cwd=source)
    line = next(x for x in log.replace("\\\n", " ").splitlines() if re.search(r"\s-o objs/nginx\s", x))
    return source / "objs/nginx", [source / w for w in line.split() if w.endswith(".o")]


def _link(out: Path, objects: list[Path], *more: str) -> Path:
    debian.run("gcc", *flags(), "-pthread", *objects, *more, "-o", out)
    return out


# Says that it is there, and waits for a line before it begins.
WAIT = r"""#include <stdio.h>
int program_main(int, char **);
int main(int argc, char **argv)
{
    puts("ready");
    fflush(stdout);
    return getchar() == EOF ? 1 : program_main(argc, argv);
}
"""

BUILDERS = {
    "memcached": _by_debian("memcached", "memcached", ""),
    "redis": _by_debian("redis", "redis-server", "src"),
    "sqlite": _sqlite,
    "lua": _lua,
    "nginx": _nginx,
}
