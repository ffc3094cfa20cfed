/* SPDX-License-Identifier: MIT
 *
 * depths.c: a thread leaves hundreds of calls at once by longjmp, from deep in a recursion, over and over.  The side entries of
 * these calls are found again when the next recursion comes to the same places of the stack: their number stays.
 */
#include <setjmp.h>

#include "host.h"

long work(long n);
long work_original(long n) { return n; }
STUB(work);
static jmp_buf out;
static volatile long deepest;

__attribute__((noinline)) static long version(long n)
{
    if (n >= deepest)
        longjmp(out, 1);
    return work(n + 1) + 1;
}

int main(void)
{
    host_agent();
    for (uint32_t kind = PSU_SIDE; kind <= PSU_FULL; kind++) {
        void *page = host_jump_to((void *)version);
        struct host_switch s = {&work_slot, 0, (uint64_t)page, kind, kind, 1u << 11};
        CHECK(host_commit(kind, page, &s, 1, kind == PSU_FULL ? PSU_SIDE : -1) == 0);
        for (int round = 0; round < 3000; round++) {
            deepest = 300 + round * 37 % 200;
            if (!setjmp(out))
                work(0);
        }
        struct psu_block *b = (struct psu_block *)psu_runtime.blocks;
        printf("kind %u: %lu entries\n", kind, (unsigned long)b->chunks->gate);
        CHECK(b->chunks->gate < 1000, "%lu entries", (unsigned long)b->chunks->gate);
    }
    puts("ok");
    return 0;
}
