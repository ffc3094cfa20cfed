/* SPDX-License-Identifier: MIT
 *
 * Numbers that the gates (gates.S, routes.S) share with C: sizes of the pools, and offsets of fields, asserted in
 * routes.c.
 */
#ifndef PSU_GATES_H
#define PSU_GATES_H

/* Strides are powers of two and pools are aligned to them, so that the unwind rules can find the offset in a gate from
 * the program counter alone. */
#define PSU_PLAIN_STRIDE 128
#define PSU_PLAIN_GATES 8192
#define PSU_PLAIN_LOOK 88 /* the entry that looks: within one cache line */
#define PSU_SIDE_STRIDE 256 /* 128 but for the slow paths */
#define PSU_SIDE_GATES 8192
#define PSU_SIDE_LOOK 192
#define PSU_FULL_STRIDE 32
#define PSU_FULL_GATES 2048
#define PSU_FULL_LOOK 0 /* there is none */

#define EXIT_SIZE 16

/* psu_gate_area (near.c): what PLAIN and SIDE gates read, at fixed distances from their code. */
#define AREA_SELF 0         /* offset of psu_self from the thread pointer */
#define AREA_PLAIN 4096
#define AREA_SIDE (AREA_PLAIN + GATE_SIZE * PSU_PLAIN_GATES)
#define AREA_END (AREA_SIDE + GATE_SIZE * PSU_SIDE_GATES)

#define GATE_SIZE 128
#define GATE_CODE 0
#define GATE_COUNTER 8
#define GATE_BODY 24
#define GATE_BASE 32
#define GATE_SPAN 40

/* From what psu_self holds: the address of psu_block.count[0].enter, relative to which psu_gate.counter counts. */
#define BLOCK_FREE (-8)
#define BLOCK_ENTER 0
#define BLOCK_LEAVE 4

#define SIDE_FP 0
#define SIDE_RETURN 8
#define SIDE_NEXT 16
#define SIDE_SP 32
#define SIDE_HOME 48

#endif
