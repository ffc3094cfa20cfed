/* SPDX-License-Identifier: MIT
 *
 * What the generic C files need from AArch64: raw system calls (no errno, no libc), the counting instructions, the
 * registers that the assembly routines of routes.S save for the C code behind them, and what makes code that was
 * written as data visible to instruction fetch.
 */
#ifndef PSU_ARCH_H
#define PSU_ARCH_H

#include <stdint.h>

#include "gates.h"

/* System call numbers (include/uapi/asm-generic/unistd.h in Linux). */
enum {
    NR_openat = 56, NR_close = 57, NR_read = 63, NR_newfstatat = 79, NR_futex = 98, NR_clock_gettime = 113,
    NR_tgkill = 131, NR_rt_sigprocmask = 135, NR_prctl = 167, NR_getpid = 172, NR_gettid = 178, NR_munmap = 215,
    NR_mmap = 222, NR_mprotect = 226, NR_madvise = 233, NR_membarrier = 283
};

/* What newfstatat writes, as far as it is read (include/uapi/asm-generic/stat.h). */
struct psu_stat { uint64_t device, inode; uint32_t mode, links; uint64_t rest[13]; };

/* syscall.S: a system call that keeps all vector registers.  The kernel clears those of SVE beyond their 128 bits. */
long psu_syscall6(long nr, long a, long b, long c, long d, long e, long f);

/* An exclusive pair, whatever the processor has: a signal handler in between clears the monitor (the exception's return
 * does), so that the store fails and is tried again.  Store-release: a leave is seen by nobody before its enter, nor
 * before the last access of what it leaves (reclaim.c). */
static inline void psu_count(uint32_t *word)
{
    uint32_t value, failed;
    __asm__ volatile("1: ldxr %w0, %2\n\tadd %w0, %w0, #1\n\tstlxr %w1, %w0, %2\n\tcbnz %w1, 1b"
                     : "=&r"(value), "=&r"(failed), "+Q"(*word) : : "memory");
}

/* *word: 0 -> value.  Returns what was there before.  Signal handlers of this thread may want it, too: gates.S, SIDE. */
static inline uint64_t psu_claim_word(volatile uint64_t *word, uint64_t value)
{
    uint64_t old;
    uint32_t failed;
    __asm__ volatile("1: ldaxr %0, %2\n\tcbnz %0, 2f\n\tstxr %w1, %3, %2\n\tcbnz %w1, 1b\n2:"
                     : "=&r"(old), "=&r"(failed), "+Q"(*word) : "r"(value) : "memory");
    return old;
}

/* *word: value -> 0, in the same sense.  Whether it was `value`. */
static inline int psu_take_word(volatile uint64_t *word, uint64_t value)
{
    uint64_t old;
    uint32_t failed;
    __asm__ volatile("1: ldaxr %0, %2\n\tcmp %0, %3\n\tb.ne 2f\n\tstxr %w1, xzr, %2\n\tcbnz %w1, 1b\n2:"
                     : "=&r"(old), "=&r"(failed), "+Q"(*word) : "r"(value) : "memory", "cc");
    return old == value;
}

static inline void psu_pause(void) { __asm__ volatile("yield"); }

/* What psu_self holds for a block whose count[0] is at `count`, and back. */
extern uint64_t psu_self_flags; /* 1 << SELF_LSE_BIT, or 0 */
static inline uint64_t psu_self_word(uint64_t count) { return count | psu_self_flags; }
static inline uint64_t psu_self_count(uint64_t word) { return word & ~(1ull << SELF_LSE_BIT); }

/* Makes what was written into [address, address + size), readable and not yet executable, what instruction fetch sees
 * there on every core (commands.c, protect).  PSU_SYNC_CORES: after that, and after the code became executable, every
 * core that runs a thread of ours must pass a context synchronisation event before it goes there. */
#define PSU_SYNC_CORES 1
#define PSU_STORE_UNIT 4 /* bytes of code that one store changes as a whole: turn.c */
void psu_code_written(uint64_t address, uint64_t size);

/* ---- unwinding -------------------------------------------------------------------------------------- */

/* Offsets in a gate of each kind, see gates.S: `left` and `pair_stored` are those of the last instruction at which a
 * leave is not, or may not be, counted; the others of the first instruction after the event.  The out-of-line counting
 * pair of entering is [pair, pair_left). */
struct psu_gate_offsets {
    uint32_t counted, left, pair_counted, pair_stored, slow_leave;
    uint32_t claimed, moved, back, released, pair, pair_left;
};
extern const struct psu_gate_offsets psu_gate_offsets[];

/* How far a gate of `kind` has come at `offset`.  Where an exclusive pair's store was tried and not yet checked, the
 * answer is the one that leaves the counts too high. */
