"""One case, judged: input that is damaged may be refused or taken; nothing else may happen.

Nothing else: no exception or warning but PsuError, a message that is one line, an end within SECONDS of processor time
(not of the clock: the machine may be busy), and no more than ROOM bytes of memory above what the process has already.
"""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from psu_bin import cli
from psu_bin.errors import PsuError

SECONDS = 20.0             # of processor time: an intact file takes a hundredth of a second
ROOM = 768 << 20           # the files have some 20 KiB; numpy's own buffers and threads are in it
MESSAGE = 20_000           # characters: damaged names may be long


class TooLong(BaseException):
    """Not an Exception, so that nothing that is under test catches it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Within, memory is limited: what asks for more gets MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def judge(run: Callable[[bytes], None], data: bytes) -> str:
    """The message with which `run` refused `data`, "" when it took it.  Any other end is an exception."""
    def expired(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {SECONDS} s of processor time")
    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")        # they would be lines on standard error
            run(data)
    except PsuError as e:
        message = cli._one_line(str(e))
    else:
        return ""
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert message and "\n" not in message and len(message) < MESSAGE, message
    assert "internal defect" not in message, message
    where, _, what = message.partition(": ")
    assert where and what.strip(), message
    return message
