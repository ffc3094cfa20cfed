/* SPDX-License-Identifier: MIT
 *
 * gates.S: the gates, three pools of them, ready made.
 *
 * A gate counts a call in, calls what its data word `code` says, counts the call out and returns.  Gate i of a pool
 * uses word i of the pool's data (psu_gate in runtime.h), which is all that makes it different from its neighbours.
 * Being part of the shim's text, gates have unwind rules like any function, and are never unmapped (I3).
 *
 * I4, count before load.  The count is a plain `incl` on memory, the load of `code` follows it in program order.
 * x86-64 may let that load pass the store (TSO: loads may go ahead of older stores to other addresses), so a count can
 * still be invisible when the old code word was read already.  The agent's membarrier(PRIVATE_EXPEDITED), after it
 * redirected the gate (commit.c, step 8), is the pair: on every processor running a thread of ours it is a full barrier
 * at some instruction boundary.  If that boundary is before the `call`, the load comes after it and sees the
 * redirection; if it is after, the count, older than the call, is visible to the sums that the agent makes next.  There
 * is no third case, and no fence here.
 *
 * A gate has two entries, and the slot leads to one of them (commit.c, "inner calls").  The first counts.  The other one, at
 * PSU_PLAIN_LOOK and PSU_SIDE_LOOK, looks first: a call from the same object (its return address is between `base` and
 * `base + span`) goes on to `body` at once, as its caller is counted; every other joins those that came through the first.
 * `base` is read once, by the subtraction; that is what the argument there needs.
 *
 * One `incl` an event: a signal handler that makes counted calls in between loses nothing, as a load/add/store would.
 *
 * The counters of a thread are in a block (counters.c) behind the one thread-local pointer psu_self; 0 means that the
 * thread has none yet, or that a call which began on another thread ends here.
 *
 * Registers: PLAIN and SIDE serve functions that follow the psABI, so r11 and the flags mean nothing at their entry.
 * PLAIN preserves everything but the flags.  SIDE changes r11, and rcx and rsi on return: for functions whose callers
 * rely on none of these.  FULL preserves all (routes.S).
 *
 * CET: endbr64 where a jump arrives; `notrack`, as a version may be compiled without; what pops a return
 * address pushes the same again before `ret`, so the shadow stack agrees.
 *
 * Unwinding: one FDE a pool, as the linker does for .plt: expressions take the offset in the gate from rip.  They are
 * right at every instruction.  Names: [off] is rip & (stride - 1).
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
#define OP_breg_rcx 0x72
#define OP_breg_rbp 0x76
#define OP_breg_rsp 0x77
#define OP_breg_rip 0x80

        .text

/* .Lname: here, in gate 0 of its pool: what the unwind rules refer to. */
.macro MARK name
        .if gate == 0
.L\name:
        .endif
.endm

/* r11 = this thread's block, or a jump to \none */
.macro LOAD_BLOCK none
        mov     psu_gate_area + AREA_SELF(%rip), %r11
        mov     %fs:(%r11), %r11
        test    %r11, %r11
        jz      \none
.endm

/* Pieces of the expressions. */
#define OFFSET(stride)      OP_breg_rip, 0, OP_const1u, stride - 1, OP_and      /* 5 bytes: push off */
#define AT_LEAST(pool, at)  OP_const1u, .L##pool##_##at - .L##pool##_start, OP_ge   /* 3 bytes: off -> off >= at */
#define BELOW(pool, at)     OP_const1u, .L##pool##_##at - .L##pool##_start, OP_lt   /* 3 bytes: off -> off < at */
/* For the CFA.  Each takes the offset from rip anew: valgrind (3.19) knows neither DW_OP_dup nor DW_OP_over.  It goes
 * without a register's rule that has them, but ends with an assertion where a CFA does. */
