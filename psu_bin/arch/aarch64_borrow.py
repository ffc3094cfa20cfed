"""Borrowing one thread of an AArch64 program to start the agent: what to do with its registers.

As x86_64_borrow, with three differences.  The shim's entry expects the program counter at sp - 16 (there is no red
zone). A stopped thread's registers do not tell whether it is in a system call, and where the kernel returns EINTR the
first argument is lost: x0 holds the result.  So the caller says what /proc showed while the thread waited, and that it
did nothing else since.  And where the kernel restarts the call by itself, it has set pc back to the svc before anybody
looks (arch/arm64/kernel/signal.c, do_signal): only that a call of restart_syscall is due is forgotten when pc changes.
"""

from __future__ import annotations

import struct

from psu_bin.arch import Waiting

# Calls in which a thread waits and that neither malloc nor the dynamic linker makes
# (include/uapi/asm-generic/unistd.h). epoll_pwait, epoll_pwait2, pselect6, ppoll, read, readv, pread64, preadv, flock,
# signalfd's read among them, wait4, waitid, accept, accept4, connect, sendto, recvfrom, sendmsg, recvmsg, recvmmsg,
# rt_sigsuspend, rt_sigtimedwait, msgrcv, semop, semtimedop, mq_timedreceive, io_getevents, io_pgetevents, nanosleep,
# clock_nanosleep, io_uring_enter.  (Not futex: who waits for one of malloc's locks may hold the linker's.)
WAITING_CALLS = frozenset((22, 441, 72, 73, 63, 65, 67, 69, 32, 260, 95, 202, 242, 203, 206, 207, 211, 212, 243,
                           133, 137, 188, 193, 192, 183, 4, 292, 101, 115, 426))
NR_NANOSLEEP, NR_CLOCK_NANOSLEEP, NR_FUTEX, NR_RESTART_SYSCALL = 101, 115, 98, 128
TIMER_ABSTIME = 1
FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_COMMAND = 0, 9, 0x7F
EINTR = 4
SYSCALL_SIZE = 4
FRAME = 16
STACK_ALIGN = 16                    # of every access through sp

REGISTERS = struct.Struct("<34Q")   # struct user_pt_regs: x0 to x30, sp, pc, pstate
X0, X1, X3, X8, LR, SP, PC = 0, 1, 3, 8, 30, 31, 32
# NT_ARM_SSVE: the registers of streaming mode, in which the C library's code would be illegal.  More than the header is
# there only in that mode.
UNFIT_REGSET, UNFIT_HEADER = 0x40B, 16
THREAD_REGSET = 0x401               # NT_ARM_TLS: tpidr_el0
# glibc's descriptor is below the thread pointer, of about so many bytes (0x740 in 2.36); no code is named in its first members.
DESCRIPTOR = 0x700
SIGRETURN = (bytes.fromhex("681180d2010000d4"),)       # mov x8, #139; svc #0: what a handler of a signal returns to (vDSO)


def program_counter(regs: bytes, waiting: Waiting | None) -> tuple[int, int, int]:
    """(program counter, stack pointer, number of the system call it is in or -1) of a register set.

    `waiting`: the call in which it was seen before it was stopped, None where it may have done something since."""
    r = REGISTERS.unpack_from(regs)
    here = waiting is not None and waiting.stack_pointer == r[SP] and waiting.number == r[X8] and (
        r[PC] in (waiting.program_counter, waiting.program_counter - SYSCALL_SIZE))
    return r[PC], r[SP], waiting.number if here and waiting else -1


def return_addresses(regs: bytes) -> tuple[int, ...]:
    """Those that are in registers: a leaf function's."""
    return (REGISTERS.unpack_from(regs)[LR],)


def thread_descriptor(regs: bytes) -> int:
    """Where the C library's descriptor of the thread begins, or a little above, from its THREAD_REGSET.

    It lies above the stack that pthread_create has made, or was given."""
    return int.from_bytes(regs[:8], "little") - DESCRIPTOR


def enter(regs: bytes, entry: int, waiting: Waiting | None) -> tuple[bytes, int, bytes]:
    """(new register set, address, bytes to write there first) to make the thread run `entry` and come back."""
    r = list(REGISTERS.unpack_from(regs))
    number = program_counter(regs, waiting)[2]
    if waiting and number >= 0:
        if r[PC] != waiting.program_counter:
            if _goes_on(number, r):
                r[X8] = NR_RESTART_SYSCALL
        elif r[X0] == (1 << 64) - EINTR:
            r[X0] = waiting.first
            r[PC] -= SYSCALL_SIZE
    at = r[SP] - FRAME
    back = struct.pack("<Q", r[PC])
    r[SP], r[PC] = at, entry
    return REGISTERS.pack(*r) + regs[REGISTERS.size:], at, back


def _goes_on(number: int, r: list[int]) -> bool:
    """Whether the kernel remembers how much of the time is left (ERESTART_RESTARTBLOCK); else the call names a point in
    time."""
    if number == NR_CLOCK_NANOSLEEP:
        return not r[X1] & TIMER_ABSTIME
    if number == NR_FUTEX:
        return r[X1] & FUTEX_COMMAND in (FUTEX_WAIT, FUTEX_WAIT_BITSET) and r[X3] != 0
    return number == NR_NANOSLEEP
