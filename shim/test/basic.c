/* SPDX-License-Identifier: MIT
 *
 * basic.c: one function is patched twice through plain gates and taken back to the original; each retired version is
 * unmapped; bad records are refused and change nothing.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "host.h"

int answer(int x);
int answer_original(int x) { return x; }
STUB(answer);

static int version_2(int x) { return x + 200; }
static int version_3(int x) { return x + 300; }

static void *thread(void *unused)
{
    (void)unused;
    return (void *)(long)answer(1);
}

static int mapped(void *page)
{
    unsigned char in_core;
    return mincore(page, 4096, &in_core) == 0;
}

int main(void)
{
    pthread_t t;
    void *result;
    CHECK(psu_runtime.agent_state == PSU_AGENT_NONE);
    CHECK(pthread_create(&t, 0, thread, 0) == 0);
    CHECK(pthread_join(t, &result) == 0 && (long)result == 1);
    CHECK(psu_runtime.agent_pid == (uint32_t)getpid());
    host_agent();
    CHECK(psu_runtime.membarrier_error == 0);

    void *page = host_jump_to(version_2);
    struct host_switch s = {.slot = &answer_slot, .body = (uint64_t)page, .kind = PSU_PLAIN, .gate = 7};
    CHECK(answer(1) == 1);
    CHECK(host_commit(0, page, &s, 1, -1) == 0);
    CHECK(psu_runtime.commit_seq == 1);
    CHECK(answer(1) == 201);
    CHECK(host_object(0)->state == PSU_CURRENT && psu_runtime.staged_count == 0);
    CHECK(pthread_create(&t, 0, thread, 0) == 0);
    CHECK(pthread_join(t, &result) == 0 && (long)result == 201);
    uint32_t enters;
    CHECK(host_inside(0, &enters) == 0 && enters == 2, "%u", enters);

    void *page_3 = host_jump_to(version_3);
    s.body = (uint64_t)page_3;
    s.gate = 8;
    /* Refused: the gate is another's, the index is taken, the body is elsewhere, retiring what stays current. */
    s.gate = 7;
    CHECK(host_commit(1, page_3, &s, 1, 0) == -EINVAL);
    s.gate = 8;
    CHECK(host_commit(0, page_3, &s, 1, -1) == -EINVAL);
    s.body = (uint64_t)version_3;
    CHECK(host_commit(1, page_3, &s, 1, 0) == -EINVAL);
    s.body = (uint64_t)page_3;
    CHECK(host_commit(1, page_3, &s, 1, 5) == -EINVAL);
    CHECK(host_commit(1, page_3, &s, 0, 0) == -EINVAL); /* object 0 still has its gate */
    for (uint64_t bad = 64; bad; bad = bad == 64 ? (uint64_t)&answer_slot + 1 : 0) {
        struct { struct psu_commit head; struct psu_switch s; } r = {.head = {.switches = 1}};
        r.s = (struct psu_switch){.slot = bad, .body = (uint64_t)page_3, .index = 1, .gate = 8,
                                  .old_kind = PSU_NO_GATE};
        CHECK(host_command(PSU_OP_COMMIT, &r, sizeof r, 1) == (bad == 64 ? -EFAULT : -EINVAL));
    }
    CHECK(psu_runtime.commit_seq == 1 && answer(1) == 201 && host_object(1)->state == PSU_FREE);
    s.slot = &answer_slot;

    CHECK(host_commit(1, page_3, &s, 1, 0) == 0);
    CHECK(answer(1) == 301);
    CHECK(host_freed(0, 2000));
    CHECK(!mapped(page) && mapped(page_3));

    /* Stale notes: the slot does not lead to the gate that the record says. */
    uint64_t here = answer_slot;
    answer_slot = (uint64_t)answer_original;
    struct { struct psu_commit head; struct psu_switch s; } stale = {.head = {.switches = 1}};
    stale.s = (struct psu_switch){.slot = (uint64_t)&answer_slot, .to_original = (uint64_t)answer_original,
                                  .old_kind = PSU_PLAIN, .old_gate = 8};
    CHECK(host_command(PSU_OP_COMMIT, &stale, sizeof stale, 1) == -EBUSY);
    answer_slot = here;

    /* A gate stays its counter's: a late thread at gate 7 counts for object 0. */
    void *page_4 = host_jump_to(version_2);
    s.body = (uint64_t)page_4;
    s.gate = 7;
    CHECK(host_commit(2, page_4, &s, 1, 1) == -EINVAL);
    CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0 && answer(1) == 301);

    struct host_switch back = {.slot = &answer_slot, .original = (uint64_t)answer_original};
    CHECK(host_commit(0, 0, &back, 1, 1) == 0);
    CHECK(answer(1) == 1 && answer_slot == (uint64_t)answer_original);
    CHECK(host_freed(1, 2000) && !mapped(page_3));

    /* the same gate and index again */
    page = host_jump_to(version_2);
    s = (struct host_switch){.slot = &answer_slot, .body = (uint64_t)page, .kind = PSU_PLAIN, .gate = 7};
    CHECK(host_commit(0, page, &s, 1, -1) == 0 && answer(5) == 205);

    struct psu_symbol symbols[3] = {{.name = (uint64_t) "strlen"}, {.name = (uint64_t) "no_such_function"},
                                    {.name = (uint64_t) "memcpy", .version = (uint64_t) CODE_MEMCPY_VERSION}};
    CHECK(host_command(PSU_OP_RESOLVE, symbols, sizeof symbols, 3) == 0);
    CHECK(((size_t(*)(const char *))symbols[0].value)("four") == 4 && !symbols[1].value);
#ifdef __GLIBC__
    CHECK(symbols[2].value);
#endif
    host_map(4096, 0);
    CHECK(psu_runtime.staged_count == 1);
    CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0 && psu_runtime.staged_count == 0);
    struct psu_map bad = {0, 4096, PROT_WRITE | PROT_EXEC, 0};
    CHECK(host_command(PSU_OP_MAP, &bad, sizeof bad, 1) == -EINVAL);
    struct psu_map two[2] = {{0, 4096, PROT_READ, 0}, {(uint64_t)page, 4096, PROT_READ, 0}};
    CHECK(host_command(PSU_OP_MAP, two, sizeof two, 2) == -EEXIST && psu_runtime.staged_count == 0);
    CHECK(psu_runtime.failed_entry == 1);
    CHECK(host_command(99, 0, 0, 0) == -ENOSYS);
    puts("ok");
    return 0;
}
