"""Registers of a borrowed thread on AArch64: where it goes, and what becomes of the system call that it was in."""

import struct

import pytest

from psu_bin.arch import Waiting
from psu_bin.arch import aarch64_borrow as machine

ENTRY = 0x7000
EPOLL, NANOSLEEP, CLOCK_NANOSLEEP, FUTEX = 22, 101, 115, 98
BEHIND = 0x401004                     # the instruction behind the svc
EINTR = (1 << 64) - 4


def registers(**values):
    r = [0] * 34
    for name, value in values.items():
        r[getattr(machine, name)] = value
    return machine.REGISTERS.pack(*r)


def test_nobody_is_taken_who_waits_for_a_lock_or_for_memory():
    assert not machine.WAITING_CALLS & {98, 449, 454, 455, 222, 226, 215, 214, 216, 233}     # futex and its kin, mmap and its


def borrow(number, seen=True, first=3, **values):
    """(pc that it comes back to, x0, x8) of a thread that was seen in `number` and then stopped."""
    regs = registers(**{"SP": 0x8000, "PC": BEHIND, "X8": number, **values})
    waiting = Waiting(number, 0x8000, BEHIND, first) if seen else None
    new, at, data = machine.enter(regs, ENTRY, waiting)
    r = machine.REGISTERS.unpack(new)
    assert r[machine.PC] == ENTRY and r[machine.SP] == at == 0x8000 - 16
    return struct.unpack("<Q", data)[0], r[machine.X0], r[machine.X8]


def test_an_interrupted_call_is_made_again_with_its_first_argument():
    assert borrow(EPOLL, X0=EINTR, first=5) == (BEHIND - 4, 5, EPOLL)


def test_what_the_kernel_restarts_by_itself_is_left_alone():
    assert borrow(EPOLL, PC=BEHIND - 4, X0=5) == (BEHIND - 4, 5, EPOLL)


@pytest.mark.parametrize("number, arguments, goes_on", [
    (NANOSLEEP, {}, True), (CLOCK_NANOSLEEP, {"X1": 0}, True), (CLOCK_NANOSLEEP, {"X1": 1}, False),
    (FUTEX, {"X1": 128, "X3": 0x100}, True), (FUTEX, {"X1": 128 | 9, "X3": 0x100}, True),
    (FUTEX, {"X1": 128, "X3": 0}, False)])
def test_a_call_that_counts_down_goes_on_with_what_is_left(number, arguments, goes_on):
    assert borrow(number, PC=BEHIND - 4, X0=7, **arguments) == (BEHIND - 4, 7, 128 if goes_on else number)


@pytest.mark.parametrize("result", [0, 5, (1 << 64) - 9])
def test_a_finished_call_keeps_its_result(result):
    assert borrow(EPOLL, X0=result) == (BEHIND, result, EPOLL)


def test_a_thread_that_did_something_else_since_is_in_no_call():
    assert borrow(EPOLL, seen=False, X0=EINTR) == (BEHIND, EINTR, EPOLL)
    waiting = Waiting(EPOLL, 0x8000, BEHIND, 3)
    assert machine.program_counter(registers(SP=0x8000, PC=BEHIND, X8=EPOLL), waiting)[2] == EPOLL
    for other in ({"SP": 0x7000}, {"PC": BEHIND + 4}, {"X8": 63}):
        regs = registers(**{"SP": 0x8000, "PC": BEHIND, "X8": EPOLL, **other})
        assert machine.program_counter(regs, waiting)[2] == -1
