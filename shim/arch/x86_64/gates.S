/* SPDX-License-Identifier: MIT
 *
 * gates.S: the gates, three pools of them, ready made.
 *
 * A gate counts a call in, calls what its data word `code` says, counts the call out and returns.  Gate i of a pool uses
 * word i of the pool's data (psu_gate in runtime.h), which is all that makes it different from its neighbours.  Being part
 * of the shim's text, gates have unwind rules like any function, and are never unmapped (I3).
 *
 * I4, count before load.  The count is a plain `incl` on memory, the load of `code` follows it in program order.  x86-64 may
 * let that load pass the store (TSO: loads may go ahead of older stores to other addresses), so a count can still be
 * invisible when the old code word was read already.  The agent's membarrier(PRIVATE_EXPEDITED), after it redirected the gate
 * (commit.c, step 8), is the pair: on every processor running a thread of ours it is a full barrier at some instruction
 * boundary.  If that boundary is before the `call`, the load comes after it and sees the redirection; if it is after, the count,
 * older than the call, is visible to the sums that the agent makes next.  There is no third case, and no fence here.
 *
 * One `incl` an event: a signal handler that makes counted calls in between loses nothing, as a load/add/store would.
 *
 * The counters of a thread are in a block (counters.c) behind the one thread-local pointer psu_self; 0 means that the thread
 * has none yet, or that a call which began on another thread ends here.
 *
 * Registers: PLAIN and SIDE serve functions that follow the psABI, so r11 and the flags are dead at entry and at return.
 * Everything else is preserved: arguments, al, r10, results.  FULL preserves all (routes.S).
 *
 * CET: endbr64 where a jump arrives; `notrack`, as a version may be compiled without; what pops a return
 * address pushes the same again before `ret`, so the shadow stack agrees.
 *
 * Unwinding: one FDE a pool, as the linker does for .plt: expressions take the offset in the gate from rip.  They are right at
 * every instruction.  Names: [off] is rip & (stride - 1).
 */
#include "gates.h"
#include <cet.h>

#define DW_REG_RBP 6
#define DW_REG_RSP 7
#define DW_REG_RA 16
/* DWARF 5, 6.4.2 and 2.5.1 */
#define CFA_EXPRESSION 0x0f
#define REG_EXPRESSION 0x10
#define REG_VAL_OFFSET 0x14
#define REG_VAL_EXPRESSION 0x16
#define OP_deref 0x06
#define OP_const1u 0x08
#define OP_dup 0x12
#define OP_over 0x14
#define OP_pick 0x15
#define OP_swap 0x16
#define OP_and 0x1a
#define OP_minus 0x1c
#define OP_or 0x21
#define OP_plus 0x22
#define OP_shl 0x24
#define OP_bra 0x28
#define OP_ge 0x2a
#define OP_lt 0x2d
#define OP_skip 0x2f
#define OP_lit1 0x31
#define OP_lit3 0x33
#define OP_lit16 0x40
#define OP_lit24 0x48
#define OP_breg_rbp 0x76
#define OP_breg_rsp 0x77
#define OP_breg_rip 0x80

        .text

/* r11 = this thread's block, or a jump to \none */
.macro LOAD_BLOCK none
        mov     psu_self@gottpoff(%rip), %r11
        mov     %fs:(%r11), %r11
        test    %r11, %r11
        jz      \none
.endm

/* Pieces of the expressions.  Numeric labels are those of the first gate of the pool that follows. */
#define OFFSET(mask)    OP_breg_rip, 0, OP_const1u, mask, OP_and        /* 5 bytes: push off */
#define AT_LEAST(label) OP_const1u, label - 10f, OP_ge                  /* 3 bytes: off -> off >= label */
#define BELOW(label)    OP_const1u, label - 10f, OP_lt                  /* 3 bytes: off -> off < label */
#define UP(label)       OP_over, AT_LEAST(label), OP_plus               /* 5 bytes: off n -> off n + (off >= label) */
#define DOWN(label)     OP_over, AT_LEAST(label), OP_minus              /* 5 bytes */

/* ---- PLAIN --------------------------------------------------------------------------------------------
 * All state is on the real stack: rsp is 8 lower from after `sub` to after `add`, otherwise as at entry. */
.macro PLAIN_GATE data
10:     endbr64
        LOAD_BLOCK 18f
11:     add     \data + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11        # 64 bits: takes `preserve` along, which is 0 in this pool
        incl    BLOCK_ENTER(%r11)
