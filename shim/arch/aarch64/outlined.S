/* SPDX-License-Identifier: MIT
 *
 * outlined.S: gcc's and clang's outlined atomics, for patches.
 *
 * For AArch64 compilers turn an atomic operation into a call of __aarch64_OPSIZE_ORDER, which uses the instructions of
 * ARMv8.1 where the processor has them (-moutline-atomics, the default).  These functions are in libgcc.a only, hidden in
 * every program that uses them; a patch with an operation that its program happens not to have would find none.  So the
 * shim exports them all.  Other modules' calls are bound to their own already, so nobody else comes here.
 *
 * Arguments as in libgcc (libgcc/config/aarch64/lse.S): value, pointer; for cas expected, new, pointer.  The result is what
 * was there.  x15 to x17 and the flags are changed, no more.
 */
        .arch   armv8.1-a
        .text

/* To 1 where there are no such instructions; psu_self_flags is pools.c's. */
.macro UNLESS_LSE
        bti     c
        adrp    x16, psu_self_flags
        ldr     x16, [x16, :lo12:psu_self_flags]
        cbz     x16, 1f
.endm

.macro BEGIN name
        .p2align 4
        .globl  \name
        .type   \name, @function
\name:
        .cfi_startproc
        UNLESS_LSE
.endm

.macro END name
        .cfi_endproc
        .size   \name, . - \name
.endm

/* \r: w or x; \b: b, h or nothing; \lse: order of the one instruction; \a, \l: of the exclusive pair; \fence: 1 for what
 * the __sync builtins promise, since a pair lets later accesses in between its halves. */
.macro UPDATE op, instruction, size, r, b, order, lse, a, l, fence
        BEGIN __aarch64_\op\size\()_\order
        \op\lse\b \r\()0, \r\()0, [x1]
        ret
1:      mov     \r\()16, \r\()0
2:      ld\a\()xr\b \r\()0, [x1]
        .ifc    \op, swp
        st\l\()xr\b w15, \r\()16, [x1]
        .else
        \instruction \r\()17, \r\()0, \r\()16
        st\l\()xr\b w15, \r\()17, [x1]
        .endif
        cbnz    w15, 2b
        .if     \fence
        dmb     ish
        .endif
        ret
        END __aarch64_\op\size\()_\order
.endm

.macro COMPARE narrow, size, r, b, order, lse, a, l, fence
        BEGIN __aarch64_cas\size\()_\order
        cas\lse\b \r\()0, \r\()1, [x2]
        ret
1:      \narrow \r\()16, \r\()0
2:      ld\a\()xr\b \r\()0, [x2]
        cmp     \r\()0, \r\()16
        b.ne    3f
        st\l\()xr\b w17, \r\()1, [x2]
        cbnz    w17, 2b
3:      .if     \fence
        dmb     ish
        .endif
        ret
        END __aarch64_cas\size\()_\order
.endm

.macro COMPARE16 order, lse, a, l, fence
        BEGIN __aarch64_cas16_\order
        casp\lse x0, x1, x2, x3, [x4]
        ret
1:      mov     x16, x0
        mov     x17, x1
2:      ld\a\()xp x0, x1, [x4]
        cmp     x0, x16
        ccmp    x1, x17, #0, eq
        b.ne    3f
        st\l\()xp w15, x2, x3, [x4]
        cbnz    w15, 2b
3:      .if     \fence
        dmb     ish
        .endif
        ret
        END __aarch64_cas16_\order
.endm

.macro UPDATES op, instruction, order, lse, a, l, fence
        UPDATE  \op, \instruction, 1, w, b, \order, \lse, \a, \l, \fence
        UPDATE  \op, \instruction, 2, w, h, \order, \lse, \a, \l, \fence
        UPDATE  \op, \instruction, 4, w, , \order, \lse, \a, \l, \fence
        UPDATE  \op, \instruction, 8, x, , \order, \lse, \a, \l, \fence
.endm

.macro ORDER order, lse, a, l, fence
        UPDATES ldadd, add, \order, \lse, \a, \l, \fence
        UPDATES ldclr, bic, \order, \lse, \a, \l, \fence
        UPDATES ldeor, eor, \order, \lse, \a, \l, \fence
        UPDATES ldset, orr, \order, \lse, \a, \l, \fence
        UPDATES swp, , \order, \lse, \a, \l, \fence
        COMPARE uxtb, 1, w, b, \order, \lse, \a, \l, \fence
        COMPARE uxth, 2, w, h, \order, \lse, \a, \l, \fence
        COMPARE mov, 4, w, , \order, \lse, \a, \l, \fence
        COMPARE mov, 8, x, , \order, \lse, \a, \l, \fence
        COMPARE16 \order, \lse, \a, \l, \fence
.endm

        ORDER   relax, , , , 0
        ORDER   acq, a, a, , 0
        ORDER   rel, l, , l, 0
        ORDER   acq_rel, al, a, l, 0
        ORDER   sync, al, , l, 1

#include "property.h"
