/* SPDX-License-Identifier: MIT
 *
 * gates.S: the gates, three pools of them, ready made.
 *
 * A gate counts a call in, calls what its data word `code` says, counts the call out and returns.  Gate i of a pool
 * uses word i of the pool's data (psu_gate in runtime.h), which is all that makes it different from its neighbours.
 * Being part of the shim's text, gates have unwind rules like any function, and are never unmapped (I3).
 *
 * Counting.  One `stadd` an event where the processor has it (ARMv8.1, bit 62 of psu_self), an exclusive pair
 * otherwise. Both are safe against a signal handler that makes counted calls in between, as load, add and store would
 * not be: stadd is one instruction, and the return from the handler clears the exclusive monitor, so the store fails
 * and the pair is tried again.
 *
 * I4, count before load.  The count is a store (the write of a stadd is ordered like any store; its read matters to
 * nobody), the load of `code` follows it in program order, and nothing orders the two: Arm lets the load be satisfied
 * first. The agent's membarrier(PRIVATE_EXPEDITED), after it redirected the gate (commit.c, step 8), is the pair: on
 * every processor running a thread of ours it is an interrupt, so a point between two instructions, with a DMB ISH in
 * it, which orders everything before that point with everything after it (a DMB of kind LD would not do: the read part
 * of an atomic without a destination does not count for it). If the point is before the load, the load is performed
 * after the barrier and sees the redirection; if it is after, so is the count before the point, and is visible to the
 * sums that the agent makes next. There is no third case, and no fence here. (tests/model/litmus.py asks the memory
 * model of the Arm Architecture Reference Manual the same question, and those below.)
 *
 * The leave is a store-release (staddl, stlxr): nobody sees a leave without the enter before it, else the agent could
 * add up another thread's enter with this one's leave to "nobody inside"; and nobody sees it before the last loads of
 * what it leaves are done.
 *
 * A gate has two entries, and the slot leads to one of them (commit.c, "inner calls").  The first counts.  The other one, at
 * PSU_PLAIN_LOOK and PSU_SIDE_LOOK, looks first: a call from the same object (x30 is between `base` and `base + span`) goes on to
 * `body` at once, as its caller is counted; every other joins those that came through the first.  `base` is read once, that
 * is what the argument there needs, which also says how these loads are ordered.
 *
 * The load of `code` is a plain one.  Code and data of a version were written before a membarrier (commit.c, step 4)
 * that comes before `code` is stored, so whoever loads the new word makes all later accesses after that barrier; that
 * it sees the commit's number, which is stored between the barrier and `code`, is the business of the shim's routes.c.
 *
 * The counters of a thread are in a block (counters.c) behind the one thread-local pointer psu_self; 0 means that the
 * thread has none yet, or that a call which began on another thread ends here.  It is reached by an initial-exec
 * offset, because the same file must load into glibc and musl programs, and a TLS descriptor is a call each time.
 *
 * Registers: PLAIN and SIDE serve functions that follow the AAPCS64 and whose callers rely on nothing more.  They
 * change x9, x10, x16 and x17.  Everything else is preserved: arguments, x8, x18, flags, results, vectors.  FULL
 * preserves all but x16 and x17, which every veneer of a linker may change (routes.S).
 *
 * BTI: `bti c` where a jump arrives.  PAC: gates do not sign.  At a gate's entry x30 is not signed yet, versions sign
 * and check as they please, with the same stack pointer at both ends.
 *
 * Unwinding: x86-64 has one FDE a pool with expressions of the program counter.  AArch64 has no DWARF register for
 * that (x30 is the return address column, and in an interrupted gate it is just x30), so each gate has an FDE of its
 * own, 32 bytes.
 */
#include "gates.h"

        .arch   armv8.1-a
        .text

#define DW_REG_SP 31
/* DWARF 5, 6.4.2 and 2.5.1 */
#define REG_EXPRESSION 0x10
#define REG_VAL_OFFSET 0x14
#define OP_breg_x29 0x8d

/* .Lname: here, in gate 0 of its pool: what psu_gate_offsets refers to. */
.macro MARK name
        .if gate == 0
.L\name:
        .endif
.endm

