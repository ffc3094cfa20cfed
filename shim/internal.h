/* SPDX-License-Identifier: MIT
 *
 * internal.h: what the shim's C files share.  runtime.h is the contract with the outside; nothing here is visible
 * there.
 *
 * Rules for all of it: raw system calls, errno untouched, no heap, no abort, no lock on a path of an application
 * thread. What runs on application threads (counters.c, entries.c, routes.c) is async-signal-safe.
 */
#ifndef PSU_INTERNAL_H
#define PSU_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

/* How far a gate has come, for its personality routine (psu_gate_state in arch.h). */
struct psu_gate_state {
    int counted;   /* in, and not yet out */
    int entry;     /* DWARF number of the register with the side-frame entry that was claimed, -1: none */
};

/* The call that wants a side-frame entry: where it stands on the stack, as gates store it in psu_side.sp, and what the gate
 * found as return address and frame pointer. */
struct psu_call { uint64_t sp, return_address, fp; };

#include "arch.h"

struct psu_runtime; /* of this very library, whoever else has one */
extern struct psu_runtime psu_runtime __attribute__((visibility("protected")));

#include "runtime.h"

#define PSU_PAGE 4096ul /* the smallest there is; psu-bin lays out what it has mapped in those of the kernel */
#define PSU_PAGES(size) (((size) + PSU_PAGE - 1) & ~(PSU_PAGE - 1))

enum { PSU_EPERM = 1, PSU_ESRCH = 3, PSU_EAGAIN = 11, PSU_ENOMEM = 12, PSU_EFAULT = 14, PSU_EBUSY = 16, PSU_EEXIST = 17,
       PSU_EINVAL = 22, PSU_ENOSPC = 28, PSU_ENOSYS = 38, PSU_ENOENT = 2 };

#define psu_syscall(nr, ...) psu_syscall_(nr, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define psu_syscall_(nr, a, b, c, d, e, f, ...) \
    psu_syscall6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* ---- syscalls.c: the few that are used in more than one place; results are addresses/0 or -errno ---- */
enum { PSU_PROT_READ = 1, PSU_PROT_WRITE = 2, PSU_PROT_EXEC = 4 };
void *psu_map_anonymous(size_t size);         /* private, zero, no huge pages, not reserved; 0 when there is none */
void psu_small_pages(void);                   /* the shim's own zeroed data: no huge pages from here on */
int psu_thread_alive(uint32_t tid);           /* of this process */
long psu_thread_count(void);                  /* 0: unknown (no /proc) */
void psu_futex_wake(uint32_t *word, int waiters);
/* Waits while *word == value, at most `milliseconds` (0: no limit). */
void psu_futex_wait(uint32_t *word, uint32_t value, uint32_t milliseconds);
uint64_t psu_nanoseconds(void);       /* of the monotonic clock; 0 where a sandbox forbids it */
uint32_t psu_getpid(void);
uint32_t psu_gettid(void);

/* ---- counters.c, entries.c ---- */
/* Where a PSU_FULL gate keeps the registers that it restores: general ones by hardware number, vector ones in full. */
struct psu_save {
    struct psu_save *next;
    uint64_t in_use;
    uint64_t reserved[6];
    uint64_t general[PSU_SAVED_GENERAL];
    uint8_t vector[PSU_SAVED_VECTORS][PSU_VECTOR_SIZE];
};
#define PSU_IN_USE 1ull                       /* psu_side.sp, psu_save.in_use */
extern __thread uint64_t psu_self;            /* the only thread-local variable: what PSU_SELF gives, 0: no block yet */
/* The address of `count` and what else the architecture's gates want to know. */
#define PSU_SELF(block) psu_self_word((uint64_t)(block)->count)
static inline struct psu_block *psu_own_block(void)
{
    return psu_self ? (struct psu_block *)(psu_self_count(psu_self) - offsetof(struct psu_block, count)) : 0;
}
extern struct psu_counter psu_totals[PSU_INDICES], psu_shared[PSU_INDICES];
struct psu_block *psu_block_get(void);        /* this thread's block, made if need be; 0 without memory */
void *psu_more(size_t size);                  /* zero pages, 0 without memory or while psu_runtime.silent */
struct psu_side *psu_side_chain(struct psu_block *b, struct psu_side *sides, uint32_t count); /* a list of new ones */
struct psu_side *psu_side_claim(struct psu_block *b, const struct psu_call *call);  /* 0 without memory */
void psu_side_release(struct psu_block *b, struct psu_side *side);
void psu_side_give_save(struct psu_block *b, struct psu_side *side); /* what a PSU_FULL gate kept, if any */
struct psu_save *psu_save_claim(struct psu_block *b);
void psu_save_release(struct psu_block *b, struct psu_save *save);
void psu_count_leave(uint32_t index);         /* on behalf of the calling thread */
/* Functions in which a thread is that will count a call out, while the gate's address may be off its stack already. */
#define PSU_LEAVING __attribute__((section("psu_leaving")))
extern const char __start_psu_leaving[] __attribute__((visibility("hidden")));
extern const char __stop_psu_leaving[] __attribute__((visibility("hidden")));
extern uint8_t psu_objects_without_gate[PSU_INDICES]; /* somebody is or was in it without a gate: never freed */
void psu_blocks_adopt(void);                  /* the calling thread's block carries its own tid (after fork) */
void psu_blocks_inherit(void);                /* the same, and what becomes of the other threads' blocks */
void psu_blocks_recycle(void);                /* agent only */
void psu_note_start_routine(struct psu_block *b, struct psu_side *s, const struct psu_call *call, const struct psu_gate *g);
void psu_start_routine_over(struct psu_block *b, const struct psu_side *s);   /* if it is the call of that entry */
extern uint64_t psu_thread_return;            /* where start routines return to in the C library; written by the agent */
int psu_blocks_want_recycling(void);

