"""What tests make once a machine and find again in later runs: files in a folder of their own in the temporary directory.

Test processes run side by side (pytest -n) and often want the same file at the same moment of a first run.  A lock lets one
make it; who waited finds it made.  Only a folder that was finished is taken: what was interrupted is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def made_once(key: object, make: Callable[[Path], None]) -> Path:
    """The folder of `key`, whose repr() names all that the files depend on; make(folder) fills it the first time.

    The folder has the same path in every run, because compilers write it into what they make.  In scripts/arm64-guest, whose
    compilers run outside, it is in the folder that both sides see."""
    cache = Path(os.environ.get("PSU_ARM64_GUEST") or tempfile.gettempdir()) / f"psu-tests-{os.getuid()}"
    folder = cache / hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    done = folder / ".done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
    return folder
