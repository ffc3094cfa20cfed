"""Source packages of the Debian release that this machine runs: fetched, unpacked, and built as Debian builds them.

The machine's own apt sources are read, and a private list of their `deb-src` twins is kept under .cache/real/apt; the
machine's configuration stays as it is, but build dependencies are installed.  The security suite is left out, as some
of its sources are not to be had.  The build is `debian/rules build`, that is Debian's own flags; what it leaves in the
tree has not been stripped yet.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "real"
# apt's own user may be unable to enter the folders under .cache, and to write into a /tmp that is root's alone.
APT = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root")


class Unreachable(Exception):
    """Packages cannot be fetched or installed: no fault of what is tested."""


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None, log: Path | None = None) -> str:
    """Standard output (and standard error) of a command, also kept in `log`; SystemExit with its end if it fails."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **(env or {})}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    if log:
        log.write_text(done.stdout)
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-30:])
        raise SystemExit(f"real: {' '.join(map(str, command))}: status {done.returncode}\n{end}")
    return done.stdout


def build(package: str, *, say=print) -> Path:  # noqa: ANN001
    """The folder with `package` built in it; from the cache if it is there.  Raises Unreachable.

    build.log in the folder holds every command of the build.
    """
    stamp = CACHE / f"{package}.built"
    if stamp.exists():
        folder = CACHE / stamp.read_text().strip()
        if folder.is_dir():
            return folder
    description = download(package)
    folder = CACHE / description.stem
    say(f"{package}: {description.name}")
    wanted = ("build-dep", "-y", "--no-install-recommends", description)
    try:
        _apt(*wanted, as_root=True)
    except Unreachable:       # on a fresh machine the lists are missing or old
        _apt("update", as_root=True)
        _apt(*wanted, as_root=True)
    shutil.rmtree(folder, ignore_errors=True)
    run("dpkg-source", "-x", description, folder)
    say(f"{package}: building (once; it stays in .cache/real)")
    run("debian/rules", "build", cwd=folder, log=folder / "build.log",
        env={"DEB_BUILD_OPTIONS": f"nocheck parallel={os.cpu_count() or 1}", "LC_ALL": "C.UTF-8",
             "GIT_CEILING_DIRECTORIES": str(CACHE)})      # redis asks git for a version: not for that of this project
    stamp.write_text(folder.name + "\n")
    return folder


def compile_command(folder: Path, source: str, output: str) -> tuple[list[str], Path]:
    """The command of the build that compiled `source` to `output` (file names), without these two, and where it ran."""
    found: list[str] = []
    for line in (folder / "build.log").read_text(errors="replace").splitlines():
        if re.match(r"\s*((\w+-linux-gnu-)?gcc|cc)\s", line) and " -c " in line:
            # Automake's own bookkeeping is shell code around the command: `... -MF .. -c -o x.o `test -f ...`x.c`.
            line = re.sub(r"`[^`]*`", "", line.strip())
            words = shlex.split(line)
            if source in words and output in words:
                found = words
    if not found:
        raise SystemExit(f"real: {folder.name}/build.log: no command compiles {source} to {output}")
    kept: list[str] = []
    skip = False
    for word in found:
        if skip:
            skip = False
        elif word in ("-o", "-MF", "-MT"):
            skip = True
        elif word not in ("-c", "-MD", "-MP", "-MMD", source):
            kept.append(word)
    where = folder if (folder / source).exists() else next(p.parent for p in folder.rglob(source))
    return kept, where


def download(package: str) -> Path:
    """The source package's .dsc, fetched with the files that it names.  Raises Unreachable."""
    apt = CACHE / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text("".join(f"{line}\n" for line in source_entries()))
    private = ("-o", f"Dir::Etc::sourcelist={apt / 'sources.list'}", "-o", "Dir::Etc::sourceparts=-",
               "-o", f"Dir::State::lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}")
    _apt(*private, "update", "--error-on=any")
    _apt(*private, "source", "--download-only", package, cwd=CACHE)
    found = sorted(CACHE.glob(f"{package}_*.dsc"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise Unreachable(f"apt-get source {package}: no .dsc came")
    return found[-1]


def download_debug(package: str, version: str, folder: Path) -> Path:
    """A package of debug symbols, from the archive beside the machine's own (`debian-debug` beside `debian`), as a .deb
    in `folder`.  Raises Unreachable."""
    apt = CACHE / "apt-debug"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for line in source_entries():
        found = re.match(r"deb-src (\[.*\] )?(\S+?)/?(-debug)? (\S+) .*", line)
        if found:
            lines.append(f"deb {found[1] or ''}{found[2]}-debug {found[4]}-debug main\n")
    (apt / "sources.list").write_text("".join(lines))
    private = ("-o", f"Dir::Etc::sourcelist={apt / 'sources.list'}", "-o", "Dir::Etc::sourceparts=-",
               "-o", f"Dir::State::lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}")
    _apt(*private, "update")
    _apt(*private, "download", f"{package}={version}", cwd=folder)
    found_debs = sorted(folder.glob(f"{package}_*.deb"))
    if not found_debs:
        raise Unreachable(f"apt-get download {package}: nothing came")
    return found_debs[-1]


def install(*packages: str) -> None:
    """Have Debian packages installed.  Raises Unreachable."""
    missing = [p for p in packages if subprocess.run(["dpkg-query", "-W", "-f", "${Status}", p], text=True,
                                                     capture_output=True).stdout != "install ok installed"]
    if missing:
        wanted = ("install", "-y", "--no-install-recommends", *missing)
        try:
            _apt(*wanted, as_root=True)
        except Unreachable:
            _apt("update", as_root=True)
            _apt(*wanted, as_root=True)


def source_entries(folder: Path = Path("/etc/apt")) -> list[str]:
    """`deb-src` lines for the release's own suite and its -updates, as the machine's entries name them; never empty."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
    suites = {release.get("VERSION_CODENAME", ""), release.get("VERSION_CODENAME", "") + "-updates"} - {"", "-updates"}
    lines: list[str] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", path.read_text()):
                lines += _from_stanza(stanza, suites)
        elif path.suffix == ".list" and path.exists():
            for m in re.finditer(r"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", path.read_text(), re.M):
                if m[3] in suites:
                    lines.append(f"deb-src {m[1] or ''}{m[2]} {m[3]} {m[4]}")
    if not lines:
        raise Unreachable(f"/etc/apt: no entry for {' or '.join(sorted(suites)) or 'an unnamed release'}")
    return sorted(set(lines))


def _from_stanza(stanza: str, suites: set[str]) -> list[str]:
    fields = {k.lower(): v for k, v in re.findall(r"^([\w-]+):\s*(.*)$", stanza, re.M)}
    if fields.get("enabled", "yes").lower() in ("no", "false") or "deb" not in fields.get("types", "").split():
        return []
    key = fields.get("signed-by", "")
    options = f"[signed-by={key}] " if key.startswith("/") else ""
    return [f"deb-src {options}{uri} {suite} {fields.get('components', 'main')}"
            for uri in fields.get("uris", "").split() for suite in fields.get("suites", "").split() if suite in suites]


def _apt(*arguments: object, as_root: bool = False, cwd: Path | None = None) -> None:
    command = [*APT, *map(str, arguments)]
    if as_root and os.geteuid():
        command = ["sudo", "-n", *command]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-10:])
        raise Unreachable(f"{' '.join(command)}: status {done.returncode}\n{end}")
