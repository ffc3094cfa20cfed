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

/* What newfstatat writes, as far as it is read (arch/x86/include/uapi/asm/stat.h). */
struct psu_stat { uint64_t device, inode, links; uint64_t rest[15]; };

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

/* What psu_self holds for a block whose count[0] is at `count`, and back. */
static inline uint64_t psu_self_word(uint64_t count) { return count; }
static inline uint64_t psu_self_count(uint64_t word) { return word; }

/* Fresh code needs nothing: the mapping was never executed before (SDM 3A, 9.1.3). */
#define PSU_SYNC_CORES 0
#define PSU_STORE_UNIT 8 /* bytes of code that one store changes as a whole: turn.c */
static inline void psu_code_written(uint64_t address, uint64_t size) { (void)address, (void)size; }

/* ---- unwinding -------------------------------------------------------------------------------------- */

/* Offsets in a gate of each kind, see gates.S: the first instruction after the event; `left` is the counting itself. */
struct psu_gate_offsets { uint32_t claimed, counted, released, left, slow_leave, own[2]; };
extern const struct psu_gate_offsets psu_gate_offsets[];

/* How far a gate of `kind` has come at `offset`.  The entry is in rbp from before it is claimed until after it is given
 * back. */
static inline struct psu_gate_state psu_gate_state(uint32_t kind, uint32_t offset)
{
    const struct psu_gate_offsets *o = &psu_gate_offsets[kind];
    int leaving = offset >= o->slow_leave; /* in the slow path on the way out */
    int entry = o->claimed && ((offset >= o->claimed && offset < o->released) || leaving);
    return (struct psu_gate_state){(offset >= o->counted && offset <= o->left) || leaving, entry ? 6 : -1};
}

/* Where libgcc's _Unwind_Context keeps the program counter, in words: behind 18 registers and the CFA, since GCC 3. */
#define CONTEXT_RA 19

/* ---- routes.S --------------------------------------------------------------------------------------- */

/* What routes.S pushes, lowest address first, before it calls C. */
struct psu_frame {
    uint64_t rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, rbp, flags;
    uint64_t left[2];      /* for psu_side_undone: frame pointer and return address of the gate's caller */
    uint64_t target;       /* where to jump to, for the actions that jump */
    uint64_t back;         /* return address in the gate */
    uint64_t above[2];     /* what the gate has on the stack: see gates.S for each kind */
};

/* See the shim's routes.c for what these are for. */
static inline void psu_frame_give_block(struct psu_frame *f, uint64_t self) { f->r11 = self; }
static inline void psu_frame_give_entry(struct psu_frame *f, uint64_t side) { f->rbp = side; }
/* Where routines return to, as unwinders see it, from a gate that is undone or left: its frame without its personality
 * routine.  One store turns to it, so that unwinding is right at every instruction. */
extern const char psu_plain_undone[], psu_side_undone[];
#define THEN() __atomic_signal_fence(__ATOMIC_SEQ_CST)
static inline void psu_frame_undo_plain(struct psu_frame *f)
{
    f->r11 = f->above[0];
    f->back = (uint64_t)psu_plain_undone;
}
static inline void psu_frame_undo_side(struct psu_frame *f) { f->rbp = f->above[0]; }
static inline uint64_t psu_frame_pointer(const struct psu_frame *f) { return f->rbp; }
static inline uint64_t psu_frame_caller(const struct psu_frame *f) { return f->above[0]; }
static inline void psu_frame_return_to(struct psu_frame *f, uint64_t fp, uint64_t address)
{
    f->left[0] = fp;
    f->left[1] = address;
    THEN();
    f->back = (uint64_t)psu_side_undone;
    THEN();
    f->rbp = fp;
    THEN();
    f->back = address;
}
static inline void psu_frame_leave(struct psu_frame *f, uint32_t kind)
{
    const uint64_t *entry = (const uint64_t *)f->rbp;
    if (kind == 0)
        psu_frame_undo_plain(f);
    else
        psu_frame_return_to(f, entry[SIDE_FP / 8], entry[SIDE_RETURN / 8]);
}

static inline struct psu_call psu_frame_side_call(const struct psu_frame *f)
{
    return (struct psu_call){(uint64_t)&f->above[0], f->above[1], f->above[0]};
}
static inline struct psu_call psu_frame_full_call(const struct psu_frame *f)
{
    return (struct psu_call){(uint64_t)&f->back, f->above[0], f->rbp}; /* as if it had pushed rbp, as SIDE does */
}

/* Where psu_frame has volatile general register n of psu_gate.preserve; 0 if it is none. */
#define PSU_AT(r) (__builtin_offsetof(struct psu_frame, r) / 8)
static inline uint64_t *psu_frame_register(struct psu_frame *f, uint32_t n)
{
    static const int8_t place[16] = {PSU_AT(rax), PSU_AT(rcx), PSU_AT(rdx), -1, -1, -1, PSU_AT(rsi), PSU_AT(rdi),
                                     PSU_AT(r8), PSU_AT(r9), PSU_AT(r10), PSU_AT(r11), -1, -1, -1, -1};
    return n < 16 && place[n] >= 0 ? (uint64_t *)f + place[n] : 0;
}

/* A call with its registers on the stack (poor.c, psu_full_stacked): its frame pointer is at &psu_frame.left. */
#define PSU_FRAME_POINTER 6
extern const char psu_stacked_back[];
static inline struct psu_frame *psu_stacked_frame(uint64_t fp)
{
    return (struct psu_frame *)(fp - __builtin_offsetof(struct psu_frame, left));
}
static inline void psu_frame_stack(struct psu_frame *f) /* a frame record */
{
    f->left[0] = f->rbp;
    f->left[1] = f->above[0];
}
/* Bytes below psu_frame, so that the version finds the stack aligned as it would have been. */
static inline uint32_t psu_stacked_size(uint32_t vectors) { return 8 + (vectors ? 16 * 64 : 0); }

/* psu_gate.preserve, upper half: bit n is vector register n, up to 512 bits long. */
#define PSU_SAVED_VECTORS 16
#define PSU_GENERAL_BITS 0xffffu
#define PSU_SAVED_GENERAL 16
#define PSU_VECTOR_SIZE 64

/* The gates, what they read, and the routines that they call. */
extern uint8_t psu_gate_area[];
extern const char psu_plain_gates[], psu_side_gates[], psu_full_gates[];
extern const char psu_plain_pending[], psu_plain_redirect[], psu_side_pending[], psu_side_redirect[];
extern const char psu_full_pending[], psu_full_redirect[];

#endif
