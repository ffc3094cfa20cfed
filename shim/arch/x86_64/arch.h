/* SPDX-License-Identifier: MIT
 *
 * What the generic C files need from x86-64: raw system calls (no errno, no libc), the counting instructions, and the
 * registers that the assembly routines of routes.S save for the C code behind them.
 */
#ifndef PSU_ARCH_H
#define PSU_ARCH_H

#include <stdint.h>

#include "gates.h"

/* System call numbers (arch/x86/entry/syscalls/syscall_64.tbl in Linux). */
enum {
    NR_read = 0, NR_close = 3, NR_mmap = 9, NR_mprotect = 10, NR_munmap = 11, NR_rt_sigprocmask = 14, NR_madvise = 28,
    NR_getpid = 39, NR_prctl = 157, NR_gettid = 186, NR_futex = 202, NR_clock_gettime = 228, NR_tgkill = 234, NR_openat = 257,
    NR_newfstatat = 262, NR_membarrier = 324
};

static inline long psu_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* One instruction, so that a signal handler that counts in between loses nothing; not locked: the word has one writer.
 * */
static inline void psu_count(uint32_t *word) { __asm__ volatile("incl %0" : "+m"(*word)); }

/* *word: 0 -> value as one instruction.  Against signal handlers of this thread only, so without a lock prefix.
 * Returns what was there before. */
static inline uint64_t psu_claim_word(volatile uint64_t *word, uint64_t value)
{
    uint64_t old = 0;
    __asm__ volatile("cmpxchgq %2, %1" : "+a"(old), "+m"(*word) : "r"(value) : "memory", "cc");
    return old;
}

/* *word: value -> 0 as one instruction, in the same sense.  Whether it was `value`. */
static inline int psu_take_word(volatile uint64_t *word, uint64_t value)
{
    uint64_t old = value;
    __asm__ volatile("cmpxchgq %2, %1" : "+a"(old), "+m"(*word) : "r"(0ul) : "memory", "cc");
    return old == value;
}

static inline void psu_pause(void) { __asm__ volatile("pause"); }

/* What routes.S pushes, lowest address first, before it calls C. */
struct psu_frame {
    uint64_t rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, rbp, flags;
    uint64_t target;       /* where to jump to, for the actions that jump */
    uint64_t back;         /* return address in the gate */
    uint64_t above[2];     /* what the gate has on the stack: see gates.S for each kind */
};

/* What the C code behind routes.S answers: go on with the gate, or jump to `target`, the gate being undone. */
enum psu_action { PSU_RETURN = 0, PSU_UNDONE = 1 };

/* The gates, what they read, and the routines that they call. */
extern uint8_t psu_gate_area[];
/* Offsets in a gate of each kind, see gates.S: the first instruction after the event; `left` is the counting itself. */
struct psu_gate_offsets { uint32_t claimed, counted, released, left, slow_leave, own[2]; };
extern const struct psu_gate_offsets psu_gate_offsets[];
extern const char psu_plain_gates[], psu_side_gates[], psu_full_gates[];
extern const char psu_plain_pending[], psu_plain_redirect[], psu_side_pending[], psu_side_redirect[];
extern const char psu_full_pending[], psu_full_redirect[];

#endif
