/* SPDX-License-Identifier: MIT
 *
 * conventions.c: what a call through a gate may change.  `probe` fills every register, pushes stack arguments and
 * calls; the version `record` writes down what arrived, spoils what it may, and returns.  Compared for each kind of
 * gate in each state that a gate can be in: settled, commit under way (before and after the store), going back,
 * retired, on a thread's first call, and without memory for counters: because there is none (not where NO_SECCOMP is set:
 * in an emulator that cannot forbid system calls), and because psu_runtime.silent forbids to ask for it.  A full gate keeps
 * registers then, too, in each of the ways that shim/poor.c has.
 *
 * Arguments: offsets of the three "pending" and "redirect" routines from psu_runtime (they are not exported), plain side
 * full; offsets of psu_full_otherwise and of poor.c's spares, and how many of these there are.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "host.h"
#include "probe.h"

static uint64_t pending[PSU_GATE_KINDS], redirect[PSU_GATE_KINDS];
static uint64_t slot, plain_slot = 1, side_slot = 1;
static uint64_t *otherwise;        /* of full gates */
static char *spares;
static int spares_count;
#define SPARE_SIZE (sizeof(struct psu_side) + SAVE_SIZE)

static uint64_t delta; /* to the gates' copies near the program */
static struct psu_gate *gate_data(int kind, int gate)
{
    return (struct psu_gate *)(psu_runtime.pool[kind].data + delta) + gate;
}
static uint64_t gate_address(int kind, int gate)
{
    return psu_runtime.pool[kind].first + delta + (uint64_t)gate * psu_runtime.pool[kind].stride;
}

/* Everything that this thread's block and others counted is balanced. */
static void balanced(uint32_t index, uint32_t calls, const char *what)
{
    uint32_t enters;
    int32_t n = host_inside(index, &enters);
    CHECK(n == 0, "kind %d, %s: %d more enters than leaves", kind_now, what, n);
    CHECK(enters == calls, "kind %d, %s: %u enters, should be %u", kind_now, what, enters, calls);
}

struct job { int kind; uint32_t preserve; const char *mode; uint64_t target; int moved; };

static void *one_call(void *argument)
{
    struct job *j = argument;
    call_and_compare(j->kind, j->mode, j->target, j->preserve, j->moved);
    return 0;
}

static void forbid(int number)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static int silent;
static void *poor_calls(void *argument)
{
    struct job *j = argument;
    if (!silent)
        forbid(SYS_mmap); /* this thread only */
    for (int i = 0; i < 3; i++)
        call_and_compare(j->kind, j->mode, j->target, j->preserve, j->moved);
    return 0;
}

static void in_thread(void *(*start)(void *), struct job *j)
{
    pthread_t t;
    CHECK(pthread_create(&t, 0, start, j) == 0 && pthread_join(t, 0) == 0);
}

/* Gates 10, settled, 11, pending with 10 before it, and 12, retired with 10 after it.  Where each call stays counted in,
 * nothing is restored. */
static void poor(int kind, uint32_t index, uint32_t preserve, int moved_to_stack, uint32_t *calls, int32_t *inside, int stays)
{
    static const char *const what[] = {"poor", "poor, pending", "poor, retired"};
    int moved = kind == PSU_PLAIN ? 1 : moved_to_stack;
    uint32_t enters;
    for (int n = 0; n < 3; n++) {
        in_thread(poor_calls, &(struct job){kind, stays ? 0 : preserve, what[n], gate_address(kind, 10 + n), moved});
        int32_t now = host_inside(index, &enters);
        *inside += stays ? 3 : 0;
        CHECK(now == *inside, "kind %d, %s: %d, not %d inside", kind, what[n], now, *inside);
        CHECK(enters == (*calls += n ? 6 : 3), "kind %d, %s: %u enters", kind, what[n], enters);
    }
}

static void not_reached(void) { CHECK(0, "the version is called"); }

static void poor_full(uint32_t index, uint32_t preserve, uint32_t *calls, int32_t *inside)
{
    struct psu_gate *a = gate_data(PSU_FULL, 10);
    for (int g = 10; g < 13; g++)
        otherwise[g] = PSU_ON_STACK;
    poor(PSU_FULL, index, preserve, STACKED_BYTES(preserve), calls, inside, 0);
    for (int g = 10; g < 13; g++)
        otherwise[g] = 0;
    poor(PSU_FULL, index, preserve, 0, calls, inside, 0); /* a spare area */
    for (int i = 0; i < spares_count; i++)
        CHECK(!((struct psu_side *)(spares + (size_t)i * SPARE_SIZE))->sp, "area %d is not given back", i);
    /* All of them taken, at no place of any stack. */
    for (int i = 0; i < spares_count; i++)
        ((struct psu_side *)(spares + (size_t)i * SPARE_SIZE))->sp = 1;
    for (int g = 10; g < 13; g++)
        otherwise[g] = (uint64_t)record;
    a->code = a->body = (uint64_t)not_reached;
    poor(PSU_FULL, index, 0, 0, calls, inside, 0); /* the original, which the program's callers know */
    a->code = a->body = (uint64_t)record;
    for (int g = 10; g < 13; g++)
        otherwise[g] = 0;
    poor(PSU_FULL, index, preserve, 0, calls, inside, 1);
    memset(spares, 0, (size_t)spares_count * SPARE_SIZE);
}