12:     sub     $8, %rsp
13:     notrack call *\data + GATE_SIZE * gate + GATE_CODE(%rip)
        add     $8, %rsp
14:     LOAD_BLOCK 19f
15:     add     \data + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
16:     incl    BLOCK_LEAVE(%r11)
        ret
18:     call    psu_plain_slow
        jmp     11b
19:     call    psu_slow_leave
        jmp     15b
.endm

        .p2align 7
        .globl  psu_plain_gates
        .hidden psu_plain_gates
        .type   psu_plain_gates, @function
psu_plain_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_plain_personality
        /* CFA = rsp + 8 + 8 * ((off >= after sub) - (off >= after add)) */
        .cfi_escape CFA_EXPRESSION, 19, OFFSET(PSU_PLAIN_STRIDE - 1), OP_dup, AT_LEAST(13f), OP_swap, AT_LEAST(14f), \
                OP_minus, OP_lit3, OP_shl, OP_breg_rsp, 8, OP_plus
        .set    gate, 0
        .rept   PSU_PLAIN_GATES
        PLAIN_GATE psu_plain_data
        .balign PSU_PLAIN_STRIDE, 0xcc
        .set    gate, gate + 1
        .endr
        .cfi_endproc
        .size   psu_plain_gates, . - psu_plain_gates
        .set    plain_counted, 12b - 10b
        .set    plain_left, 16b - 10b
        .set    plain_slow_leave, 19b - 10b

/* ---- SIDE ---------------------------------------------------------------------------------------------
 * The return address leaves the stack before the call and is back before the return, so that the callee finds its arguments
 * where it expects them.  In between it is in an entry of the thread's free list (struct psu_side), which rbp points at.  rbp is
 * callee-saved: on return it names the entry again.  The list's head moves before the entry is written, and
 * the entry is given back when nothing in it is needed any more: a signal handler may use the list anywhere between. */
.macro SIDE_GATE data
10:     endbr64
        push    %rbp
20:     LOAD_BLOCK 18f
        mov     BLOCK_FREE(%r11), %rbp
        test    %rbp, %rbp
        jz      18f
11:     pushq   SIDE_NEXT(%rbp)
21:     popq    BLOCK_FREE(%r11)
22:     popq    SIDE_FP(%rbp)
23:     popq    SIDE_RETURN(%rbp)
24:     add     \data + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
        incl    BLOCK_ENTER(%r11)
12:     notrack call *\data + GATE_SIZE * gate + GATE_CODE(%rip)
        pushq   SIDE_RETURN(%rbp)
25:     pushq   SIDE_FP(%rbp)
26:     LOAD_BLOCK 19f
15:     pushq   BLOCK_FREE(%r11)
27:     popq    SIDE_NEXT(%rbp)
28:     mov     %rbp, BLOCK_FREE(%r11)
13:     pop     %rbp
29:     add     \data + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
16:     incl    BLOCK_LEAVE(%r11)
        ret
18:     call    psu_side_slow
        jmp     11b
19:     call    psu_slow_leave
        jmp     15b
.endm

        .p2align 7
        .globl  psu_side_gates
        .hidden psu_side_gates
        .type   psu_side_gates, @function
