"""The system calls of the agent on x86-64, as a seccomp filter sees them: (name, number, arguments, vital).

Vital are those without which nothing can be attached; the others may fail with an error number, but must not end the process.
"""

from __future__ import annotations

AUDIT_ARCH = 0xC000003E

# mmap's and mprotect's arguments: PROT_READ 1, WRITE 2, EXEC 4; MAP_PRIVATE|ANONYMOUS 0x22, FIXED_NOREPLACE 0x100000.
AGENT = (
    ("mmap", 9, (0, 4096, 3, 0x22, -1), True),
    ("mmap", 9, (4096, 4096, 3, 0x100022, -1), True),
    ("mprotect(PROT_EXEC)", 10, (4096, 4096, 5), True),
    ("mprotect(PROT_WRITE|PROT_EXEC)", 10, (4096, 4096, 7), True),
    ("mprotect", 10, (4096, 4096, 1), True),
    ("munmap", 11, (4096, 4096), True),
    ("membarrier", 324, (16,), True),
    ("membarrier", 324, (8,), True),
    ("membarrier(SYNC_CORE)", 324, (64,), False),
    ("membarrier(SYNC_CORE)", 324, (32,), False),
    ("futex", 202, (4096, 128), True),
    ("futex", 202, (4096, 129, 1), True),
    ("mmap(PROT_NONE)", 9, (4096, 4096, 0, 0x104022, -1), False),
    ("madvise", 28, (4096, 4096, 15), False),
    ("clock_gettime", 228, (1,), False),
    ("tgkill", 234, (1, 1, 0), False),
    ("prctl", 157, (15,), False),
    ("getpid", 39, (), False),
    ("gettid", 186, (), False),
)

# What the C library calls to make a thread, in the thread that is borrowed and in the new one.  clone3 and rseq may be
# unknown to the filter if it says so with an error number: the C library then goes without.
THREAD = (
    ("mmap", 9, (0, 1 << 18, 0, 0x20022, -1), True),
    ("mprotect", 10, (4096, 1 << 18, 3), True),
    ("rt_sigprocmask", 14, (2, 4096, 4096, 8), True),
    ("clone", 56, (0x3D0F00,), True),
    ("clone3", 435, (4096, 88), False),
    ("set_robust_list", 273, (4096, 24), False),
    ("rseq", 334, (4096, 32, 0, 0x53053053), False),
    ("getpid", 39, (), False),
)