/* x16 = what this thread's psu_self holds; changes \temporary */
.macro LOAD_BLOCK temporary
        adrp    x16, :gottprel:psu_self
        ldr     x16, [x16, :gottprel_lo12:psu_self]
        mrs     \temporary, tpidr_el0
        ldr     x16, [\temporary, x16]
.endm

/* The entry that looks: on to the body when the call comes from the object that the body is in, else to 0.  No flag and no
 * register changes but x9, x16, x17.  A distance below 0, or not below `span`, is another caller's: bit 63 of
 * (distance - span) & ~distance. */
.macro LOOK data
        bti     c
        adrp    x16, \data
        add     x16, x16, :lo12:\data
        ldp     x17, x9, [x16, #GATE_BASE]
        sub     x17, x30, x17
        sub     x9, x17, x9
        bic     x9, x9, x17
        tbz     x9, #63, 0b
        ldr     x16, [x16, #GATE_BODY]
        br      x16                             // x16, x17: `bti c` takes it
.endm

/* x16 += offset of this gate's counter; x17 = page of its data.  `counter` is read as 64 bits: takes `preserve` along,
 * which is 0 in these pools. */
.macro LOAD_COUNTER data
        adrp    x17, \data
        ldr     x10, [x17, :lo12:\data + GATE_COUNTER]
        add     x16, x16, x10
.endm

/* One more in the word at x16; changes w9, w10.  \mark: the store was tried. */
.macro COUNT_PAIR store, mark
5:      ldxr    w10, [x16]
        add     w10, w10, #1
        \store  w9, w10, [x16]
        .ifnb   \mark
MARK \mark
        .endif
        cbnz    w9, 5b
.endm

/* Unwind rules: where the caller's x29 and x30 are. */
.macro IN_ENTRY
        .cfi_escape REG_EXPRESSION, 29, 2, OP_breg_x29, SIDE_FP
        .cfi_escape REG_EXPRESSION, 30, 2, OP_breg_x29, SIDE_RETURN
.endm
.macro NOT_IN_ENTRY
        .cfi_restore x29
        .cfi_restore x30
.endm

/* The call of what this gate's data says; x17 is the page of the data. */
.macro CALL_VERSION data
        ldr     x16, [x17, :lo12:\data + GATE_CODE]
        blr     x16
.endm

/* ---- PLAIN --------------------------------------------------------------------------------------------
 * All state is on the real stack: an ordinary frame record, so a version would find stack arguments 16 bytes too high.
 * The slow paths run while there is no frame, with the place to come back to in x9: to unwinders they stand in the
 * gate's place. */
.macro PLAIN_GATE
        .cfi_startproc
        .cfi_personality 0x1b, psu_plain_personality
        .set    data, psu_gate_area + AREA_PLAIN + GATE_SIZE * gate
MARK plain_start
        bti     c
0:      LOAD_BLOCK x17
        cbz     x16, 8f
1:      LOAD_COUNTER data
        tbz     x16, #SELF_LSE_BIT, 6f
        mov     w9, #1
        stadd   w9, [x16]
MARK plain_counted
2:      stp     x29, x30, [sp, #-16]!
        .cfi_def_cfa_offset 16
        .cfi_offset x29, -16
        .cfi_offset x30, -8
        mov     x29, sp
        CALL_VERSION data
        ldp     x29, x30, [sp], #16
        .cfi_def_cfa_offset 0
        .cfi_restore x29
        .cfi_restore x30
        LOAD_BLOCK x17
        cbz     x16, 9f
3:      LOAD_COUNTER data
        add     x16, x16, #BLOCK_LEAVE
        tbz     x16, #SELF_LSE_BIT, 7f
        mov     w9, #1
MARK plain_left
        staddl  w9, [x16]
        ret
6:      COUNT_PAIR stxr
MARK plain_pair_counted
        b       2b
7:      COUNT_PAIR stlxr, plain_pair_stored
        ret
8:      adr     x9, 1b
        b       psu_plain_slow
MARK plain_slow_leave
9:      adr     x9, 3b
        b       psu_slow_leave
        .org    psu_plain_gates + PSU_PLAIN_STRIDE * gate + PSU_PLAIN_LOOK, 0
        LOOK    data
        .cfi_endproc
.endm

        .p2align 8
        .globl  psu_plain_gates
        .hidden psu_plain_gates
        .type   psu_plain_gates, @function
psu_plain_gates:
        .set    gate, 0
        .rept   PSU_PLAIN_GATES
        PLAIN_GATE
        .set    gate, gate + 1
        .org    psu_plain_gates + PSU_PLAIN_STRIDE * gate, 0
        .endr
        .size   psu_plain_gates, . - psu_plain_gates

/* ---- SIDE ---------------------------------------------------------------------------------------------
 * The stack pointer never moves, so that the callee finds its arguments where it expects them.  The frame record is in
 * an entry of the thread's free list (struct psu_side), which x29 points at.  x29 is callee-saved: on return it names
 * the entry again.
 *
 * A signal handler may use the list anywhere in between, and need not leave it as it was (entries.c): it may make calls,
 * leave them by longjmp, or go on with another context, whose calls keep their entries (a scheduler that preempts).  So
 * an exclusive pair makes the entry ours.  Between the look at SIDE_SP (ldaxr) and the store, others run on this thread
 * only if an exception is taken, and each return from an exception clears the monitor (Arm ARM, ERET): then the store
 * fails, and we look again.  A store that succeeds found the entry free in the same moment, so it has one owner, and
 * whoever comes later finds it in use.  What is done after that, in an entry which is nobody else's, may be interrupted
 * anywhere; the two accesses of the list itself are a hint, whatever happened in between.
 *
 * The pair holds between threads, too: a list may lead to an entry that another thread gave back, when a call ended
 * there, and both may want it.  Neither has to look at SIDE_HOME, as x86-64's gates must, which take without a lock; it
 * is written for entries.c.  Giving back is a store-release, taking a load-acquire: the giver's reads of the entry, and its
 * SIDE_NEXT, come before what the taker reads and writes.
 *
 * The pair's two instructions are apart by a branch and an addition, and by no access of memory: it makes progress by the
 * architecture's own guarantee ("Load-Exclusive and Store-Exclusive instruction usage restrictions" there).  gdb steps over it as a whole, as over every such pair with one branch.
 *
 * The caller's sp would be the CFA, but during the call it equals the version's CFA, and unwinders tell frames apart by
 * it: libgcc would take the gate for the handler that it found in the gate's caller, and abort.  So we say that the CFA
 * is 8 higher, which is no other frame's (stack pointers are multiples of 16), and give sp a rule of its own. */
.macro SIDE_GATE
        .cfi_startproc
        .cfi_personality 0x1b, psu_side_personality
        .cfi_def_cfa sp, 8
        .cfi_escape REG_VAL_OFFSET, DW_REG_SP, 1        /* CFA - 8 */
        .set    data, psu_gate_area + AREA_SIDE + GATE_SIZE * gate
MARK side_start
        bti     c
0:      LOAD_BLOCK x17
        cbz     x16, 8f
        ldur    x17, [x16, #BLOCK_FREE]
        cbz     x17, 8f
1:      add     x17, x17, #SIDE_SP              // exclusive accesses have no offset
4:      ldaxr   x10, [x17]
        cbnz    x10, 8f
        add     x10, sp, #1
        stxr    w9, x10, [x17]
        cbnz    w9, 4b
        ldur    x10, [x17, #SIDE_NEXT - SIDE_SP]
        stur    x10, [x16, #BLOCK_FREE]
        sub     x17, x17, #SIDE_SP
MARK side_claimed
        stp     x29, x30, [x17, #SIDE_FP]
        mov     x29, x17
MARK side_moved
        IN_ENTRY
        LOAD_COUNTER data
        tbz     x16, #SELF_LSE_BIT, 6f
        mov     w9, #1
        stadd   w9, [x16]
MARK side_counted
2:      CALL_VERSION data
        mov     x17, x29
        ldp     x29, x30, [x29, #SIDE_FP]
MARK side_back
        NOT_IN_ENTRY
        LOAD_BLOCK x10
        cbz     x16, 9f
3:      ldur    x10, [x16, #BLOCK_FREE]
        str     x10, [x17, #SIDE_NEXT]
        stur    x17, [x16, #BLOCK_FREE]
        str     x16, [x17, #SIDE_HOME]
        add     x10, x17, #SIDE_SP
        stlr    xzr, [x10]                      // who finds it free finds its home
MARK side_released
        LOAD_COUNTER data
        add     x16, x16, #BLOCK_LEAVE
        tbz     x16, #SELF_LSE_BIT, 7f
        mov     w9, #1
MARK side_left
        staddl  w9, [x16]
        ret
        IN_ENTRY
MARK side_pair
6:      COUNT_PAIR stxr
MARK side_pair_counted
        b       2b
        NOT_IN_ENTRY
MARK side_pair_left
7:      COUNT_PAIR stlxr, side_pair_stored
        ret
8:      adr     x9, 1b
        b       psu_side_slow
MARK side_slow_leave
9:      adr     x9, 3b
        b       psu_slow_leave
        .org    psu_side_gates + PSU_SIDE_STRIDE * gate + PSU_SIDE_LOOK, 0
        LOOK    data
        .cfi_endproc
.endm

        .p2align 8
        .globl  psu_side_gates
        .hidden psu_side_gates
        .type   psu_side_gates, @function
psu_side_gates:
        .set    gate, 0
        .rept   PSU_SIDE_GATES
        SIDE_GATE
        .set    gate, gate + 1
        .org    psu_side_gates + PSU_SIDE_STRIDE * gate, 0
        .endr
        .size   psu_side_gates, . - psu_side_gates

/* ---- FULL ---------------------------------------------------------------------------------------------
 * As SIDE, but the work is done in routes.S, with every register and the flags kept.  psu_full_enter returns with x29
 * at the entry; psu_full_leave returns to the caller.  Both are jumped to, and while they run, their own unwind rules
 * go straight to the gate's caller, so the gate has two states only. */
.macro FULL_GATE
        .cfi_startproc
        .cfi_personality 0x1b, psu_full_personality
        .cfi_def_cfa sp, 8
        .cfi_escape REG_VAL_OFFSET, DW_REG_SP, 1        /* CFA - 8, as in SIDE */
MARK full_start
        bti     c
        adr     x17, 1f
        b       psu_full_enter
MARK full_entered
        IN_ENTRY
1:      adrp    x16, psu_full_data + GATE_SIZE * gate
        ldr     x16, [x16, :lo12:psu_full_data + GATE_SIZE * gate + GATE_CODE]
        blr     x16
        b       psu_full_leave
        .cfi_endproc
.endm

        .p2align 7
        .globl  psu_full_gates
        .hidden psu_full_gates
        .type   psu_full_gates, @function
psu_full_gates:
        .set    gate, 0
        .rept   PSU_FULL_GATES
        FULL_GATE
        .set    gate, gate + 1
        .org    psu_full_gates + PSU_FULL_STRIDE * gate, 0
        .endr
        .size   psu_full_gates, . - psu_full_gates

/* Offsets in a gate: struct psu_gate_offsets. */
        .section .rodata
        .p2align 2
        .globl  psu_gate_offsets
        .hidden psu_gate_offsets
        .type   psu_gate_offsets, @object
#define AT(pool, at) .L##pool##_##at - .L##pool##_start
#define COUNTS(pool) AT(pool, counted), AT(pool, left), AT(pool, pair_counted), AT(pool, pair_stored), \
        AT(pool, slow_leave)

psu_gate_offsets:
        .long   COUNTS(plain), GATE_NEVER, GATE_NEVER, GATE_NEVER, GATE_NEVER, GATE_NEVER, GATE_NEVER
        .long   COUNTS(side), AT(side, claimed), AT(side, moved), AT(side, back), AT(side, released)
        .long   AT(side, pair), AT(side, pair_left)
        .long   AT(full, entered), GATE_NEVER, GATE_NEVER, GATE_NEVER, GATE_NEVER
        .long   AT(full, entered), AT(full, entered), GATE_NEVER, GATE_NEVER, GATE_NEVER, GATE_NEVER
        .size   psu_gate_offsets, . - psu_gate_offsets

#include "property.h"
