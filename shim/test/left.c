/* SPDX-License-Identifier: MIT
 *
 * left.c: calls are left by longjmp from a handler on another stack, which makes calls of its own; those are the ones that find
 * the list of entries empty, and their place is not where entries were left.  These are found all the same, and entries of
 * calls that are still in progress are kept, whoever reached whom by tail calls.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "host.h"

enum { CHAIN = 5, ROUNDS = 3000 };

long work(long n);
long work_original(long n) { return n; }
long chain(long n);
long chain_original(long n) { return n; }
STUB(work);
STUB(chain);
static jmp_buf out;

static void handler(int number)
{
    CHECK(work(-number) == -number);
    longjmp(out, 1);
}

__attribute__((noinline)) static long version(long n)
{
    if (n == 0)
        raise(SIGUSR1);
    return n;
}

static void leave(int times)
{
    for (volatile int i = 0; i < times; i++)
        if (!setjmp(out)) {
            work(0);
            CHECK(0, "it came back");
        }
}

__attribute__((noinline)) static long chain_version(long n)
{
    leave(ROUNDS);
    return n ? chain(n - 1) : 77;
}

static uint32_t entries(void) { return (uint32_t)((struct psu_block *)psu_runtime.blocks)->chunks->gate; }

int main(void)
{
    stack_t other = {.ss_sp = malloc(64 << 10), .ss_size = 64 << 10};
    sigaltstack(&other, 0);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_NODEFER}, 0);
    host_agent();
    for (uint32_t kind = PSU_SIDE; kind <= PSU_FULL; kind++) {
        void *page = host_jump_to((void *)version), *second = host_jump_to((void *)chain_version);
        struct host_switch s = {&work_slot, 0, (uint64_t)page, kind, 2 * kind, 1u << 11};
        struct host_switch t = {&chain_slot, 0, (uint64_t)second, kind, 2 * kind + 1, 1u << 11};
        CHECK(host_commit(2 * kind, page, &s, 1, kind == PSU_FULL ? 2 * PSU_SIDE : -1) == 0);
        CHECK(host_commit(2 * kind + 1, second, &t, 1, kind == PSU_FULL ? 2 * PSU_SIDE + 1 : -1) == 0);
        leave(ROUNDS);
        uint32_t before = entries();
        leave(20 * ROUNDS);
        CHECK(entries() < before + 400, "%u entries, %u before", entries(), before);
        for (int i = 0; i < 4; i++)
            CHECK(chain(CHAIN) == 77);
        CHECK(host_inside(2 * kind + 1, 0) == 0);
        printf("kind %u: %u entries\n", kind, entries());
        CHECK(entries() < 2000);
    }
    puts("ok");
    return 0;
}
