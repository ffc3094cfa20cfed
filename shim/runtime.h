/* SPDX-License-Identifier: MIT
 *
 * runtime.h: the contract between the shim (this folder, C, runs inside the target) and psu_bin
 * (Python, outside).  Every structure that crosses the process boundary is declared here, once, with its
 * offsets asserted; psu_bin/attach/shim.py repeats them as struct formats and refuses a shim whose
 * `version` or sizes differ.  All integers are little-endian; every address is a run-time address of the
 * target.
 *
 * Who writes what:
 *   gate data    the agent only.  Application threads read it in the gates.
 *   counters     enter/leave words of a block: only the thread that owns the block (one `inc` or `stadd`
 *                instruction each, or an exclusive pair); the agent reads them, and folds them once the thread is dead.
 *   objects      the agent only.
 *   command      psu-bin writes the record and `command_seq` while it holds the agent in a ptrace stop and
 *                the agent is parked; the agent writes `done_seq`, `result`, `error`.
 */
#ifndef PSU_RUNTIME_H
#define PSU_RUNTIME_H

#include <stdint.h>

#define PSU_RUNTIME_MAGIC 0x314e55525f555350ull /* "PSU_RUN1" */
#define PSU_RUNTIME_VERSION 8

/* ---- counters -------------------------------------------------------------------------------------
 * A counter index names one injected object (index i <-> psu_object i).  Each thread that ever called a
 * patched function owns one block; TLS holds only a pointer to it.  enter and leave are counted modulo
 * 2^32: only their difference, summed over all blocks, means anything, and it is far below 2^32. */
struct psu_counter { uint32_t enter, leave; };

#define PSU_INDICES 4096u /* objects that can be alive at one time */

/* Side-frame entry: where a side-frame gate keeps what an ordinary wrapper would keep on the stack.  rbp (x29)
 * points at it while the callee runs, so {rbp, return_address} is a frame record for frame-pointer walkers. */
struct psu_side {
    uint64_t saved_fp;
    uint64_t return_address;
    struct psu_side *next; /* in the thread's list of free entries, or a mark: see entries.c */
    uint64_t gate;         /* PSU_FULL, and psu_block.start: address of the gate's psu_gate */
    uint64_t sp;           /* 0: free; else bit 0 is set, and the rest is the stack pointer in the gate (0: not yet) */
    struct psu_save *save; /* PSU_FULL: registers to restore, or 0 */
    uint64_t home;         /* what psu_self is in the thread that gave it back last: only that one may take it */
    uint64_t start_sp;     /* psu_block.start: what `sp` is during that call */
};

#define PSU_SIDES_IN_BLOCK 15

/* 32 KiB of zero pages plus this header; a thread touches the first 4 KiB only, until more than some 370 objects are
 * alive.  Blocks are never unmapped: a dead thread's block is folded into the totals and given to a new one. */
struct psu_block {
    uint32_t number;          /* 1-based number of this block */
    uint32_t tid;             /* owner (its own PID namespace), 0: free, 0xffffffff: not known (vfork) */
    struct psu_side *chunks;  /* more entries: the first of each chunk leads to the next chunk */
    struct psu_block *all;    /* next in the list of all blocks (runtime.blocks), never changes */
    uint32_t epoch;           /* start order of the owner; of two blocks with one tid the lower is dead */
    uint32_t fresh;           /* entries that came to the free list otherwise than from a call, since the last search */
    struct psu_block *free_next;  /* next in the stack of free blocks */
    struct psu_side *deferred;    /* entry given up by an unwinder that may still read it; freed by the next one */
    struct psu_save *saves;       /* free list of areas for the registers that PSU_FULL gates restore */
    struct psu_side *start;       /* of the call of the thread's start routine, if that went through a SIDE or FULL gate */
    struct psu_places *places;    /* entries.c: of a search for entries of calls that are gone */
    uint32_t searching;       /* not 0: such a search is under way; how many others came since */
    uint32_t searches;        /* how many of them were complete */
    uint64_t reserved[6];
    struct psu_side sides[PSU_SIDES_IN_BLOCK];
    struct psu_side *free;    /* head of the owner's list of free side-frame entries; gates want it near `count` */
    struct psu_counter count[PSU_INDICES];
};

