"""Copies of attached patch objects, which a later revert places anew: one file by content.

They lie in a runtime directory of the user who attached, in a folder named by the target's pid and start time:
$XDG_RUNTIME_DIR/psu-bin, else /run/psu-bin for root, else /tmp/psu-bin-UID.  Folders of processes that are gone are
removed by the next attach.

Where they cannot be written (a full or read-only file system) attach goes on and says what is lost: only a revert to
that very version, which `revert --original` and a newer attach can do without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

from psu_bin.attach import proc
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError


def _root() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.geteuid():
        return Path(runtime) / "psu-bin"
    if os.geteuid() == 0 and os.path.isdir("/run"):
        return Path("/run/psu-bin")
    return Path(f"/tmp/psu-bin-{os.geteuid()}")


def folder(process: Process) -> Path:
    """Where the copies for `process` are; it need not exist."""
    return _root() / f"{process.pid}-{process.start_time}"


def save(process: Process, objects: list[bytes]) -> tuple[list[str], str]:
    """Keep a copy of each object file; their sha256 names, and a warning where there are no copies ("": there are).

    Raises PsuError when the folder is not ours alone (others could plant code in it)."""
    names = [hashlib.sha256(data).hexdigest() for data in objects]
    where = folder(process)
    try:
        for d in (where.parent, where):
            d.mkdir(mode=0o700, exist_ok=True)
            info = os.lstat(d)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise PsuError(str(d), "is not a folder that only you can write", "remove it")
        for name, data in zip(names, objects):
            if not (where / name).exists():
                _write(where / name, data)
    except OSError as e:
        return names, (f"{where}: no copy of the patch could be kept: {e.strerror}: no later revert can go back to it "
                       "(make room, or set XDG_RUNTIME_DIR)")
    return names, ""


def _write(path: Path, data: bytes) -> None:
    """The whole file or none.  Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):       # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def load(process: Process, name: str) -> bytes | None:
    """The object file with sha256 `name`, or None when its copy is lost or damaged."""
    try:
        data = (folder(process) / name).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == name else None


def keep_only(process: Process, names: set[str]) -> None:
    """Drop copies that no history refers to any more."""
    try:
        for f in folder(process).iterdir():
            if f.name not in names:
                f.unlink(missing_ok=True)
    except OSError:
        pass  # nothing depends on it: a superfluous copy costs some disk


def sweep() -> None:
    """Remove the folders of processes that are gone."""
    try:
        folders = list(_root().iterdir())
    except OSError:
        return
    for d in folders:
        pid, _, start = d.name.partition("-")
        try:
            where = f"/proc/{int(pid)}/stat"
            if str(proc.stat(proc.read(where), where).start_time) == start:
                continue
        except (OSError, ValueError, PsuError):
            pass
        shutil.rmtree(d, ignore_errors=True)