#define UP(stride, pool, at)    OFFSET(stride), AT_LEAST(pool, at), OP_plus     /* 9 bytes: n -> n + (off >= at) */
#define DOWN(stride, pool, at)  OFFSET(stride), AT_LEAST(pool, at), OP_minus    /* 9 bytes */

/* ---- exits --------------------------------------------------------------------------------------------
 * Where gates leave for the slow paths.  On a page of their own, because near.c makes copies of gates elsewhere, whose
 * exits must be where a copied `call` finds them. */
        .p2align 12
        .globl  psu_gate_text
        .hidden psu_gate_text
        .type   psu_gate_text, @function
psu_gate_text:
        .cfi_startproc
exit_plain:
        jmp     psu_plain_slow
        .balign EXIT_SIZE, 0xcc
exit_side:
        jmp     psu_side_slow
        .balign EXIT_SIZE, 0xcc
exit_leave:
        jmp     psu_slow_leave
        .balign 4096, 0xcc
        .cfi_endproc
        .size   psu_gate_text, . - psu_gate_text

/* ---- PLAIN --------------------------------------------------------------------------------------------
 * All state is on the real stack: the caller's r11, which a caller may rely on (-fipa-ra), and which aligns the stack. */
.macro PLAIN_GATE
MARK plain_start
        endbr64
        push    %r11
MARK plain_down
6:
MARK plain_own_enter
        LOAD_BLOCK 8f
        # 64 bits: takes `preserve` along, which is 0 in this pool
1:      add     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
        incl    BLOCK_ENTER(%r11)
MARK plain_counted
        notrack call *psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_CODE(%rip)
MARK plain_own_leave
        LOAD_BLOCK 9f
2:      add     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
MARK plain_left
        incl    BLOCK_LEAVE(%r11)
        pop     %r11
MARK plain_up
        ret
MARK plain_slow
8:      call    exit_plain
        jmp     1b
MARK plain_slow_leave
9:      call    exit_leave
        jmp     2b
        .org    psu_plain_gates + PSU_PLAIN_STRIDE * gate + PSU_PLAIN_LOOK, 0xcc
MARK plain_look
        endbr64
        push    %r11
MARK plain_look_down
        mov     8(%rsp), %r11
        sub     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_BASE(%rip), %r11
        cmp     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_SPAN(%rip), %r11
        jae     6b
        pop     %r11
MARK plain_look_up
        notrack jmp *psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_BODY(%rip)
.endm

#define PLAIN(term, at) term(PSU_PLAIN_STRIDE, plain, at)
/* CFA = rsp + 8 * (1 + (off >= after the push) - (off >= after the pop) + (off >= slow paths)), and the same for the entry
 * that looks. */
#define PLAIN_CFA \
        CFA_EXPRESSION, 60, OP_lit1, PLAIN(UP, down), PLAIN(DOWN, up), PLAIN(UP, slow), \
        PLAIN(DOWN, look), PLAIN(UP, look_down), PLAIN(DOWN, look_up), OP_lit3, OP_shl, OP_breg_rsp, 0, OP_plus

        .globl  psu_plain_gates
        .hidden psu_plain_gates
        .type   psu_plain_gates, @function
psu_plain_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_plain_personality
        .cfi_escape PLAIN_CFA
        .set    gate, 0
        .rept   PSU_PLAIN_GATES
        PLAIN_GATE
        .set    gate, gate + 1
        .org    psu_plain_gates + PSU_PLAIN_STRIDE * gate, 0xcc
        .endr
        .cfi_endproc
        .size   psu_plain_gates, . - psu_plain_gates

/* ---- SIDE ---------------------------------------------------------------------------------------------
 * The return address leaves the stack before the call and is back before the return, so that the callee finds its
 * arguments where it expects them.  In between it is in an entry of the thread's free list (struct psu_side), which rbp
 * points at.  rbp is callee-saved: on return it names the entry again.  A signal handler may use the list anywhere in
 * between, and need not leave it as it was (entries.c): so one instruction makes the entry ours, `btsq`, and one gives
 * it back when nothing in it is needed any more.  Neither is locked: only the thread that gave an entry back takes it.
 * 64 bits, as all accesses of that word: a load waits long for a narrower store before it. */