/* ---- gates ----------------------------------------------------------------------------------------
 * Gates are assembled into the shim (one pool a kind, `stride` bytes each), so that unwinders and gdb find their
 * unwind rules like any library's.  Gate g of a pool uses gate data g of that pool.  I3: a gate, once given to
 * a function (its slot) and a counter index, belongs to them for ever. */
enum psu_gate_kind {
    PSU_PLAIN = 0,  /* all state on the real stack; for versions that touch no stack arguments */
    PSU_SIDE = 1,   /* stack arguments stay where the callee expects them */
    PSU_FULL = 2,   /* as SIDE; keeps every register and the flags up to the entry of the new version, and restores
                       the registers of `preserve` after it (callers compiled with -fipa-ra, own conventions) */
    PSU_GATE_KINDS = 3
};

struct psu_gate {
    uint64_t code;         /*  0: what the gate calls: body, or a routine of the shim (pending, redirect) */
    uint32_t counter;      /*  8: 8 * index: byte offset in psu_block.count */
    uint32_t preserve;     /* 12: PSU_FULL: registers to restore after the call: bit 0..15 GPR by hardware number,
                                  16..31 vector registers: x86-64: 0 to 15; AArch64: see its arch.h.  Other kinds: 0, they
                                  read counter as 64 bits */
    uint64_t slot;         /* 16: address of the function's slot; 0: this gate was never used */
    uint64_t body;         /* 24: entry of the injected version */
    uint64_t base;         /* 32: PLAIN, SIDE: who comes by the entry that looks, and returns to `span` bytes from here, is in */
    uint64_t span;         /* 40: the same object as `body`, and goes there uncounted (commit.c, "inner calls").  `span` stays for
                                  ever, as `slot` */
    uint64_t enter_txn;    /* 48: before commit_seq reaches this, calls go to `before` */
    uint64_t before;       /* 56: the slot's value before that transaction */
    uint64_t exit_txn;     /* 64: from the time commit_seq reaches this, calls go to `after` (0: not leaving) */
    uint64_t after;        /* 72 */
    uint64_t entry;        /* 80: offset in the gate of where the slot leads: 0, or psu_pool.look.  For the agent only */
    uint64_t reserved[5];  /* what settled gates read is in one cache line */
};
#define PSU_NOWHERE (1ull << 63) /* a `base` that no return address is near */

/* ---- objects -------------------------------------------------------------------------------------- */
enum psu_object_state { PSU_FREE = 0, PSU_CURRENT = 1, PSU_RETIRED = 2 };

#define PSU_REGIONS 3

struct psu_object {
    uint32_t patch;        /* patch id, 1, 2, ...; several objects may share one (several .o in one attach); 0: no patch's */
    uint32_t state;        /* enum psu_object_state */
    uint64_t eh_frame;     /* address of registered .eh_frame, 0: none */
    struct { uint64_t address, size; } region[PSU_REGIONS]; /* unmapped when the object is freed; none: its code is the program's */
};

/* ---- commands -------------------------------------------------------------------------------------
 * A command record is `struct psu_command` followed by `count` entries of the operation's type.  It is complete before
 * command_seq says so; the agent runs it to its end whether psu-bin lives or not, sets `done_seq`, and parks. */
enum psu_op {
    PSU_OP_RESET = 1,   /* unmap what a dead psu-bin staged and never committed; no entries */
    PSU_OP_MAP = 2,     /* psu_map entries: mmap each, all or none; fills in `address`; regions are staged */
    PSU_OP_PROTECT = 3, /* psu_map entries: mprotect each: staged memory, or, to read and execute, of a current object;
                           makes code visible to instruction fetch where needed */
    PSU_OP_RESOLVE = 4, /* psu_symbol entries: dlsym each; fills in `value` (0: not found) */
    PSU_OP_COMMIT = 5,  /* psu_commit, then its entries */
    PSU_OP_PIN = 6,     /* psu_pin entries: keep each library loaded; undone by RESET unless a COMMIT came between */
    PSU_OP_WRITE_OFF = 7, /* psu_surplus entries: each object is retired and nobody is in it, whatever its counts say */
    PSU_OP_TURN = 8     /* psu_code, then psu_turn entries: change instructions of the program, all or none (turn.c) */
};

struct psu_command {
    uint32_t op, count;
    uint64_t payload;  /* op-specific: COMMIT: unused */
};

