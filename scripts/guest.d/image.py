"""Makes the guest's kernel, initrd and disk from Debian's arm64 packages, without root, mounts or chroot.

A private apt configuration (own lists, an empty dpkg status, arm64 as the only architecture, the machine's own sources of
its own release) resolves and downloads; dpkg-deb and tar unpack; pip brings the aarch64 wheels; mke2fs -d writes the disk.
Python modules are compiled here where the host's Python is the guest's: imports are many times faster under emulation then.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tools

INIT = Path(__file__).resolve().parent / "init"
PROGRAMS = ("qemu-system-aarch64", "apt-get", "apt-cache", "dpkg-deb", "mke2fs", "depmod", "modprobe", "cpio")
PACKAGES = ("busybox-static python3-minimal libpython3-stdlib bash coreutils libc-bin libstdc++6 procps util-linux mount "
            "gdb-minimal").split()
# By the size of its pages in KiB, and the file names' ending.  -cloud siblings lack 9p.  Debian has none with pages of 64 KiB.
KERNELS = {4: ("linux-image-arm64", ""), 16: ("linux-image-6.12-arm64-16k", "-16k")}
MODULES = "virtio_mmio virtio_blk virtio_console virtio_net virtio_rng ext4 overlay 9pnet_virtio 9p".split()
# Python packages without an aarch64 wheel, which nothing in the guest imports.
WITHOUT = ("keystone-engine",)
LEFT_OUT = ("doc", "man", "locale", "info", "zoneinfo", "bash-completion")      # of usr/share
BUSYBOX = "awk cut find grep hostname ifconfig less mount ping ps sed sh tar umount vi which xargs sleep".split()


class Unavailable(Exception):
    """The guest cannot be made here; the text is one line that says why."""


@dataclass(frozen=True)
class Files:
    """What qemu is given."""
    kernel: Path
    initrd: Path
    disk: Path


def prepare(root: Path, refresh: bool = False, pages: int = 4) -> Files:
    """The guest's files, from the cache or made now.  pages: of KERNELS.  Raises Unavailable."""
    missing = [p for p in PROGRAMS if not _which(p)]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)} (packages qemu-system-arm, e2fsprogs, kmod, cpio)")
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache, "psu-bin", "arm64-guest") if cache else root / ".cache" / "arm64-guest"
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder / "kernel", folder / "initrd", folder / "disk")
    package, ending = KERNELS[pages]
    other = Files(folder / f"kernel{ending}", folder / f"initrd{ending}", files.disk)
    parts = [Path(__file__), Path(tools.__file__), *sorted(INIT.iterdir()), root / "setup.cfg"]
    stamp = hashlib.sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()
    with open(folder / "lock", "w") as lock:      # two at a time: the second waits and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "stamp", folder / f"stamp{ending}"
        for path in made if refresh else ():
            path.unlink(missing_ok=True)
        try:
            if _old(made[0], stamp):
                print("arm64-guest: making the guest from Debian packages, once", file=sys.stderr)
                _make(folder, files, _requirements(root / "setup.cfg"))
                made[0].write_text(stamp)
            if _old(made[1], stamp):
                print(f"arm64-guest: making it for pages of {pages} KiB, once", file=sys.stderr)
                _make_kernel(folder, other, package)
                made[1].write_text(stamp)
        except subprocess.CalledProcessError as e:
            error = (e.stderr or b"").decode(errors="replace").strip().splitlines()
            raise Unavailable(f"{Path(str(e.cmd[0])).name} failed: {error[-1] if error else e.returncode}") from None
    return other


def _old(made: Path, stamp: str) -> bool:
    """Whether what that file stands for has to be made; it is gone then."""
    if made.exists() and made.read_text() == stamp:
        return False
    made.unlink(missing_ok=True)
    return True


def _make_kernel(folder: Path, files: Files, package: str) -> None:
    """Kernel and initrd alone."""
    debs = _download(folder, _apt(folder), ("busybox-static",), package)
    tree, kernel = folder / "tree", folder / "kernel-tree"
    _unpack(debs, tree, kernel)
    _initrd(folder, tree, kernel, files)
    for path in (tree, kernel, debs):
        shutil.rmtree(path)