psu_side_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_side_personality
        /* The caller's rsp after the return is rsp + 8 * (1 + words pushed - words popped so far); 18 on: at the calls of
         * the slow paths one is pushed.  That would be the CFA, but during the call it equals the version's CFA, and unwinders
         * tell frames apart by it: libgcc would take the gate for the handler that it found in the gate's caller, and
         * abort.  So we say that the CFA is 8 higher and give rsp a rule of its own. */
        .cfi_escape CFA_EXPRESSION, 66, OFFSET(PSU_SIDE_STRIDE - 1), OP_lit1, \
                UP(20f), UP(21f), DOWN(22f), DOWN(23f), DOWN(24f), UP(25f), UP(26f), UP(27f), DOWN(28f), DOWN(29f), UP(18f), \
                OP_lit3, OP_shl, OP_breg_rsp, 8, OP_plus
        .cfi_escape REG_VAL_OFFSET, DW_REG_RSP, 1       /* rsp = CFA - 8 */
        /* return address: 24 <= off < 25: in the entry, at rbp + 8; else on the stack */
        .cfi_escape REG_EXPRESSION, DW_REG_RA, 24, OFFSET(PSU_SIDE_STRIDE - 1), OP_dup, AT_LEAST(24f), \
                OP_swap, BELOW(25f), OP_and, OP_bra, 5, 0, OP_lit16, OP_minus, OP_skip, 2, 0, OP_breg_rbp, SIDE_RETURN
        /* rbp: 23 <= off < 26: in the entry; off < 20 or 29 <= off < 18: rbp; else on the stack below it */
        .cfi_escape REG_VAL_EXPRESSION, DW_REG_RBP, 50, OFFSET(PSU_SIDE_STRIDE - 1), \
                OP_dup, AT_LEAST(23f), OP_over, BELOW(26f), OP_and, OP_bra, 25, 0, \
                OP_dup, BELOW(20f), OP_over, AT_LEAST(29f), OP_pick, 2, BELOW(18f), OP_and, OP_or, OP_bra, 13, 0, \
                OP_over, OP_lit24, OP_minus, OP_deref, OP_skip, 8, 0, \
                OP_breg_rbp, SIDE_FP, OP_deref, OP_skip, 2, 0, \
                OP_breg_rbp, 0
        .set    gate, 0
        .rept   PSU_SIDE_GATES
        SIDE_GATE psu_side_data
        .balign PSU_SIDE_STRIDE, 0xcc
        .set    gate, gate + 1
        .endr
        .cfi_endproc
        .size   psu_side_gates, . - psu_side_gates
        .set    side_claimed, 22b - 10b
        .set    side_counted, 12b - 10b
        .set    side_released, 13b - 10b
        .set    side_left, 16b - 10b
        .set    side_slow_leave, 19b - 10b

/* ---- FULL ---------------------------------------------------------------------------------------------
 * As SIDE, but the work is done in routes.S, with every register and the flags kept.  psu_full_enter returns with the
 * caller's return address off the stack and rbp at the entry; psu_full_leave returns to the caller.  While
 * psu_full_enter runs, its own unwind rules go straight to the gate's caller, so the gate has two states only. */
.macro FULL_GATE data
10:     endbr64
        call    psu_full_enter
12:     notrack call *\data + GATE_SIZE * gate + GATE_CODE(%rip)
        jmp     psu_full_leave
.endm

        .p2align 5
        .globl  psu_full_gates
        .hidden psu_full_gates
        .type   psu_full_gates, @function
psu_full_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_full_personality
        /* off >= 12: caller's rsp = rsp, return address at rbp + 8, rbp at rbp + 0; else as at any function's entry */
        .cfi_escape CFA_EXPRESSION, 13, OFFSET(PSU_FULL_STRIDE - 1), BELOW(12f), OP_lit3, OP_shl, OP_breg_rsp, 8, OP_plus
        .cfi_escape REG_VAL_OFFSET, DW_REG_RSP, 1       /* rsp = CFA - 8, as in SIDE */
        .cfi_escape REG_EXPRESSION, DW_REG_RA, 18, OFFSET(PSU_FULL_STRIDE - 1), AT_LEAST(12f), \
                OP_bra, 5, 0, OP_lit16, OP_minus, OP_skip, 2, 0, OP_breg_rbp, SIDE_RETURN
        .cfi_escape REG_VAL_EXPRESSION, DW_REG_RBP, 19, OFFSET(PSU_FULL_STRIDE - 1), AT_LEAST(12f), \
                OP_bra, 5, 0, OP_breg_rbp, 0, OP_skip, 3, 0, OP_breg_rbp, SIDE_FP, OP_deref
        .set    gate, 0
        .rept   PSU_FULL_GATES
        FULL_GATE psu_full_data
        .balign PSU_FULL_STRIDE, 0xcc
        .set    gate, gate + 1
        .endr
        .cfi_endproc
        .size   psu_full_gates, . - psu_full_gates
        .set    full_counted, 12b - 10b

/* Offsets in a gate, for the personality routines (unwind.c); each label is the first instruction after its event, but
 * `left`, which is the counting instruction itself. */
        .section .rodata
        .p2align 2
        .globl  psu_gate_offsets
        .hidden psu_gate_offsets
        .type   psu_gate_offsets, @object
psu_gate_offsets:
        .long   0, plain_counted, 0x7fffffff, plain_left, plain_slow_leave
        .long   side_claimed, side_counted, side_released, side_left, side_slow_leave
        .long   full_counted, full_counted, 0x7fffffff, 0x7fffffff, 0x7fffffff
        .size   psu_gate_offsets, . - psu_gate_offsets

        .section .note.GNU-stack, "", @progbits
