"""The filter interpreter against the kernel: random filters, the same answers."""

import ctypes
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psu_bin.attach.seccomp import ALLOW, ERRNO, KILL_PROCESS, TRAP, Call, run, strictest

LD_NR, LD_A2, RET, JEQ, JGT, JSET, AND, RSH, TAX, RET_A = 0x20, 0x20, 0x06, 0x15, 0x25, 0x45, 0x54, 0x74, 0x07, 0x16
PROBE = 39      # getpid, called with arguments that it ignores


def program(*rows):
    return b"".join(struct.pack("<HBBI", op, jt, jf, k) for op, jt, jf, k in rows)


def asked(p, nr, *arguments):
    data = struct.pack("<iIQ6Q", nr, 0xC000003E, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    return run(p, data)


def test_instructions():
    p = program((LD_NR, 0, 0, 0), (JEQ, 0, 1, 10), (RET, 0, 0, TRAP), (LD_A2, 0, 0, 32), (JSET, 0, 1, 4), (RET, 0, 0, ERRNO | 1),
                (RET, 0, 0, ALLOW))
    assert asked(p, 10) == TRAP
    assert asked(p, 9, 0, 0, 5) == ERRNO | 1
    assert asked(p, 9, 0, 0, 3) == ALLOW


def test_the_strictest_of_several_counts():
    answers = [program((RET, 0, 0, k)) for k in (ALLOW, ERRNO | 5, KILL_PROCESS, TRAP)]
    call = Call("x", 1, (), True)
    assert strictest(answers[:1], 0, call) == ALLOW
    assert strictest(answers[:2], 0, call) == ERRNO | 5
    assert strictest([answers[0], answers[3], answers[1]], 0, call) == TRAP
    assert strictest(answers, 0, call) == KILL_PROCESS


def kernels_answer(p, argument):
    """What getpid(argument) fails with under the filter, in a child; 0: it does not."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(p)
        head = struct.pack("<HxxxxxxQ", len(p) // 8, ctypes.addressof(buffer))
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(head), 0, 0):
            os._exit(255)
        libc.syscall.restype = ctypes.c_long
        os._exit(ctypes.get_errno() if libc.syscall(PROBE, ctypes.c_long(argument)) < 0 else 0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) != 255
    return os.WEXITSTATUS(status)


WORD = st.integers(0, 2**32 - 1)
ALU = st.tuples(st.sampled_from([0x04, 0x14, 0x24, 0x44, 0x54, 0xA4]), st.just(0), st.just(0), WORD) | \
    st.tuples(st.sampled_from([0x64, 0x74]), st.just(0), st.just(0), st.integers(0, 31)) | \
    st.tuples(st.sampled_from([0x84, 0x07, 0x87, 0x0C, 0x1C, 0xAC]), st.just(0), st.just(0), st.just(0)) | \
    st.tuples(st.sampled_from([0x01]), st.just(0), st.just(0), WORD) | \
    st.tuples(st.sampled_from([0x15, 0x25, 0x35, 0x45]), st.integers(0, 1), st.integers(0, 1), WORD) | \
    st.tuples(st.just(0x34), st.just(0), st.just(0), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(ALU, min_size=1, max_size=12), WORD)
def test_as_the_kernel(rows, argument):
    # only PROBE is put to the random part; it ends in one of two error numbers, by a bit of the accumulator
    p = program((LD_NR, 0, 0, 0), (JEQ, 1, 0, PROBE), (RET, 0, 0, ALLOW), (LD_A2, 0, 0, 16), *rows, (JSET, 0, 1, 0x10),
                (RET, 0, 0, ERRNO | 7), (JSET, 0, 1, 0x2001), (RET, 0, 0, ERRNO | 8), (RET, 0, 0, ERRNO | 9))
    try:
        expected = asked(p, PROBE, argument) & 0xFFFF
    except Exception as e:      # noqa: BLE001
        pytest.fail(repr(e))
    assert kernels_answer(p, argument) == expected
