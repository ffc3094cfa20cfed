/* SPDX-License-Identifier: MIT
 *
 * Numbers that the gates (gates.S, routes.S) share with C: sizes of the pools, and offsets of fields, asserted in
 * routes.c.
 */
#ifndef PSU_GATES_H
#define PSU_GATES_H

#define PSU_PLAIN_STRIDE 256
#define PSU_PLAIN_GATES 8192
#define PSU_PLAIN_LOOK 192 /* the entry that looks: within one cache line */
#define PSU_SIDE_STRIDE 320
#define PSU_SIDE_GATES 8192
#define PSU_SIDE_LOOK 256
#define PSU_FULL_STRIDE 32
#define PSU_FULL_GATES 2048
#define PSU_FULL_LOOK 0 /* there is none */

/* psu_gate_area (pools.c): the data of PLAIN and SIDE gates. */
#define AREA_PLAIN 0
#define AREA_SIDE (AREA_PLAIN + GATE_SIZE * PSU_PLAIN_GATES)
#define AREA_END (AREA_SIDE + GATE_SIZE * PSU_SIDE_GATES)

#define GATE_SIZE 128
#define GATE_CODE 0
#define GATE_COUNTER 8
#define GATE_BODY 24
#define GATE_BASE 32
#define GATE_SPAN 40

/* psu_self is the address of psu_block.count[0].enter, relative to which psu_gate.counter counts, and in bit 62 whether
 * the processor has the atomic instructions of ARMv8.1 (LSE).  Linux has the processor ignore the top byte of data
 * addresses (TBI; tagged-address-abi.rst), so the word is used as an address as it is; bits 56 to 59 are left alone, as
 * memory tagging (MTE) looks at them. */
#define BLOCK_FREE (-8)
#define BLOCK_ENTER 0
#define BLOCK_LEAVE 4
#define SELF_LSE_BIT 62

#define SIDE_FP 0
#define SIDE_RETURN 8
#define SIDE_NEXT 16
#define SIDE_SP 32
#define SIDE_HOME 48

/* psu_vectors: what the vector registers of this processor are. */
#define VECTORS_SVE 1
#define VECTORS_SME 2

#define GATE_NEVER 0x7fffffff /* an offset that no gate has */

/* struct psu_frame (arch.h). */
#define FRAME_FLAGS 152
#define FRAME_FP 160
#define FRAME_LR 168
#define FRAME_TARGET 176
#define FRAME_BACK 184
#define FRAME_SIZE 192

#endif
