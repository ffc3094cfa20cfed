/* SPDX-License-Identifier: MIT
 *
 * routes.S: the ways out of a gate that are not the fast one: no block of counters yet, a commit under way, a retired
 * gate, and the whole of PSU_FULL's entering and leaving.  All are rare, so all are made alike: save every general
 * register and the flags (struct psu_frame in arch.h), let C decide (routes.c, compiled without vector registers),
 * restore, and do one of enum psu_action.  Nothing of the interrupted call is lost: arguments, al, r10, r11, flags,
 * vectors.
 *
 * A jump with all registers full takes its target from the stack, just below where the stack pointer ends up: 128 bytes
 * there are nobody else's (red zone), not even a signal handler's.
 *
 * A gate that is undone leaves one return address too many on a CET shadow stack, if there is one: it is taken off.
 */
#include "gates.h"
#include <cet.h>

        .text

.macro SAVE
        SAVE_NOTHING
        pushfq
        .cfi_adjust_cfa_offset 8
        push    %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset rbp, 0
        SAVE_REST
.endm

/* `target` and `left` */
.macro SAVE_NOTHING
        .rept   3
        pushq   $0
        .cfi_adjust_cfa_offset 8
        .endr
.endm

.macro SAVE_REST
        push    %rax
        .cfi_adjust_cfa_offset 8
        push    %rcx
        .cfi_adjust_cfa_offset 8
        push    %rdx
        .cfi_adjust_cfa_offset 8
        push    %rsi
        .cfi_adjust_cfa_offset 8
        push    %rdi
        .cfi_adjust_cfa_offset 8
        push    %r8
        .cfi_adjust_cfa_offset 8
        push    %r9
        .cfi_adjust_cfa_offset 8
        push    %r10
        .cfi_adjust_cfa_offset 8
        push    %r11
        .cfi_adjust_cfa_offset 8
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset rbx, 0
        cld
.endm

.macro RESTORE
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        .cfi_restore rbx
        pop     %r11
        .cfi_adjust_cfa_offset -8
        pop     %r10
        .cfi_adjust_cfa_offset -8
        pop     %r9
        .cfi_adjust_cfa_offset -8
        pop     %r8
        .cfi_adjust_cfa_offset -8
        pop     %rdi
        .cfi_adjust_cfa_offset -8
        pop     %rsi
        .cfi_adjust_cfa_offset -8
        pop     %rdx
        .cfi_adjust_cfa_offset -8
        pop     %rcx
        .cfi_adjust_cfa_offset -8
        pop     %rax
        .cfi_adjust_cfa_offset -8
        pop     %rbp
        .cfi_adjust_cfa_offset -8
        .cfi_restore rbp
        popfq
        .cfi_adjust_cfa_offset -8
.endm

/* uint32_t c_function(struct psu_frame *, second) -> eax */
.macro CALL_C c_function, second
        mov     \second, %rsi
        mov     %rsp, %rdi
        mov     %rsp, %rbx
        .cfi_def_cfa_register rbx
        and     $-16, %rsp
        call    \c_function
        mov     %rbx, %rsp
        .cfi_def_cfa_register rsp
.endm

/* As CALL_C, for what leaves a gate (psu_runtime.leaving): whoever searches the stacks takes the return addresses in
 * there for somebody on the way out.  On a stack that is no thread's own nothing below the stack pointer is known to be
 * over, so they are wiped: what C pushed lies within 16 words. */
.macro CALL_LEAVING c_function, second
        mov     \second, %rsi
        mov     %rsp, %rdi
        mov     %rsp, %rbx
        .cfi_def_cfa_register rbx
        and     $-16, %rsp
        call    \c_function
        .set    word, 1
        .rept   16
        movq    $0, -8 * word(%rsp)
        .set    word, word + 1
        .endr
        mov     %rbx, %rsp
        .cfi_def_cfa_register rsp
.endm

/* Restore and go on at `target` with the stack pointer `words` above `back`. */
.macro FINISH_JUMP words
        RESTORE
        lea     24 + 8 * \words(%rsp), %rsp
        .cfi_def_cfa rsp, 8
        notrack jmp *-8 - 8 * \words(%rsp)
.endm

.macro FINISH_RETURN
        RESTORE
        lea     24(%rsp), %rsp
        .cfi_adjust_cfa_offset -24
        ret
