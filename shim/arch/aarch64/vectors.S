/* SPDX-License-Identifier: MIT
 *
 * vectors.S: save and restore vector registers that callers keep values in over a call (-fipa-ra), for PSU_FULL gates.
 * In full length: a 128-bit load would clear the rest of an SVE register, which functions of that call standard keep.
 * Nothing but the restored registers changes.
 */
#include "gates.h"

        .arch   armv8.2-a+sve
        .text

/* \regs, one or more, if \bit of w1 is set; each has its place in the area in any case. */
.macro SOME op, bit, regs:vararg
        tbz     w1, #\bit, 1f
        mov     x2, x0
        .irp    r, \regs
        \op     \r, [x2]
        add     x2, x2, #256
        .endr
1:
        .irp    r, \regs
        add     x0, x0, #256
        .endr
.endm

.macro ALL op, r
        SOME    \op, 0, \r\()0
        SOME    \op, 1, \r\()1
        SOME    \op, 2, \r\()2
        SOME    \op, 3, \r\()3
        SOME    \op, 4, \r\()4, \r\()5, \r\()6, \r\()7
        SOME    \op, 5, \r\()8, \r\()9, \r\()10, \r\()11, \r\()12, \r\()13, \r\()14, \r\()15
        SOME    \op, 8, \r\()16, \r\()17
        SOME    \op, 9, \r\()18, \r\()19
        SOME    \op, 10, \r\()20, \r\()21
        SOME    \op, 11, \r\()22, \r\()23
        SOME    \op, 12, \r\()24, \r\()25
        SOME    \op, 13, \r\()26, \r\()27
        SOME    \op, 14, \r\()28, \r\()29
        SOME    \op, 15, \r\()30, \r\()31
.endm

.macro FUNCTION name, op
        .globl  \name
        .hidden \name
        .type   \name, @function
\name:
        .cfi_startproc
        bti     c
        adrp    x2, psu_vectors
        ldr     w2, [x2, :lo12:psu_vectors]
        tbnz    w2, #0, 2f                      // VECTORS_SVE
        ALL     \op, q
        ret
2:      ALL     \op, z
        ret
        .cfi_endproc
        .size   \name, . - \name
.endm

/* void psu_vectors_save(uint8_t to[32][256], uint32_t which)
 * which: bits as in the upper half of psu_gate.preserve */
        FUNCTION psu_vectors_save, str
/* void psu_vectors_restore(const uint8_t from[32][256], uint32_t which) */
        FUNCTION psu_vectors_restore, ldr

#include "property.h"