/* ---- gates (arch/ARCH, routes.c) ---- */
struct psu_kind {
    const char *first;                        /* gate 0 */
    struct psu_gate *data;
    uint16_t stride, look;                    /* look: offset of the entry that looks (gates.S); 0: there is none */
    uint32_t count;
    const void *pending, *redirect;           /* routines that psu_gate.code may point at instead of a body */
};
extern const struct psu_kind psu_kinds[PSU_GATE_KINDS];

/* The vector registers in `which`, the upper half of psu_gate.preserve: from and to the area. */
void psu_vectors_save(uint8_t to[PSU_SAVED_VECTORS][PSU_VECTOR_SIZE], uint32_t which);
void psu_vectors_restore(const uint8_t from[PSU_SAVED_VECTORS][PSU_VECTOR_SIZE], uint32_t which);

/* What routes.S is answered: go on with the gate, or jump to `target`, the gate being undone.  On the way out: or return
 * to the gate's caller, from a PLAIN gate or from another.  From a PSU_FULL gate also, on the way in: call `target` with
 * the registers on the stack; times 256, the bytes that this takes are added. */
enum psu_action { PSU_RETURN = 0, PSU_UNDONE = 1, PSU_LEFT_PLAIN = 1, PSU_LEFT = 2, PSU_STACKED = 3 };

/* ---- poor.c: a PSU_FULL gate without memory ---- */
uint32_t psu_entering_poor(struct psu_frame *f, struct psu_gate *g, const struct psu_call *call);
int psu_spare(const struct psu_side *s);      /* one of the entries that every thread may claim */
void psu_spare_release(struct psu_side *s);
extern uint64_t psu_full_otherwise[PSU_FULL_GATES];   /* psu_switch.otherwise of the gate's version; written by the agent */
/* routes.c: fills in the entry, which becomes the frame pointer, and `save`, if any. */
void psu_full_keep(struct psu_frame *f, const struct psu_gate *g, struct psu_side *s, struct psu_save *save);
/* routes.c: where a call that is counted in `g` goes.  *undo: not to g's own version. */
uint64_t psu_destination(struct psu_gate *g, int *undo);
/* entries.c: the entries of the gates that this call was reached from by tail calls, at the same place of the stack; how
 * many, or -1 for more than PSU_TAIL_CALLS. */
#define PSU_TAIL_CALLS 16
int psu_tail_callers(const struct psu_call *call, const struct psu_side *entries[PSU_TAIL_CALLS]);

void psu_gates_start(void);                   /* when the shim is loaded, and again in every agent */
/* Before gate `number` is used for `slot`, and maybe for the first time: makes its copy near the slot, if that is
 * better. */
void psu_gate_prepare(uint32_t kind, uint32_t number, uint64_t slot);
/* The data of gate `number` < count: of the one that is in use, or, of an unused one, of the better one for `slot`. */
struct psu_gate *psu_gate_data(uint32_t kind, uint32_t number, uint64_t slot);

static inline int psu_gate_live(const struct psu_kind *k, const struct psu_gate *g)
{
    uint64_t code = __atomic_load_n(&g->code, __ATOMIC_RELAXED);
    return code && code != (uint64_t)k->redirect;
}

/* Where the gate with data `g` is, 0 when it is none of this kind. */
static inline uint64_t psu_gate_first(uint32_t kind, const struct psu_gate *g)
{
    if (kind >= PSU_GATE_KINDS)
        return 0;
    const struct psu_kind *k = &psu_kinds[kind];
    uint64_t delta = 0, offset = (uint64_t)g - (uint64_t)k->data;
    if (offset >= k->count * sizeof *g) {
        delta = kind == PSU_FULL ? 0 : psu_runtime.near_delta;
        offset -= delta;
    }
    return offset < k->count * sizeof *g ? (uint64_t)k->first + delta + offset / sizeof *g * k->stride : 0;
}

