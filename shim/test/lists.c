/* SPDX-License-Identifier: MIT
 *
 * lists.c: a thread's list of side entries leads round in a circle of entries in use, as a handler that goes on with another
 * context may leave it, and there is no memory for more.  The entries that are free are found all the same: calls are
 * counted in and out, not in for good.
 */
#include "host.h"

long work(long n);
long work_original(long n) { return n; }
STUB(work);

static struct psu_block *block;

static long turned_round(void)
{
    struct psu_side *s = block->sides; /* of the first call, in progress */
    CHECK(s->sp & 1);
    CHECK(block->chunks && block->chunks->gate > 8192, "too few entries for the test"); /* SEARCHED in entries.c */
    for (struct psu_side *first = s; s < first + 3; s++)
        CHECK(s->sp & 1);
    block->sides[0].next = &block->sides[1];
    block->sides[1].next = &block->sides[2];
    block->sides[2].next = &block->sides[0];
    block->free = &block->sides[0];
    block->fresh = 0;
    psu_runtime.silent = 1;
    long r = work(-1);
    psu_runtime.silent = 0;
    return r;
}

__attribute__((noinline)) static long version(long n)
{
    if (n > 0)
        return work(n - 1) + 1;
    return n == 0 ? turned_round() : 1000;
}

int main(void)
{
    host_agent();
    void *page = host_jump_to((void *)version);
    struct host_switch s = {&work_slot, 0, (uint64_t)page, PSU_SIDE, 0, 0};
    CHECK(host_commit(0, page, &s, 1, -1) == 0);
    CHECK(work(-1) == 1000);
    block = (struct psu_block *)psu_runtime.blocks;
    CHECK(work(10000) == 11000);
    uint32_t enters;
    CHECK(host_inside(0, &enters) == 0, "%d stay", host_inside(0, &enters));
    CHECK(enters == 10003, "%u", enters);
    CHECK(work(10000) == 11000);
    puts("ok");
    return 0;
}