.macro SIDE_GATE
MARK side_start
        endbr64
6:      push    %rbp
MARK side_rbp_pushed
MARK side_own_enter
        LOAD_BLOCK 8f
        mov     BLOCK_FREE(%r11), %rbp
        test    %rbp, %rbp
        jz      8f
1:      cmp     %r11, SIDE_HOME(%rbp)
        jne     8f
        btsq    $0, SIDE_SP(%rbp)
        jc      8f
        add     %rsp, SIDE_SP(%rbp)
        pushq   SIDE_NEXT(%rbp)
MARK side_next_pushed
        popq    BLOCK_FREE(%r11)
MARK side_claimed
        popq    SIDE_FP(%rbp)
MARK side_rbp_moved
        popq    SIDE_RETURN(%rbp)
MARK side_return_moved
        add     psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
        incl    BLOCK_ENTER(%r11)
MARK side_counted
        notrack call *psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_CODE(%rip)
MARK side_own_leave
        LOAD_BLOCK 9f
2:      pushq   SIDE_RETURN(%rbp)
MARK side_return_back
        mov     SIDE_FP(%rbp), %rcx
        mov     %r11, SIDE_HOME(%rbp)
        mov     BLOCK_FREE(%r11), %rsi
        mov     %rsi, SIDE_NEXT(%rbp)
        mov     %rbp, BLOCK_FREE(%r11)
        xor     %esi, %esi
        mov     %rsi, SIDE_SP(%rbp)
MARK side_released
        mov     %rcx, %rbp
MARK side_rbp_back
        add     psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11
MARK side_left
        incl    BLOCK_LEAVE(%r11)
        ret
MARK side_slow
8:      call    exit_side
        jmp     1b
MARK side_slow_leave
9:      call    exit_leave
        jmp     2b
        .org    psu_side_gates + PSU_SIDE_STRIDE * gate + PSU_SIDE_LOOK, 0xcc
MARK side_look
        endbr64
        mov     (%rsp), %r11
        sub     psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_BASE(%rip), %r11
        cmp     psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_SPAN(%rip), %r11
        jae     6b
        notrack jmp *psu_gate_area + AREA_SIDE + GATE_SIZE * gate + GATE_BODY(%rip)
.endm

/* The caller's rsp after the return is rsp + 8 * (1 + words pushed - words popped so far); one is pushed at the call of
 * the slow path on entering, none on leaving; from `look` on it is as at the start.  That would be the CFA, but during the
 * call it equals the version's CFA, and unwinders tell frames apart by it: libgcc would take the gate for the handler that
 * it found in the gate's caller, and abort.  So we say that the CFA is 8 higher, and give rsp a rule of its own. */
#define SIDE(term, at) term(PSU_SIDE_STRIDE, side, at)
#define SIDE_CFA \
        CFA_EXPRESSION, 96, OP_lit1, SIDE(UP, rbp_pushed), SIDE(UP, next_pushed), SIDE(DOWN, claimed), \
        SIDE(DOWN, rbp_moved), SIDE(DOWN, return_moved), SIDE(UP, return_back), SIDE(UP, slow), \
        SIDE(DOWN, slow_leave), SIDE(DOWN, slow_leave), SIDE(UP, look), OP_lit3, OP_shl, OP_breg_rsp, 8, OP_plus
#define SIDE_RSP \
        REG_VAL_OFFSET, DW_REG_RSP, 1           /* CFA - 8 */