static void all_states(int kind, uint32_t index, uint32_t preserve)
{
    int moved = kind == PSU_PLAIN; /* the one thing a plain gate does not keep: the distance to the stack arguments */
    struct psu_gate *a = gate_data(kind, 10), *b = gate_data(kind, 11), *c = gate_data(kind, 12);
    for (struct psu_gate *g = a; g <= c; g++)
        *g = (struct psu_gate){.code = (uint64_t)record, .counter = 8 * index, .preserve = preserve, .slot =
            (uint64_t)&slot,
                               .body = (uint64_t)record};
    uint64_t at_a = gate_address(kind, 10), at_b = gate_address(kind, 11), at_c = gate_address(kind, 12);
    uint32_t calls = 0;
    uint64_t now = psu_runtime.commit_seq;

    call_and_compare(kind, "settled", at_a, preserve, moved);
    call_and_compare(kind, "settled", at_a, preserve, moved);
    balanced(index, calls += 2, "settled");
    in_thread(one_call, &(struct job){kind, preserve, "first call of a thread", at_a, moved});
    balanced(index, calls += 1, "first call");

    b->code = pending[kind];
    b->enter_txn = now;
    call_and_compare(kind, "pending, committed", at_b, preserve, moved);
    balanced(index, calls += 1, "pending, committed");
    b->enter_txn = now + 1;
    b->before = (uint64_t)record; /* the original: no gate */
    call_and_compare(kind, "pending, original", at_b, 0, 0);
    balanced(index, calls += 1, "pending, original");
    b->before = at_a;
    call_and_compare(kind, "pending, older gate", at_b, preserve, moved);
    balanced(index, calls += 2, "pending, older gate");
    in_thread(one_call, &(struct job){kind, preserve, "pending on a new thread", at_b, moved});
    balanced(index, calls += 2, "pending on a new thread");

    b->enter_txn = now;
    b->exit_txn = now + 1;
    b->after = (uint64_t)record;
    call_and_compare(kind, "leaving, not committed", at_b, preserve, moved);
    balanced(index, calls += 1, "leaving, not committed");
    b->exit_txn = now;
    if (now) {
        call_and_compare(kind, "leaving, committed", at_b, 0, 0);
        balanced(index, calls += 1, "leaving, committed");
    }

    c->code = redirect[kind];
    slot = (uint64_t)record;
    call_and_compare(kind, "retired, original", at_c, 0, 0);
    balanced(index, calls += 1, "retired, original");
    slot = at_a;
    call_and_compare(kind, "retired, newer gate", at_c, preserve, moved);
    balanced(index, calls += 2, "retired, newer gate");

    b->exit_txn = 0;
    b->enter_txn = now + 1;
    int32_t stays = 0;
    for (silent = getenv("NO_SECCOMP") != 0; silent < 2; silent++) {
        psu_runtime.silent = (uint64_t)silent;
        if (kind == PSU_FULL)
            poor_full(index, preserve, &calls, &stays);
        /* A side-frame gate steps aside: its call counts as never ended. */
        poor(kind, index, preserve, 0, &calls, &stays, kind == PSU_SIDE);
        psu_runtime.silent = 0;
    }
}

/* Real commits of functions of this program make the copies: of whole pages of gates, 10 to 12 among them. */
static void near_copies(void)
{
    void *page = host_jump_to(record);
    struct host_switch s[2] = {{&plain_slot, 0, (uint64_t)page, PSU_PLAIN, 1, 0},
                               {&side_slot, 0, (uint64_t)page, PSU_SIDE, 1, 0}};
    CHECK(host_commit(7, page, s, 2, -1) == 0);
    CHECK((delta = psu_runtime.near_delta) != 0);
    CHECK(plain_slot == gate_address(PSU_PLAIN, 1) && side_slot == gate_address(PSU_SIDE, 1));
    all_states(PSU_PLAIN, 5, 0);
    all_states(PSU_SIDE, 6, 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 10);
    otherwise = (uint64_t *)((char *)&psu_runtime + strtol(argv[7], 0, 0));
    spares = (char *)&psu_runtime + strtol(argv[8], 0, 0);
    spares_count = atoi(argv[9]) / (int)SPARE_SIZE;
    CHECK(spares_count == 64);
    for (int k = 0; k < PSU_GATE_KINDS; k++) {
        pending[k] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[1 + k], 0, 0);
        redirect[k] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[4 + k], 0, 0);
    }
    host_agent();
    psu_runtime.commit_seq = 5;
    call_and_compare(-1, "direct", (uint64_t)record, 0, 0);
    all_states(PSU_PLAIN, 1, 0);
    all_states(PSU_SIDE, 2, 0);
    all_states(PSU_FULL, 3, 0);
    for (int g = 10; g < 13; g++)
        memset(gate_data(PSU_FULL, g), 0, sizeof(struct psu_gate));
    all_states(PSU_FULL, 4, PROBE_PRESERVE);

    if (CODE_NEAR)
        near_copies();
    puts("ok");
    return 0;
}