/* Where the slot leads that the gate with data `g` serves now. */
static inline uint64_t psu_gate_entry(uint32_t kind, const struct psu_gate *g) { return psu_gate_first(kind, g) + g->entry; }

/* The data of the gate that `address` lies in, 0 when that is none of this kind. */
static inline struct psu_gate *psu_gate_at(uint32_t kind, uint64_t address)
{
    const struct psu_kind *k = &psu_kinds[kind];
    uint64_t delta = 0, offset = address - (uint64_t)k->first, size = (uint64_t)k->stride * k->count;
    if (offset >= size) {
        delta = kind == PSU_FULL ? 0 : psu_runtime.near_delta;
        offset -= delta;
    }
    return offset < size ? (struct psu_gate *)((uint64_t)&k->data[offset / k->stride] + delta) : 0;
}

/* ---- membarrier.c ---- */
void psu_membarrier_register(void);
int64_t psu_membarrier(void);                 /* 0 or -errno */
int64_t psu_membarrier_code(void);            /* the same, and no core goes on with instructions fetched before */

/* ---- libc.c: what the C library offers, all of it optional ---- */
void *psu_find(const char *name);             /* a function of the process, not one of ours; 0: absent */
void *psu_find_symbol(void *handle, const char *name, const char *version);  /* handle 0: the default scope */
void *psu_open_library(const char *path, int load);  /* load 0: only when it is there already */
void psu_close_library(void *library);
int psu_errno_get(void);
void psu_errno_set(int value);

/* ---- pins.c: agent only ---- */
int64_t psu_pin(struct psu_pin *p, uint32_t count);  /* 0 or -errno */
void psu_pins_keep(void);                     /* the transaction that pinned is committed */
void psu_pins_drop(void);                     /* it is not */

/* ---- environment.c ---- */
int psu_environment(const char *name, char *value, size_t size);  /* 1: found; value is cut to size */

/* ---- commands.c, commit.c, reclaim.c: agent only ---- */
void psu_run_command(void);
int64_t psu_turn(const struct psu_code *code, const struct psu_turn *turns, uint32_t count, uint64_t *failed);
void psu_turn_repair(void);                   /* in a fork child, before its own agent serves */
int64_t psu_commit(const struct psu_commit *record, size_t size, uint64_t *failed);
void psu_commit_repair(void);                 /* a fork child got a half-made commit of its parent's agent */
int psu_staged(uint64_t address, uint64_t size, uint32_t keep);   /* exact match: index in staged, or -1 */
void psu_unstage(uint64_t address, uint64_t size);
void psu_unstage_at(uint32_t i);              /* the last one takes its place */
extern uint32_t psu_live_gates[PSU_INDICES];  /* gates whose code leads into the object */
extern struct psu_object psu_objects[PSU_INDICES];
uint32_t psu_reclaim(void);                   /* frees what is quiescent; returns how many it freed */
void psu_reclaim_repair(void);                /* in a fork child, after psu_commit_repair */
int64_t psu_write_off(const struct psu_surplus *s, uint32_t count, uint64_t *failed);

/* ---- agent.c, threads.c ---- */
void psu_agent_ensure(void);                  /* start it unless there is one */
void *psu_agent_main(void *unused);
void psu_agent_wake(void);
void psu_threads_start(void);                 /* from the constructor: find the real functions */
extern uint32_t psu_main_exited;              /* the main thread leaves, or may have left */
void psu_main_watch(void);                    /* have psu_main_exited say so */

/* ---- unwind.c ---- */
void psu_unwinder_find(void);                 /* ahead of time, when the dynamic linker is asked anyway */

/* ---- frames.c ---- */
void psu_frames_start(void);
int psu_frames_in_front(void);                /* unwinders ask us first */
int psu_library_loaded(const char *name);     /* whether a loaded file's name ends like this; takes the dynamic linker's lock */
void psu_frames_add(const struct psu_new_object *o);
void psu_frames_remove(uint32_t index, uint64_t eh_frame);
void psu_frames_add_near(uint64_t address, uint64_t size, const void *eh_frame);

/* ---- debugger.c: agent only ---- */
void psu_debugger_add(uint32_t index, uint64_t symfile, uint64_t size);  /* size 0: there is none */
void psu_debugger_remove(uint32_t index);
void psu_debugger_repair(void);               /* in a fork child, before psu_commit_repair */
void psu_debugger_add_near(uint64_t address, uint64_t size, const uint8_t *eh_frame);

/* ---- memory.c ---- */
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);

#endif
