/* SPDX-License-Identifier: MIT
 *
 * reclaim.c: give back the memory of retired objects that nobody executes any more.  Runs in the agent only.
 *
 * An object is quiescent when its leaves equal its enters, summed over all threads: leaves first, then a barrier, then
 * enters.  A leave that we saw has its enter before it, so the enters we read later are at least those leaves; if they
 * are no more, no call was inside when the leaves were read, and as the object's gates were redirected before a barrier
 * (commit.c, step 8), none can come in: calls that are not counted come from inside (commit.c, "inner calls").  Late threads that pass a redirected gate count one enter and one leave: they
 * can only make us wait for another turn.  A block that joins the list between the two sums adds enters only: the same.
 */
#include "internal.h"

static struct psu_counter sum(uint32_t index)
{
    struct psu_counter s = {0, 0};
    struct psu_block *b;
    const struct psu_counter *tables[] = {&psu_totals[index], &psu_shared[index]};
    for (int i = 0; i < 2; i++)
        s.leave += __atomic_load_n(&tables[i]->leave, __ATOMIC_ACQUIRE);
    for (b = (struct psu_block *)__atomic_load_n(&psu_runtime.blocks, __ATOMIC_ACQUIRE); b; b = b->all)
        s.leave += __atomic_load_n(&b->count[index].leave, __ATOMIC_ACQUIRE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++)
        s.enter += __atomic_load_n(&tables[i]->enter, __ATOMIC_ACQUIRE);
    for (b = (struct psu_block *)__atomic_load_n(&psu_runtime.blocks, __ATOMIC_ACQUIRE); b; b = b->all)
        s.enter += __atomic_load_n(&b->count[index].enter, __ATOMIC_ACQUIRE);
    return s;
}

/* Each thing is struck off before it is given back: a child forked in between must not give it back once more, when something
 * else may lie there.  It loses a region instead. */
static void release(uint32_t index)
{
    struct psu_object *o = &psu_objects[index];
    psu_frames_remove(index, o->eh_frame);
    psu_debugger_remove(index);
    for (int i = 0; i < PSU_REGIONS; i++) {
        uint64_t size = o->region[i].size;
        __atomic_store_n(&o->region[i].size, 0, __ATOMIC_SEQ_CST);
        if (size)
            psu_syscall(NR_munmap, o->region[i].address, PSU_PAGES(size));
        o->region[i].address = 0;
    }
    o->eh_frame = 0;
    psu_runtime.retired_count--;
    __atomic_store_n(&o->state, PSU_FREE, __ATOMIC_RELEASE);
}

/* In a fork child: states and their number are changed by two stores. */
void psu_reclaim_repair(void)
{
    uint32_t retired = 0;
    for (uint32_t i = 0; i < psu_runtime.object_limit; i++)
        retired += psu_objects[i].state == PSU_RETIRED;
    psu_runtime.retired_count = retired;
}

/* All or none.  Late threads that pass a redirected gate make the sums differ for a moment: psu-bin asks again. */
int64_t psu_write_off(const struct psu_surplus *s, uint32_t count, uint64_t *failed)
{
    for (uint32_t i = 0; i < count; i++) {
        *failed = i;
        if (s[i].index >= PSU_INDICES || psu_objects[s[i].index].state != PSU_RETIRED
            || __atomic_load_n(&psu_objects_without_gate[s[i].index], __ATOMIC_ACQUIRE))
            return -PSU_EINVAL;
        struct psu_counter now = sum(s[i].index);
        if (now.enter != s[i].enter || now.leave != s[i].leave)
            return -PSU_EAGAIN;
    }
    *failed = 0;
    for (uint32_t i = 0; i < count; i++)
        psu_totals[s[i].index].leave += s[i].enter - s[i].leave;
    return 0;
}

uint32_t psu_reclaim(void)
{
    uint32_t freed = 0;
    for (uint32_t i = 0; i < psu_runtime.object_limit && psu_runtime.retired_count; i++)
        if (psu_objects[i].state == PSU_RETIRED) {
            struct psu_counter s = sum(i);
            if (s.enter == s.leave) {
                release(i);
                freed++;
            }
        }
    return freed;
}