def _make(folder: Path, files: Files, requirements: list[str]) -> None:
    """Passes: packages here; their files as one tree; Python packages; initrd; disk."""
    apt = _apt(folder)
    debs = _download(folder, apt, PACKAGES, KERNELS[4][0])
    tree, kernel = folder / "tree", folder / "kernel-tree"
    _unpack(debs, tree, kernel)
    _python(tree, requirements)
    _initrd(folder, tree, kernel, files)
    # A third more than the files: ext4's own tables; nothing is written in the guest.
    size = int(_run("du", "-sm", "--apparent-size", tree).split()[0]) * 4 // 3 + 64
    files.disk.unlink(missing_ok=True)
    _run(_which("mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d", tree,
         files.disk, f"{size}M")
    for path in (tree, kernel, debs):
        shutil.rmtree(path)


def _apt(folder: Path) -> dict[str, str]:
    """The environment in which apt-get knows nothing but arm64; lists are fetched."""
    apt = folder / "apt"
    for path in ("state/lists/partial", "cache/archives/partial", "log"):
        (apt / path).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("")
    entries = sorted(set(_sources()))
    if not entries:
        raise Unavailable("this machine has no Debian package sources of its own release")
    (apt / "sources.list").write_text("".join(f"{e}\n" for e in entries))
    # Dir::Etc stays the machine's: proxies and credentials are there.
    (apt / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "-"; Dir::State "{apt}/state";\n'
        f'Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache"; Dir::Log "{apt}/log";\n'
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";\n'
        'Acquire::Languages "none"; Acquire::Retries "2"; Acquire::http::Timeout "30"; APT::Sandbox::User "";\n')
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C.UTF-8"}
    _run("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update", env=environment)
    return environment


def _sources() -> Iterator[str]:
    """The machine's own Debian sources of its release, as one-line entries for arm64.

    Both formats of sources.list(5); other suppliers are left out by their suite's name."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        return
    folder = Path("/etc/apt")
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        text = path.read_text() if path.is_file() else ""
        found: list[tuple[str, str, str, str]] = []
        if path.suffix == ".list":
            for options, uri, suite, components in re.findall(r"^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text, re.M):
                signed_by = re.search(r"signed-by=(\S+)", options)
                found.append((signed_by[1] if signed_by else "", uri, suite, components))
        elif path.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", text):
                fields = {k.lower(): v.strip() for k, v in re.findall(r"^([\w-]+):(.*)$", stanza, re.M)}
                if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
                    found += [(fields.get("signed-by", ""), uri, suite, fields.get("components", ""))
                              for uri in fields.get("uris", "").split() for suite in fields.get("suites", "").split()]
        for keyring, uri, suite, components in found:
            if re.fullmatch(rf"{codename}(-updates|-security|/updates)?", suite) and "main" in components.split():
                signed = f" signed-by={keyring}" if keyring.startswith("/") else ""
                yield f"deb [arch=arm64{signed}] {uri} {suite} main"


def _download(folder: Path, env: dict[str, str], packages: Sequence[str], kernel_package: str) -> Path:
    """The packages, with what they depend on, and the kernel without that: a folder."""
    debs = folder / "debs"
    shutil.rmtree(debs, ignore_errors=True)
    (debs / "partial").mkdir(parents=True)
    _run("apt-get", "-qq", "-y", "--download-only", "-o", f"Dir::Cache::archives={debs}", "install", *packages, env=env)
    kernel = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", kernel_package, env=env))
    if not kernel:
        raise Unavailable(f"{kernel_package} is not among the packages")
    _run("apt-get", "-qq", "download", kernel[1], env=env, cwd=debs)
    return debs


def _unpack(debs: Path, tree: Path, kernel: Path) -> None:
    """One file system in which /bin, /sbin and /lib are links, as Debian has it since 12."""
    for path in (tree, kernel):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/local/bin", "proc", "sys", "dev", "tmp", "run", "root", "etc", "mnt"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib"):
        (tree / name).symlink_to(f"usr/{name}")
    excludes = [f"--exclude=./usr/share/{name}*" for name in LEFT_OUT] + ["--exclude=./usr/lib/*/gconv*"]
    for deb in sorted(debs.glob("*.deb")):
        if deb.name.startswith("linux-image"):
            _run("dpkg-deb", "-x", deb, kernel)
            continue
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-C", tree, "--keep-directory-symlink", "--no-same-owner", *excludes, "-xf", "-"],
                           stdin=archive.stdout, check=True, capture_output=True)
        if archive.returncode:
            raise Unavailable(f"dpkg-deb cannot read {deb.name}")
    for name in BUSYBOX:
        for place in (tree / "usr/bin" / name, tree / "usr/sbin" / name):
            if place.is_symlink() or place.exists():
                break
        else:
            (tree / "usr/bin" / name).symlink_to("busybox")
    if not (tree / "usr/bin/sh").is_symlink():
        (tree / "usr/bin/sh").symlink_to("bash")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost arm64-guest\n")
    shutil.copy(INIT / "second", tree / "usr/sbin/second")
    shutil.copy(INIT / "tool", tree / "usr/local/bin/.tool")
    for name in tools.HERE:
        (tree / "usr/local/bin" / name).symlink_to(".tool")


def _requirements(path: Path) -> list[str]:
    """What setup.cfg says psu-bin and its tests need, as far as the guest can have it."""
    config = configparser.ConfigParser()
    config.read(path)
    text = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line for line in lines if re.split(r"[\s<>=]", line)[0] not in WITHOUT]


def _python(tree: Path, requirements: list[str]) -> None:
    """Wheels for aarch64 into the guest's Python; everything compiled if the host's Python is the same one."""
    version = os.readlink(tree / "usr/bin/python3").removeprefix("python")
    target = tree / "usr/lib/python3/dist-packages"
    platforms = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    _run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--target", target, "--upgrade",
         "--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *platforms, "--no-compile",
         "--root-user-action=ignore", *requirements)
    host = shutil.which(f"python{version}")
    if "%d.%d" % sys.version_info[:2] == version:
        host = sys.executable
    if host:
        # unchecked-hash: not compared with the source's time again, and valid whatever time the disk image gives it.
        subprocess.run([host, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash", "-s", tree,
                        "-p", "/", tree / "usr/lib" / f"python{version}", target], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)      # some test data is no valid Python
    else:
        print(f"arm64-guest: no python{version} here: Python starts slowly in the guest", file=sys.stderr)


def _initrd(folder: Path, tree: Path, kernel: Path, files: Files) -> None:
    """Busybox, the modules in the order of their dependencies, and init/first; and the kernel beside it."""
    (version,) = os.listdir(kernel / "lib/modules")
    initrd = folder / "initrd-tree"
    shutil.rmtree(initrd, ignore_errors=True)
    for name in ("bin", "modules", "proc", "sys", "dev", "newroot", "layer"):
        (initrd / name).mkdir(parents=True)
    shutil.copy(tree / "usr/bin/busybox", initrd / "bin/busybox")
    shutil.copy(INIT / "first", initrd / "init")
    _run(_which("depmod"), "-b", kernel, version)
    order: list[str] = []
    for module in MODULES:
        wanted = _run(_which("modprobe"), "-d", kernel, "-S", version, "--show-depends", module)
        for path in map(Path, re.findall(r"^insmod (\S+)", wanted, re.M)):
            if path.name not in order:
                order.append(path.name)
                shutil.copy(path, initrd / "modules")
    (initrd / "modules/order").write_text("".join(f"{name}\n" for name in order))
    names = "\n".join(str(p.relative_to(initrd)) for p in [initrd, *sorted(initrd.rglob("*"))])
    with open(files.initrd, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=initrd, input=names.encode(), stdout=out,
                       stderr=subprocess.PIPE, check=True)
    shutil.copy(next(kernel.glob("boot/vmlinuz-*")), files.kernel)
    shutil.rmtree(initrd)


def _which(program: str) -> str | None:
    """The program's path, also of those in sbin, which are not in every user's PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _run(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output of a command; raises CalledProcessError."""
    return subprocess.run([str(a) for a in arguments], check=True, capture_output=True, env=env, cwd=cwd).stdout.decode()
