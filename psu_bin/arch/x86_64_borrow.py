"""Borrowing one thread of an x86-64 program to start the agent: what to do with its registers.

The thread is stopped once.  Its registers are changed in one PTRACE_SETREGSET so that it runs the shim's borrow entry,
which saves every register and the whole extended state itself, starts the agent, restores everything and returns to
where the thread was.  psu-bin may die at any moment: before the one store nothing happened, after it the thread needs
nobody.

A system call in progress is restarted by hand, because the stop alone makes the kernel return EINTR from calls that it
does not restart (epoll_wait, semop, rt_sigtimedwait, io_getevents, recv with a timeout: signal(7)).
"""

from __future__ import annotations

import struct

from psu_bin.arch import Waiting

# Calls in which a thread waits and that neither malloc nor the dynamic linker makes: a thread found in one of them
# is not inside those, so that the agent's pthread_create may use them.
WAITING_CALLS = frozenset((
    0, 7, 17, 19, 23, 34, 35, 42, 43, 44, 45, 46, 47, 61, 65, 68, 69, 70, 73, 128, 130, 208, 220, 230, 232, 240, 242, 243, 247,
    270, 271, 281, 288, 295, 299, 327, 333, 426, 441))
EINTR, ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 4, 512, 513, 514, 516
NR_RESTART_SYSCALL = 219
SYSCALL_SIZE = 2
RED_ZONE = 128
STACK_ALIGN = 1                     # that the entry needs
UNFIT_REGSET, UNFIT_HEADER = 0, 0   # no state of a processor forbids it
THREAD_REGSET = 0                   # the thread pointer is among the general registers
# What a handler of a signal returns to: mov $15,%rax (or %eax); syscall.  Unwinders know signal frames by it.
SIGRETURN = (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))

REGISTERS = struct.Struct("<27Q")   # struct user_regs_struct
RAX, ORIG_RAX, RIP, RSP, FS_BASE = 10, 15, 16, 19, 21


def program_counter(regs: bytes, waiting: Waiting | None) -> tuple[int, int, int]:
    """(program counter, stack pointer, number of the system call it is in or -1) of a register set.

    `waiting` is not needed: the registers tell."""
    r = REGISTERS.unpack_from(regs)
    nr = r[ORIG_RAX] - (1 << 64) if r[ORIG_RAX] >> 63 else r[ORIG_RAX]
    return r[RIP], r[RSP], nr


def return_addresses(regs: bytes) -> tuple[int, ...]:
    """Those that are in registers."""
    return ()


def thread_descriptor(regs: bytes) -> int:
    """Where the C library's descriptor of the thread begins, from its register set.

    It lies above the stack that pthread_create has made, or was given, with the thread-local variables between them."""
    return REGISTERS.unpack_from(regs)[FS_BASE]


def enter(regs: bytes, entry: int, waiting: Waiting | None) -> tuple[bytes, int, bytes]:
    """(new register set, address, bytes to write there first) to make the thread run `entry` and come back."""
    r = list(REGISTERS.unpack_from(regs))
    if not r[ORIG_RAX] >> 63:
        error = (1 << 64) - r[RAX] if r[RAX] >> 63 else 0
        if error in (EINTR, ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND):
            r[RAX] = r[ORIG_RAX]
            r[RIP] -= SYSCALL_SIZE
        elif error == ERESTART_RESTARTBLOCK:
            r[RAX] = NR_RESTART_SYSCALL
            r[RIP] -= SYSCALL_SIZE
    r[ORIG_RAX] = (1 << 64) - 1     # else the kernel would restart the call on top of this
    at = r[RSP] - RED_ZONE - 8
    back = struct.pack("<Q", r[RIP])
    r[RSP], r[RIP] = at, entry
    return REGISTERS.pack(*r) + regs[REGISTERS.size:], at, back