.endm

/* One frame off the shadow stack; rdsspq leaves 0 where there is none. */
.macro DROP_SHADOW
        xor     %ecx, %ecx
        rdsspq  %rcx
        test    %rcx, %rcx
        jz      9f
        mov     $1, %ecx
        incsspq %rcx
9:
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

/* Called by gates without a block, at entry (r11 := block) and on leaving. */
FUNCTION psu_plain_slow
        SAVE
        CALL_C  psu_slow_enter, $0
        FINISH_RETURN
END_FUNCTION psu_plain_slow

FUNCTION psu_slow_leave
        SAVE
        CALL_LEAVING psu_slow_leaving, $0
        .cfi_remember_state
        cmp     $1, %eax
        jae     1f
        FINISH_RETURN
        .cfi_restore_state
1:      mov     %eax, %ebx                      # counted out: to the gate's caller
        DROP_SHADOW
        cmp     $1, %ebx
        .cfi_remember_state
        je      2f
        FINISH_RETURN
        .cfi_restore_state
2:      RESTORE
        lea     24 + 16(%rsp), %rsp             # as PLAIN's `pop`, r11 is what that would have restored
        .cfi_def_cfa rsp, 8
        ret
END_FUNCTION psu_slow_leave

/* Where, to unwinders, the routine of a gate returns to that was undone or left: the gate's frame without its personality
 * routine.  Never executed.  Unwinders look at the byte before a return address. */
.macro UNDONE name, rules:vararg
        .p2align 4
        .type   before_\name, @function
before_\name:
        .cfi_startproc
        \rules
        ud2
        .globl  \name
        .hidden \name
\name:
        ud2
        .cfi_endproc
        .size   before_\name, . - before_\name
.endm

.macro PLAIN_UNDONE_RULES
        .cfi_def_cfa_offset 16
.endm
/* The CFA is 8 higher than it would be, as in SIDE gates; `left` of struct psu_frame is below. */
.macro SIDE_UNDONE_RULES
        .cfi_def_cfa_offset 8
        .cfi_escape 0x14, 7, 1                  # DW_CFA_val_offset rsp: CFA - 8
        .cfi_offset 16, -32
        .cfi_offset rbp, -40
.endm
        UNDONE  psu_plain_undone, PLAIN_UNDONE_RULES
        UNDONE  psu_side_undone, SIDE_UNDONE_RULES

/* Called by a SIDE gate without a block or a free entry: r11 := block, rbp := first free entry.  Without memory the
 * gate is undone; above `back` are then the saved rbp and the caller's return address. */
FUNCTION psu_side_slow
        SAVE
        CALL_C  psu_slow_side, $0
        .cfi_remember_state
        test    %eax, %eax
        jnz     1f
        FINISH_RETURN
        .cfi_restore_state
1:      DROP_SHADOW
        FINISH_JUMP 2
END_FUNCTION psu_side_slow

/* What psu_gate.code holds when it is not a version: called by the gate in the version's place. */
.macro ROUTE name, kind, redirect, words
FUNCTION \name
        SAVE
        CALL_LEAVING psu_route, $(\kind+256*\redirect)
        .cfi_remember_state
        test    %eax, %eax
        jnz     1f
        FINISH_JUMP 0                           # go on to the version
        .cfi_restore_state
1:      DROP_SHADOW
        FINISH_JUMP \words                      # undone: stack and registers are as at the stub
END_FUNCTION \name
.endm

        ROUTE   psu_plain_pending, 0, 0, 2
        ROUTE   psu_plain_redirect, 0, 1, 2
        ROUTE   psu_side_pending, 1, 0, 0
        ROUTE   psu_side_redirect, 1, 1, 0
        ROUTE   psu_full_pending, 2, 0, 0
        ROUTE   psu_full_redirect, 2, 1, 0

/* Called first by a FULL gate.  For unwinders it stands in the gate's place: its frame is the gate's caller's callee.
 * */
