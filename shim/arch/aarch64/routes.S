/* SPDX-License-Identifier: MIT
 *
 * routes.S: the ways out of a gate that are not the fast one: no block of counters yet, a commit under way, a retired
 * gate, and the whole of PSU_FULL's entering and leaving.  All are rare, so all are made alike: save every volatile
 * general register and the flags (struct psu_frame in arch.h), let C decide (the shim's routes.c, compiled without
 * vector registers), restore, and do one of enum psu_action.  Nothing of the interrupted call is lost: arguments, x8,
 * x18, flags, vectors.
 *
 * x16 and x17 are ours at a gate's entry: the stub before it used x16, and linkers' veneers may use both.  A jump with
 * all other registers full takes its target from x16, which is also a register that `bti c` admits.
 *
 * Nothing is ever kept below the stack pointer: AArch64 has no red zone.
 */
#include "gates.h"

        .text

/* Where to come back to in the gate is \back. */
.macro SAVE back
        sub     sp, sp, #FRAME_SIZE
        .cfi_adjust_cfa_offset FRAME_SIZE
        stp     x0, x1, [sp]
        stp     x2, x3, [sp, #16]
        stp     x4, x5, [sp, #32]
        stp     x6, x7, [sp, #48]
        stp     x8, x9, [sp, #64]
        stp     x10, x11, [sp, #80]
        stp     x12, x13, [sp, #96]
        stp     x14, x15, [sp, #112]
        stp     x16, x17, [sp, #128]
        mrs     x16, nzcv
        stp     x18, x16, [sp, #144]
        stp     x29, x30, [sp, #FRAME_FP]
        .cfi_rel_offset x29, FRAME_FP
        .cfi_rel_offset x30, FRAME_LR
        stp     xzr, \back, [sp, #FRAME_TARGET]
.endm

/* All but x16, x17. */
.macro RESTORE
        ldp     x0, x1, [sp]
        ldp     x2, x3, [sp, #16]
        ldp     x4, x5, [sp, #32]
        ldp     x6, x7, [sp, #48]
        ldp     x8, x9, [sp, #64]
        ldp     x10, x11, [sp, #80]
        ldp     x12, x13, [sp, #96]
        ldp     x14, x15, [sp, #112]
        ldp     x18, x16, [sp, #144]
        msr     nzcv, x16
        ldp     x29, x30, [sp, #FRAME_FP]
        .cfi_restore x29
        .cfi_restore x30
.endm

.macro DROP_FRAME
        add     sp, sp, #FRAME_SIZE
        .cfi_def_cfa sp, 0
.endm

.macro FUNCTION name
        .p2align 4
        .globl  \name
        .hidden \name
        .type   \name, @function
\name:
        .cfi_startproc
.endm

.macro END_FUNCTION name
        .cfi_endproc
        .size   \name, . - \name
.endm

/* ---- slow paths of PLAIN and SIDE ---------------------------------------------------------------------
 * Jumped to by gates, with the place to come back to in x9; x29 and x30 are still, or again, the caller's, so that to
 * unwinders these functions stand in the gate's place.  They come back with `ret`, which needs no landing mark. */
.macro COME_BACK
        RESTORE
        ldp     x16, x17, [sp, #128]
        DROP_FRAME
        ret     x9
.endm

/* No block: x16 := what psu_self holds. */
FUNCTION psu_plain_slow
        SAVE    x9
        mov     x0, sp
        bl      psu_slow_enter
        COME_BACK
END_FUNCTION psu_plain_slow

        .section psu_leaving, "ax", %progbits
/* No block on leaving: x16 := what psu_self holds; x17 is kept, a SIDE gate has its entry there. */
FUNCTION psu_slow_leave
        SAVE    x9
        mov     x0, sp
        bl      psu_slow_leaving
        .cfi_remember_state
        cbnz    w0, 1f
        COME_BACK
        .cfi_restore_state
1:      RESTORE                                 // counted out: to the gate's caller
        DROP_FRAME
        ret
END_FUNCTION psu_slow_leave

        .text
/* No block or no free entry: x16 := what psu_self holds, x17 := first free entry.  Without memory the call goes on
 * without the gate. */
FUNCTION psu_side_slow
        SAVE    x9
        mov     x0, sp
        bl      psu_slow_side
        .cfi_remember_state
        cbnz    w0, 1f
        COME_BACK
        .cfi_restore_state
1:      ldr     x17, [sp, #FRAME_TARGET]
        RESTORE
        DROP_FRAME
        mov     x16, x17
        br      x16
END_FUNCTION psu_side_slow

/* ---- routes -------------------------------------------------------------------------------------------
 * What psu_gate.code holds when it is not a version: called by the gate in the version's place. */
.macro ROUTE name, kind, redirect, frame
FUNCTION \name
        bti     c
        SAVE    x30
        mov     x0, sp
        mov     w1, #\kind + 256 * \redirect
        bl      psu_route
        ldr     x17, [sp, #FRAME_TARGET]
        .cfi_remember_state
        .if     \frame
        cbnz    w0, 1f
        .endif
        RESTORE                                 // the version, or, in SIDE and FULL, undone: C restored x29 and x30
        DROP_FRAME
        mov     x16, x17
        br      x16
        .if     \frame
        .cfi_restore_state
1:      RESTORE
        DROP_FRAME
        ldp     x29, x30, [sp], #\frame         // the gate's frame record: the caller's
        mov     x16, x17
        br      x16
        .endif
END_FUNCTION \name
.endm

        ROUTE   psu_plain_pending, 0, 0, 16
        ROUTE   psu_plain_redirect, 0, 1, 16
        ROUTE   psu_side_pending, 1, 0, 0
        ROUTE   psu_side_redirect, 1, 1, 0
        ROUTE   psu_full_pending, 2, 0, 0
        ROUTE   psu_full_redirect, 2, 1, 0

/* Where, to unwinders, the routine of a PLAIN gate returns to that was undone: the gate's frame without its personality
 * routine.  Unwinders look at the instruction before a return address. */
        .p2align 4
        .type   undone, %function
undone:
        .cfi_startproc
        .cfi_def_cfa sp, 16
        .cfi_offset x29, -16
        .cfi_offset x30, -8
        udf     #0
        .globl  psu_plain_undone
        .hidden psu_plain_undone
psu_plain_undone:
        udf     #0
        .cfi_endproc
        .size   undone, . - undone

/* ---- FULL --------------------------------------------------------------------------------------------- */

/* Jumped to first by a FULL gate, with the place to come back to in x17. */
FUNCTION psu_full_enter
        SAVE    x17
        mov     x0, sp
        bl      psu_entering_full
        .cfi_remember_state
        cbnz    w0, 1f
        ldr     x17, [sp, #FRAME_TARGET]        // the entry; the caller's x29 and x30 are in it
        RESTORE
        mov     x16, x17
        ldr     x17, [sp, #FRAME_BACK]
        str     xzr, [sp, #FRAME_BACK]          // not for long after the call is over: see x86-64's
        DROP_FRAME
        mov     x29, x16
        .cfi_escape 0x10, 29, 2, 0x8d, SIDE_FP          // DW_CFA_expression x29: breg29 + SIDE_FP
        .cfi_escape 0x10, 30, 2, 0x8d, SIDE_RETURN
        ret     x17
        .cfi_restore_state
1:      cmp     w0, #1
        .cfi_remember_state
        b.ne    psu_full_stacked
        ldr     x17, [sp, #FRAME_TARGET]
        RESTORE
        DROP_FRAME
        mov     x16, x17
        br      x16
        .cfi_restore_state
END_FUNCTION psu_full_enter

/* x0 to x15 and x18 to or from the psu_frame at \base, which is none of these: the caller does the flags. */
.macro REGISTERS pair, one, base
        \pair   x0, x1, [\base]
        \pair   x2, x3, [\base, #16]
        \pair   x4, x5, [\base, #32]
        \pair   x6, x7, [\base, #48]
        \pair   x8, x9, [\base, #64]
        \pair   x10, x11, [\base, #80]
        \pair   x12, x13, [\base, #96]
        \pair   x14, x15, [\base, #112]
        \one    x18, [\base, #144]
.endm

/* Jumped to: psu_full_enter's psu_frame stays on the stack and keeps the registers (poor.c); w0 >> 8 bytes go below it.  The
 * frame pointer is at its `fp`, a frame record. */
FUNCTION psu_full_stacked
        .cfi_personality 0x1b, psu_stacked_personality
        .cfi_def_cfa sp, FRAME_SIZE
        .cfi_offset x29, FRAME_FP - FRAME_SIZE
        .cfi_offset x30, FRAME_LR - FRAME_SIZE
        add     x29, sp, #FRAME_FP
        .cfi_def_cfa x29, FRAME_SIZE - FRAME_FP
        lsr     w1, w0, #8
        mov     x0, sp
        sub     sp, sp, x1
        bl      psu_stacking
        sub     x16, x29, #FRAME_FP
        ldr     x17, [x16, #FRAME_FLAGS]
        msr     nzcv, x17
        REGISTERS ldp, ldr, x16
        ldr     x16, [x16, #FRAME_TARGET]
        blr     x16
        .globl  psu_stacked_back
        .hidden psu_stacked_back
psu_stacked_back:                               // what it returned
        sub     sp, sp, #FRAME_SIZE
        REGISTERS stp, str, sp
        mrs     x16, nzcv
        str     x16, [sp, #FRAME_FLAGS]
        mov     x0, sp
        sub     x1, x29, #FRAME_FP
        bl      psu_unstacking
        ldr     x16, [sp, #FRAME_FLAGS]
        msr     nzcv, x16
        REGISTERS ldp, ldr, sp
        str     xzr, [x29, #FRAME_BACK - FRAME_FP]      // whoever searches the stacks finds the gate no more
        add     x16, x29, #FRAME_SIZE - FRAME_FP
        .cfi_def_cfa x16, 0
        ldp     x29, x30, [x29]
        .cfi_restore x29
        .cfi_restore x30
        mov     sp, x16
        .cfi_def_cfa sp, 0
        ret
END_FUNCTION psu_full_stacked

        .section psu_leaving, "ax", %progbits
/* Jumped to by a FULL gate, when the version has returned: x29 is the entry. */
FUNCTION psu_full_leave
        .cfi_escape 0x10, 29, 2, 0x8d, SIDE_FP
        .cfi_escape 0x10, 30, 2, 0x8d, SIDE_RETURN
        mov     x17, x29
        ldp     x29, x30, [x29, #SIDE_FP]
        .cfi_restore x29
        .cfi_restore x30
        SAVE    x17
        mov     x0, sp
        mov     x1, x17
        bl      psu_leaving_full
        RESTORE
        DROP_FRAME
        ret
END_FUNCTION psu_full_leave

#include "property.h"