struct psu_map {
    uint64_t address;  /* in: exact address wanted (MAP_FIXED_NOREPLACE), 0: anywhere; out: where it is */
    uint64_t size;
    uint32_t prot;     /* PROT_ bits; never both PROT_WRITE and PROT_EXEC */
    uint32_t keep;     /* 1: interned data or canonical stubs: stays for the life of the process once committed;
                          0: belongs to the object that COMMIT names */
};

struct psu_symbol {
    uint64_t handle;   /* first argument of dlsym: 0 = RTLD_DEFAULT, or the address of a path for
                          dlopen(RTLD_NOLOAD), see by_path */
    uint64_t name;     /* address of the NUL-terminated name */
    uint64_t version;  /* address of the version for dlvsym, 0: the default one */
    uint64_t value;    /* out */
    uint32_t by_path;  /* 1: `handle` is the address of a path */
    uint32_t reserved;
};

struct psu_pin { uint64_t base; }; /* the library's load bias, as dl_iterate_phdr has it */

/* Calls that longjmp and the like left are never counted out.  psu-bin searched the stacks (psu_bin/attach/surplus.py) and
 * found that no call is in progress; true still if the sums are what they were then. */
struct psu_surplus { uint32_t index, enter, leave, reserved; };

struct psu_code {
    uint64_t address, size; /* a mapping of code, whole */
    uint32_t prot;         /* its PROT_ bits */
    uint32_t unit;         /* bytes that one store changes for whoever executes them: PSU_STORE_UNIT */
};
struct psu_turn { uint64_t at, before, after; }; /* a word of `unit` bytes */

/* COMMIT, in this order (the argument for the order is in commit.c).  A record without switches and notes makes objects or retires
 * them, and leaves all else that is staged as it is:
 *   arm every switch; point slots at gates; barrier; commit_seq += 1 (the commit); settle; redirect old gates;
 *   barrier; object states; swap meta. */
struct psu_switch {
    uint64_t slot;         /* address of the slot */
    uint64_t to_original;  /* non-zero: go back to this original code, `gate` is not used */
    uint64_t body;         /* entry of the new version; of any code, where its object has no memory */
    uint32_t kind, gate;   /* the new gate: pool and number */
    uint32_t index;        /* counter index of the new object */
    uint32_t preserve;
    uint32_t old_kind;     /* the gate that the slot leads to now, PSU_NO_GATE: the original */
    uint32_t old_gate;
    uint64_t otherwise;    /* PSU_FULL, what a call does that finds no memory (poor.c): PSU_ON_STACK, neither the version nor
                              the original touches stack arguments; else the original code, if that leaves alone all that
                              callers rely on; else 0 */
    uint64_t looks;        /* not 0; PLAIN, SIDE: calls go to the gate's entry that looks.  Who returns to the memory of the new
                              object is then counted in it, and not once more (commit.c, "inner calls") */
};
#define PSU_ON_STACK 1
#define PSU_NO_GATE 0xffffffffu

struct psu_commit {
    uint32_t objects;      /* psu_new_object entries, first */
    uint32_t switches;     /* psu_switch entries, second */
    uint32_t retires;      /* uint32_t indices of objects left without a current function by this transaction, third */
    uint32_t reserved;
    uint64_t meta, meta_size; /* the new meta blob (a region mapped with keep = 1, or 0) */
};
struct psu_new_object {
    uint32_t index, patch;
    uint64_t eh_frame;     /* 0: none; with a region[1], its first CIE and FDE are of that */
    struct { uint64_t address, size; } region[PSU_REGIONS];
    uint64_t symfile, symfile_size; /* an ELF file for debuggers inside a region (debugger.c); size 0: none */
};

/* ---- the runtime ----------------------------------------------------------------------------------
 * Exported as `psu_runtime`.  psu-bin finds it through the shim's dynamic symbol table. */
enum psu_agent_state { PSU_AGENT_NONE = 0, PSU_AGENT_STARTING = 1, PSU_AGENT_PARKED = 2, PSU_AGENT_BUSY = 3 };

/* look: offset in each gate of the entry that looks where calls come from; 0: they have none. */
struct psu_pool { uint64_t first; uint64_t data; uint16_t stride, look; uint32_t count; };

#define PSU_COMMAND_BUFFER 4096
#define PSU_STAGED 1024

