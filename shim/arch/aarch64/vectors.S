/* SPDX-License-Identifier: MIT
 *
 * vectors.S: save and restore vector registers that callers keep values in over a call (-fipa-ra), for PSU_FULL gates.
 * In full length: a 128-bit load would clear the rest of an SVE register, which functions of that call standard keep.
 * Nothing but the restored registers changes.
 */
#include "gates.h"

        .arch   armv8.2-a+sve
        .text

.macro ONE op, reg, bit
        tbz     w1, #\bit, 1f
        \op     \reg, [x0]
1:      add     x0, x0, #256
.endm

.macro PAIR op, first, second, bit
        tbz     w1, #\bit, 1f
        \op     \first, [x0]
        add     x2, x0, #256
        \op     \second, [x2]
1:      add     x0, x0, #512
.endm

.macro ALL op, reg
        ONE     \op, \reg\()0, 0
        ONE     \op, \reg\()1, 1
        ONE     \op, \reg\()2, 2
        ONE     \op, \reg\()3, 3
        ONE     \op, \reg\()4, 4
        ONE     \op, \reg\()5, 5
        ONE     \op, \reg\()6, 6
        ONE     \op, \reg\()7, 7
        PAIR    \op, \reg\()16, \reg\()17, 8
        PAIR    \op, \reg\()18, \reg\()19, 9
        PAIR    \op, \reg\()20, \reg\()21, 10
        PAIR    \op, \reg\()22, \reg\()23, 11
        PAIR    \op, \reg\()24, \reg\()25, 12
        PAIR    \op, \reg\()26, \reg\()27, 13
        PAIR    \op, \reg\()28, \reg\()29, 14
        PAIR    \op, \reg\()30, \reg\()31, 15
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

/* void psu_vectors_save(uint8_t to[24][256], uint32_t which)
 * which: bits as in the upper half of psu_gate.preserve */
        FUNCTION psu_vectors_save, str
/* void psu_vectors_restore(const uint8_t from[24][256], uint32_t which) */
        FUNCTION psu_vectors_restore, ldr

#include "property.h"