static inline struct psu_gate_state psu_gate_state(uint32_t kind, uint32_t offset)
{
    const struct psu_gate_offsets *o = &psu_gate_offsets[kind];
    struct psu_gate_state s = {0, -1};
    s.counted = (offset >= o->counted && offset <= o->left) || (offset >= o->pair_counted && offset < o->pair_stored)
        || offset >= o->slow_leave;
    if ((offset >= o->moved && offset < o->back) || (offset >= o->pair && offset < o->pair_left))
        s.entry = 29;
    else if ((offset >= o->claimed && offset < o->released) || (offset >= o->slow_leave && o->released != GATE_NEVER))
        s.entry = 17;
    return s;
}

/* Where libgcc's _Unwind_Context keeps the program counter, in words: behind 98 registers and the CFA, since
 * GCC 4.8. */
#define CONTEXT_RA 99

/* ---- routes.S --------------------------------------------------------------------------------------- */

/* What routes.S stores, lowest address first, before it calls C. */
struct psu_frame {
    uint64_t x[19];        /* x9, x16 and x17 are what psu-bin's own code needed, see routes.S */
    uint64_t flags;
    uint64_t fp, lr;
    uint64_t target;       /* where to jump to, for the actions that jump */
    uint64_t back;         /* address in the gate */
};

/* See the shim's routes.c for what these are for. */
static inline void psu_frame_give_block(struct psu_frame *f, uint64_t self) { f->x[16] = self; }
static inline void psu_frame_give_entry(struct psu_frame *f, uint64_t side) { f->x[17] = side; }
extern const char psu_plain_undone[];
/* routes.S takes the frame record away. */
static inline void psu_frame_undo_plain(struct psu_frame *f) { f->lr = (uint64_t)psu_plain_undone; }
static inline void psu_frame_leave(struct psu_frame *f, uint32_t kind) { (void)f, (void)kind; /* it has been left */ }
static inline void psu_frame_undo_side(struct psu_frame *f) { (void)f; /* nothing was changed */ }
static inline uint64_t psu_frame_pointer(const struct psu_frame *f) { return f->fp; }
static inline uint64_t psu_frame_caller(const struct psu_frame *f) { return f->lr; }
static inline void psu_frame_return_to(struct psu_frame *f, uint64_t fp, uint64_t address)
{
    /* One instruction, so that unwinders never see one of them alone. */
    __asm__ volatile("stp %1, %2, %0" : "=Q"(*(uint64_t(*)[2])&f->fp) : "r"(fp), "r"(address));
}
static inline struct psu_call psu_frame_side_call(const struct psu_frame *f)
{
    return (struct psu_call){(uint64_t)(f + 1), f->lr, f->fp};
}
static inline struct psu_call psu_frame_full_call(const struct psu_frame *f) { return psu_frame_side_call(f); }
/* The volatile general registers of psu_gate.preserve: bits 0 to 15 x0 to x15, 22 x18. */
#define PSU_GENERAL_BITS (0xffffu | 1u << 22)
#define PSU_SAVED_GENERAL 23
static inline uint64_t *psu_frame_register(struct psu_frame *f, uint32_t n) { return &f->x[n == 22 ? 18 : n]; }

/* psu_gate.preserve, upper half, as vectors.S has it: bits 0 to 3 are v0 to v3, in which results may be; 4 is v4 to v7; 5
 * is v8 to v15, whose lower halves callees keep, and callers may rely on the rest, too; bit 8 + n is both of v16+2n and
 * v17+2n.  With SVE in full length, which is up to 2048 bits. */
#define PSU_SAVED_VECTORS 32
#define PSU_VECTOR_SIZE 256

/* A call with its registers on the stack (poor.c, psu_full_stacked): its frame pointer is at &psu_frame.fp. */
#define PSU_FRAME_POINTER 29
extern const char psu_stacked_back[];
static inline struct psu_frame *psu_stacked_frame(uint64_t fp)
{
    return (struct psu_frame *)(fp - __builtin_offsetof(struct psu_frame, fp));
}
static inline void psu_frame_stack(struct psu_frame *f) { (void)f; /* fp and lr are a frame record */ }
static inline uint32_t psu_stacked_size(uint32_t vectors) { return vectors ? PSU_SAVED_VECTORS * PSU_VECTOR_SIZE : 0; }

/* The gates, what they read, and the routines that they call. */
extern uint8_t psu_gate_area[];
extern const char psu_plain_gates[], psu_side_gates[], psu_full_gates[];
extern const char psu_plain_pending[], psu_plain_redirect[], psu_side_pending[], psu_side_redirect[];
extern const char psu_full_pending[], psu_full_redirect[];

#endif
