"""Registers of a borrowed thread: where it goes, and what becomes of the system call that it was in."""

import struct

import pytest

from psu_bin.arch import x86_64_borrow as machine

ENTRY = 0x7000


def registers(**values):
    r = [0] * 27
    for name, value in values.items():
        r[getattr(machine, name)] = value % (1 << 64)
    return machine.REGISTERS.pack(*r)


def back(orig_rax, rax):
    regs = registers(RIP=0x401000, RSP=0x8000, ORIG_RAX=orig_rax, RAX=rax)
    new, at, data = machine.enter(regs, ENTRY, None)
    r = machine.REGISTERS.unpack(new)
    assert r[machine.RIP] == ENTRY and r[machine.RSP] == at == 0x8000 - 128 - 8
    assert r[machine.ORIG_RAX] == (1 << 64) - 1
    return struct.unpack("<Q", data)[0], r[machine.RAX]


def test_nobody_is_taken_who_waits_for_a_lock_or_for_memory():
    assert not machine.WAITING_CALLS & {202, 449, 454, 455, 9, 10, 11, 12, 25, 28}     # futex and its kin, mmap and its


def test_the_descriptor_is_at_the_thread_pointer():
    assert machine.thread_descriptor(registers(FS_BASE=0x7000_1000)) == 0x7000_1000


@pytest.mark.parametrize("error", [4, 512, 513, 514])
def test_an_interrupted_call_is_made_again(error):
    assert back(232, -error) == (0x401000 - 2, 232)


def test_a_call_with_a_restart_block_goes_on_with_it():
    assert back(35, -516) == (0x401000 - 2, 219)


@pytest.mark.parametrize("result", [0, 5, -9])
def test_a_finished_call_keeps_its_result(result):
    assert back(232, result) == (0x401000, result % (1 << 64))


def test_outside_a_call_nothing_is_restarted():
    assert back(-1, -4) == (0x401000, (1 << 64) - 4)