struct psu_runtime {
    uint64_t magic;            /*   0 */
    uint32_t version;          /*   8 */
    uint32_t size;             /*  12: sizeof(struct psu_runtime) */
    uint32_t sizeof_gate, sizeof_object, sizeof_block, sizeof_side; /* 16 */
    uint32_t offsetof_count;   /*  32: of psu_block.count */
    uint32_t indices;          /*  36: PSU_INDICES */
    struct psu_pool pool[PSU_GATE_KINDS]; /* 40 */
    uint64_t objects;          /* 112: address of psu_object[PSU_INDICES] */
    uint64_t totals;           /* 120: address of psu_counter[PSU_INDICES], counts of dead threads */
    uint64_t shared;           /* 128: address of psu_counter[PSU_INDICES], locked counts for want of memory */
    uint64_t blocks;           /* 136: head of the list of all blocks */
    uint64_t commit_seq;       /* 144: number of the newest committed transaction */
    uint64_t meta, meta_size;  /* 152: psu-bin's own notes (psu_bin/attach/meta.py), opaque here */
    uint32_t agent_tid;        /* 168: as the target's own PID namespace numbers it */
    uint32_t agent_pid;        /* 172: process that the agent runs in; differs in a fork child, which has none */
    uint32_t agent_state;      /* 176: enum psu_agent_state */
    uint32_t membarrier_error; /* 180: errno of registering for membarrier, 0: works */
    union {
        struct {
            uint16_t command_seq; /* 184: changed by psu-bin only */
            uint16_t wakes;       /* 186: changed by application threads only, see psu_agent_wake */
        };
        uint32_t parking;      /* both: the futex word the agent parks on */
    };
    uint16_t done_seq, reserved_2; /* 188: equals command_seq when the command is done */
    uint64_t command;          /* 192: address of the record (command_buffer, or staged memory) */
    int64_t result;            /* 200: 0, or -errno of the step that failed (then nothing was changed) */
    uint64_t failed_entry;     /* 208: which entry */
    uint32_t staged_count, retired_count; /* 216 */
    struct { uint64_t address, size; uint32_t keep, reserved; } staged[PSU_STAGED]; /* 224 */
    uint64_t start_agent;      /* address of the function that starts the agent (one borrowed thread calls it) */
    uint64_t borrow;           /* address of the entry for a borrowed thread, see arch/ARCH/borrow.S */
    int64_t agent_error;       /* 0, or why the last attempt to start the agent failed (errno) */
    /* Distance from a PLAIN or SIDE gate, and its data, to their copies near the program; 0: none.  Gate n is used
     * in one of the two places, for ever: where the word `slot` of its data is not 0. */
    uint64_t near_delta;
    uint64_t command_ns;       /* how long the last command took in the agent; 0: no clock there (a sandbox) */
    /* Where threads that are about to count a call out may be without the gate's address on their stack. */
    uint64_t leaving, leaving_end;
    /* Not 0: a thread may be in a sandbox of its own that ends it at a system call it never made: gates make none.
     * Written by psu-bin while the agent is stopped, before each transaction. */
    uint64_t silent;
    uint64_t object_limit;     /* one more than the highest index of an object that ever was */
    uint8_t command_buffer[PSU_COMMAND_BUFFER] __attribute__((aligned(16)));
};

extern struct psu_runtime psu_runtime;

#define PSU_ASSERT_OFFSET(type, field, at) _Static_assert(__builtin_offsetof(type, field) == (at), #type "." #field)
PSU_ASSERT_OFFSET(struct psu_gate, entry, 80);
PSU_ASSERT_OFFSET(struct psu_runtime, pool, 40);
PSU_ASSERT_OFFSET(struct psu_runtime, objects, 112);
PSU_ASSERT_OFFSET(struct psu_runtime, commit_seq, 144);
PSU_ASSERT_OFFSET(struct psu_runtime, command_seq, 184);
PSU_ASSERT_OFFSET(struct psu_runtime, staged, 224);
PSU_ASSERT_OFFSET(struct psu_runtime, start_agent, 224 + 24 * PSU_STAGED);
_Static_assert(sizeof(struct psu_gate) == 128, "psu_gate");
_Static_assert(sizeof(struct psu_object) == 64, "psu_object");
_Static_assert(sizeof(struct psu_side) == 64, "psu_side");
_Static_assert(__builtin_offsetof(struct psu_block, sides) == 128, "psu_block.sides");

#endif