/* In the entry, or on the stack below the caller's rsp. */
#define SIDE_RA \
        REG_EXPRESSION, DW_REG_RA, 36, OFFSET(PSU_SIDE_STRIDE), OP_dup, AT_LEAST(side, return_moved), \
        OP_over, BELOW(side, return_back), OP_and, OP_over, AT_LEAST(side, slow_leave), \
        OP_pick, 2, BELOW(side, look), OP_and, OP_or, \
        OP_bra, 6, 0, OP_over, OP_lit16, OP_minus, OP_skip, 2, 0, OP_breg_rbp, SIDE_RETURN
/* In the entry; or in rcx, for one instruction; or rbp itself, at both ends; or on the stack below the return address.
 * */
#define SIDE_RBP \
        REG_VAL_EXPRESSION, DW_REG_RBP, 83, OFFSET(PSU_SIDE_STRIDE), \
        OP_dup, AT_LEAST(side, rbp_moved), OP_over, BELOW(side, released), OP_and, OP_over, \
        AT_LEAST(side, slow_leave), OP_pick, 2, BELOW(side, look), OP_and, OP_or, OP_bra, 42, 0, \
        OP_dup, AT_LEAST(side, released), OP_over, BELOW(side, rbp_back), OP_and, OP_bra, 36, 0, \
        OP_dup, BELOW(side, rbp_pushed), OP_over, AT_LEAST(side, rbp_back), OP_pick, 2, BELOW(side, slow), \
        OP_and, OP_or, OP_over, AT_LEAST(side, look), OP_or, OP_bra, 18, 0, \
        OP_over, OP_lit24, OP_minus, OP_deref, OP_skip, 13, 0, \
        OP_breg_rbp, SIDE_FP, OP_deref, OP_skip, 7, 0, \
        OP_breg_rcx, 0, OP_skip, 2, 0, \
        OP_breg_rbp, 0

        .globl  psu_side_gates
        .hidden psu_side_gates
        .type   psu_side_gates, @function
psu_side_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_side_personality
        .cfi_escape SIDE_CFA
        .cfi_escape SIDE_RSP
        .cfi_escape SIDE_RA
        .cfi_escape SIDE_RBP
        .set    gate, 0
        .rept   PSU_SIDE_GATES
        SIDE_GATE
        .set    gate, gate + 1
        .org    psu_side_gates + PSU_SIDE_STRIDE * gate, 0xcc
        .endr
        .cfi_endproc
        .size   psu_side_gates, . - psu_side_gates

/* ---- FULL ---------------------------------------------------------------------------------------------
 * As SIDE, but the work is done in routes.S, with every register and the flags kept.  psu_full_enter returns with the
 * caller's return address off the stack and rbp at the entry; psu_full_leave returns to the caller.  While
 * psu_full_enter runs, its own unwind rules go straight to the gate's caller, so the gate has two states only. */
.macro FULL_GATE
MARK full_start
        endbr64
        call    psu_full_enter
MARK full_entered
        notrack call *psu_full_data + GATE_SIZE * gate + GATE_CODE(%rip)
        jmp     psu_full_leave
.endm

        .p2align 7
        .globl  psu_full_gates
        .hidden psu_full_gates
        .type   psu_full_gates, @function
psu_full_gates:
        .cfi_startproc
        .cfi_personality 0x1b, psu_full_personality
        /* entered: caller's rsp = rsp, return address and rbp in the entry; else as at any function's entry */
        .cfi_escape CFA_EXPRESSION, 13, OFFSET(PSU_FULL_STRIDE), BELOW(full, entered), OP_lit3, OP_shl, \
                OP_breg_rsp, 8, OP_plus
        .cfi_escape REG_VAL_OFFSET, DW_REG_RSP, 1       /* CFA - 8, as in SIDE */
        .cfi_escape REG_EXPRESSION, DW_REG_RA, 18, OFFSET(PSU_FULL_STRIDE), AT_LEAST(full, entered), \
                OP_bra, 5, 0, OP_lit16, OP_minus, OP_skip, 2, 0, OP_breg_rbp, SIDE_RETURN
        .cfi_escape REG_VAL_EXPRESSION, DW_REG_RBP, 19, OFFSET(PSU_FULL_STRIDE), AT_LEAST(full, entered), \
                OP_bra, 5, 0, OP_breg_rbp, 0, OP_skip, 3, 0, OP_breg_rbp, SIDE_FP, OP_deref
        .set    gate, 0
        .rept   PSU_FULL_GATES
        FULL_GATE
        .set    gate, gate + 1
        .org    psu_full_gates + PSU_FULL_STRIDE * gate, 0xcc
        .endr
        .cfi_endproc
        .size   psu_full_gates, . - psu_full_gates

