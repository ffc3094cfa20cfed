"""The system calls of the agent on AArch64, as a seccomp filter sees them: (name, number, arguments, vital).

As in x86_64_calls: without vital ones nothing can be attached; the others may fail with an error number, but must not
end the process.  Numbers are those of include/uapi/asm-generic/unistd.h in Linux.
"""

from __future__ import annotations

AUDIT_ARCH = 0xC00000B7

# mmap's and mprotect's arguments: PROT_READ 1, WRITE 2, EXEC 4; MAP_PRIVATE|ANONYMOUS 0x22, FIXED_NOREPLACE 0x100000.
AGENT = (
    ("mmap", 222, (0, 4096, 3, 0x22, -1), True),
    ("mmap", 222, (4096, 4096, 3, 0x100022, -1), True),
    ("mprotect(PROT_EXEC)", 226, (4096, 4096, 5), True),
    ("mprotect(PROT_WRITE|PROT_EXEC)", 226, (4096, 4096, 7), True),
    ("mprotect", 226, (4096, 4096, 1), True),
    ("munmap", 215, (4096, 4096), True),
    ("membarrier", 283, (16,), True),
    ("membarrier", 283, (8,), True),
    ("membarrier(SYNC_CORE)", 283, (64,), False),
    ("membarrier(SYNC_CORE)", 283, (32,), False),
    ("futex", 98, (4096, 128), True),
    ("futex", 98, (4096, 129, 1), True),
    ("mmap(PROT_NONE)", 222, (4096, 4096, 0, 0x104022, -1), False),
    ("madvise", 233, (4096, 4096, 15), False),
    ("clock_gettime", 113, (1,), False),
    ("tgkill", 131, (1, 1, 0), False),
    ("prctl", 167, (15,), False),
    ("getpid", 172, (), False),
    ("gettid", 178, (), False),
)

# What the C library calls to make a thread, in the thread that is borrowed and in the new one.  clone3 and rseq may be
# unknown to the filter if it says so with an error number: the C library then goes without.
THREAD = (
    ("mmap", 222, (0, 1 << 18, 0, 0x20022, -1), True),
    ("mprotect", 226, (4096, 1 << 18, 3), True),
    ("rt_sigprocmask", 135, (2, 4096, 4096, 8), True),
    ("clone", 220, (0x3D0F00,), True),
    ("clone3", 435, (4096, 88), False),
    ("set_robust_list", 99, (4096, 24), False),
    ("rseq", 293, (4096, 32, 0, 0xD428BC00), False),
    ("getpid", 172, (), False),
)
