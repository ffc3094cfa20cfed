"""Copies of attached patch objects, which a later revert places anew: one file by content.

They lie in a runtime directory of the user who attached, in a folder named by the target's pid and start time:
$XDG_RUNTIME_DIR/psu-bin, else /run/psu-bin for root, else /tmp/psu-bin-UID.  Folders of processes that are gone are
removed by the next attach.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

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


def save(process: Process, objects: list[bytes]) -> list[str]:
    """Keep a copy of each object file; their sha256 names.

    Raises PsuError when the folder cannot be made or is not ours alone (others could plant code in it)."""
    where = folder(process)
    try:
        for d in (where.parent, where):
            d.mkdir(mode=0o700, exist_ok=True)
            info = os.lstat(d)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise PsuError(str(d), "is not a folder that only you can write", "remove it")
        names = []
        for data in objects:
            name = hashlib.sha256(data).hexdigest()
            names.append(name)
            if not (where / name).exists():
                temporary = where / f".{name}.{os.getpid()}"
                temporary.write_bytes(data)
                os.replace(temporary, where / name)
        return names
    except OSError as e:
        raise PsuError(str(where), f"the copy that a revert needs cannot be written: {e.strerror}",
                       "make room, or set XDG_RUNTIME_DIR") from e


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
            text = Path(f"/proc/{int(pid)}/stat").read_text()
            if text[text.rindex(")") + 2:].split()[19] == start:
                continue
        except (OSError, ValueError):
            pass
        shutil.rmtree(d, ignore_errors=True)
