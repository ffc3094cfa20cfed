"""ptrace(2) from python-ptrace, loaded without the search for the C library that its import makes.

python-ptrace asks ctypes.util for the library's file, which runs ldconfig (or even a compiler): a process and 40 ms more
for every attach.  The library that this Python runs on is loaded already.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types


def _binding():  # noqa: ANN202
    name = "ptrace.ctypes_libc"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.libc = ctypes.CDLL(None, use_errno=True)     # type: ignore[attr-defined]
        module.LIBC_FILENAME = module.libc._name            # type: ignore[attr-defined]
        sys.modules[name] = module
    from ptrace.binding import func
    return func


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """ptrace(2).  Raises OSError."""
    from ptrace.error import PtraceError
    try:
        result: int = _binding().ptrace(request, tid, address, data)
    except PtraceError as e:
        raise OSError(e.errno, os.strerror(e.errno or 0)) from e
    return result