/* Offsets in a gate, for the personality routines (unwind.c); the last two, of LOAD_BLOCK, for near.c. */
        .section .rodata
        .p2align 2
        .globl  psu_gate_offsets
        .hidden psu_gate_offsets
        .type   psu_gate_offsets, @object
#define AT(pool, at) .L##pool##_##at - .L##pool##_start
#define NEVER 0x7fffffff
psu_gate_offsets:
        .long   0, AT(plain, counted), NEVER, AT(plain, left), AT(plain, slow_leave)
        .long   AT(plain, own_enter), AT(plain, own_leave)
        .long   AT(side, claimed), AT(side, counted), AT(side, released), AT(side, left), AT(side, slow_leave)
        .long   AT(side, own_enter), AT(side, own_leave)
        .long   AT(full, entered), AT(full, entered), NEVER, NEVER, NEVER, 0, 0
        .size   psu_gate_offsets, . - psu_gate_offsets

/* The same unwind rules for copies of exits, PLAIN and SIDE gates (near.c, which fills in the addresses): an .eh_frame
 * with absolute pointers, version 1 of the format, LSB Core 10.6. */
        .section .data, "aw", @progbits
.macro CIE label, personality:vararg
\label:
        .long   8f - 9f
9:      .long   0
        .byte   1
        .ifnb   \personality
        .asciz  "zP"
        .uleb128 1
        .sleb128 -8
        .uleb128 DW_REG_RA, 9                   # return address column; length of what `P` brings
        .byte   0                               # DW_EH_PE_absptr
        .quad   \personality
        .else
        .asciz  ""
        .uleb128 1
        .sleb128 -8
        .uleb128 DW_REG_RA
        .endif
        .byte   0x0c, DW_REG_RSP, 8             # DW_CFA_def_cfa
        .byte   0x80 + DW_REG_RA, 1             # DW_CFA_offset
        .balign 8, 0
8:
.endm

.macro FDE cie, address, size, augmentation:vararg
        .long   8f - 9f
9:      .long   9b - \cie
        .globl  \address
        .hidden \address
\address:
        .quad   0                               # filled in
        .quad   \size
        \augmentation
.endm

        .p2align 3
        .globl  psu_near_eh_frame
        .hidden psu_near_eh_frame
        .type   psu_near_eh_frame, @object
psu_near_eh_frame:
        CIE     cie_exits
        CIE     cie_plain, psu_plain_personality
        CIE     cie_side, psu_side_personality
        FDE     cie_exits, psu_near_exits_begin, 4096
        .balign 8, 0
8:
        FDE     cie_plain, psu_near_plain_begin, (PSU_PLAIN_STRIDE*PSU_PLAIN_GATES), .byte 0
        .byte   PLAIN_CFA
        .balign 8, 0
8:
        FDE     cie_side, psu_near_side_begin, (PSU_SIDE_STRIDE*PSU_SIDE_GATES), .byte 0
        .byte   SIDE_CFA
        .byte   SIDE_RSP
        .byte   SIDE_RA
        .byte   SIDE_RBP
        .balign 8, 0
8:
        .long   0
        .size   psu_near_eh_frame, . - psu_near_eh_frame

        .section .note.GNU-stack, "", @progbits