FUNCTION psu_full_enter
        .cfi_def_cfa_offset 16
        SAVE
        CALL_C  psu_entering_full, $0
        .cfi_remember_state
        test    %eax, %eax
        jnz     1f
        RESTORE
        lea     16(%rsp), %rsp
        .cfi_adjust_cfa_offset -16
        pop     %rbp                            # `target`: the entry; the caller's rbp is in it
        .cfi_adjust_cfa_offset -8
        .cfi_escape 0x16, 6, 3, 0x76, SIDE_FP, 0x06     # DW_CFA_val_expression rbp: breg6 + SIDE_FP, deref
        popq    (%rsp)                          # the gate's address over the caller's: pop counts rsp up, then stores
        .cfi_def_cfa rsp, 8
        .cfi_escape 0x10, 16, 2, 0x76, SIDE_RETURN      # DW_CFA_expression return address: breg6 + SIDE_RETURN
        # Where it was, the version's frame may have a word that is never written: who searches the stacks would find a call
        # there, long after it was left.
        movq    $0, -8(%rsp)
        ret
        .cfi_restore_state
1:      mov     %eax, %ebx
        DROP_SHADOW
        cmp     $1, %ebx
        .cfi_remember_state
        jne     psu_full_stacked
        FINISH_JUMP 1
        .cfi_restore_state
END_FUNCTION psu_full_enter

/* Jumped to: psu_full_enter's psu_frame stays on the stack and keeps the registers (poor.c); ebx >> 8 bytes go below it.  The
 * frame pointer is at its `left`, so all that is popped by others lies at fixed distances from it: rbx is 96 below, flags
 * 8 below, `target` 16 above, `back` 24, the caller's return address 32. */
FUNCTION psu_full_stacked
        .cfi_personality 0x1b, psu_stacked_personality
        .cfi_def_cfa rsp, 136
        .cfi_offset rbp, -56
        .cfi_offset rbx, -136
        lea     96(%rsp), %rbp
        .cfi_def_cfa rbp, 40
        shr     $8, %ebx
        sub     %rbx, %rsp
        lea     -96(%rbp), %rdi
        mov     %rsp, %rbx
        and     $-16, %rsp
        call    psu_stacking
        mov     %rbx, %rsp
        pushq   -8(%rbp)
        popfq
        mov     -96(%rbp), %rbx
        mov     -88(%rbp), %r11
        mov     -80(%rbp), %r10
        mov     -72(%rbp), %r9
        mov     -64(%rbp), %r8
        mov     -56(%rbp), %rdi
        mov     -48(%rbp), %rsi
        mov     -40(%rbp), %rdx
        mov     -32(%rbp), %rcx
        mov     -24(%rbp), %rax
        notrack call *16(%rbp)
        .globl  psu_stacked_back
        .hidden psu_stacked_back
psu_stacked_back:                               # what it returned, in the order of psu_frame
        pushfq
        .irp    r, rbp, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rbx
        push    %\r
        .endr
        cld
        mov     %rsp, %rdi
        lea     -96(%rbp), %rsi
        mov     %rsp, %rbx
        and     $-16, %rsp
        call    psu_unstacking
        mov     %rbx, %rsp
        .irp    r, rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, rbp
        pop     %\r
        .endr
        popfq
        .cfi_restore rbx
        movq    $0, 24(%rbp)                    # whoever searches the stacks finds the gate no more
        lea     32(%rbp), %rsp
        .cfi_def_cfa rsp, 8
        mov     -48(%rsp), %rbp                 # still nobody else's (red zone)
        .cfi_restore rbp
        ret
END_FUNCTION psu_full_stacked

        .section psu_leaving, "ax", @progbits
/* Jumped to by a FULL gate, when the version has returned: rbp is the entry, the caller's return address is in it. */
FUNCTION psu_full_leave
        .cfi_def_cfa_offset 0
        .cfi_escape 0x10, 16, 2, 0x76, SIDE_RETURN
        .cfi_escape 0x16, 6, 3, 0x76, SIDE_FP, 0x06
        pushq   SIDE_RETURN(%rbp)
        .cfi_def_cfa_offset 8
        .cfi_offset 16, -8
        SAVE_NOTHING                            # as SAVE, but the rbp to go back to is in the entry
        pushfq
        .cfi_adjust_cfa_offset 8
        pushq   SIDE_FP(%rbp)
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset rbp, 0
        SAVE_REST
        CALL_LEAVING psu_leaving_full, %rbp
        FINISH_RETURN
END_FUNCTION psu_full_leave

        .section .note.GNU-stack, "", @progbits
