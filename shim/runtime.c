/* SPDX-License-Identifier: MIT
 *
 * runtime.c: psu_runtime, the root of everything that psu-bin finds in the process.
 */
#include "internal.h"

extern void psu_borrow(void); /* arch/ARCH/borrow.S */

struct psu_gate psu_full_data[PSU_FULL_GATES];
#define psu_plain_data ((struct psu_gate *)(psu_gate_area + AREA_PLAIN))
#define psu_side_data ((struct psu_gate *)(psu_gate_area + AREA_SIDE))

#define KIND(NAME, name) \
    [PSU_##NAME] = {psu_##name##_gates, psu_##name##_data, PSU_##NAME##_STRIDE, PSU_##NAME##_LOOK, PSU_##NAME##_GATES, \
                    psu_##name##_pending, psu_##name##_redirect}
#define POOL(NAME, name) \
    [PSU_##NAME] = {(uint64_t)psu_##name##_gates, (uint64_t)psu_##name##_data, PSU_##NAME##_STRIDE, PSU_##NAME##_LOOK, \
                    PSU_##NAME##_GATES}

const struct psu_kind psu_kinds[PSU_GATE_KINDS] = {KIND(PLAIN, plain), KIND(SIDE, side), KIND(FULL, full)};

struct psu_runtime psu_runtime = {
    .magic = PSU_RUNTIME_MAGIC,
    .version = PSU_RUNTIME_VERSION,
    .size = sizeof(struct psu_runtime),
    .sizeof_gate = sizeof(struct psu_gate),
    .sizeof_object = sizeof(struct psu_object),
    .leaving = (uint64_t)__start_psu_leaving,
    .leaving_end = (uint64_t)__stop_psu_leaving,
    .sizeof_block = sizeof(struct psu_block),
    .sizeof_side = sizeof(struct psu_side),
    .offsetof_count = offsetof(struct psu_block, count),
    .indices = PSU_INDICES,
    .pool = {POOL(PLAIN, plain), POOL(SIDE, side), POOL(FULL, full)},
    .objects = (uint64_t)psu_objects,
    .totals = (uint64_t)psu_totals,
    .shared = (uint64_t)psu_shared,
    .command = (uint64_t)psu_runtime.command_buffer,
    .start_agent = (uint64_t)psu_agent_ensure,
    .borrow = (uint64_t)psu_borrow,
};
