/* SPDX-License-Identifier: MIT
 *
 * order.c: the order of the agent's steps, one at a time.  The first argument names the case, see main().
 *
 * barriers: the agent is held in each membarrier of a transaction (a seccomp filter that asks the main thread, see
 * seccomp(2), SECCOMP_RET_USER_NOTIF), and there everything must be as the comment in commit.c says: calls that are
 * made then, slots, gates, the words for calls inside one object, fork children.  A barrier that is missing, or that
 * does nothing, is not held.
 *
 * sums: the agent is held between reading the counts of one thread and of the next (a page that is not there yet,
 * userfaultfd(2)), while one call is inside a retired object and a late one passes its gate.  Enters summed first would
 * give as many leaves as enters, and the object would be freed.
 *
 * Exit status 77: this kernel or sandbox has no such thing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "host.h"

enum { UNAVAILABLE = 77, PRIVATE_EXPEDITED = 8 };

long first(long a), second(long a);
long first_original(long a) { return a; }
long second_original(long a) { return a; }
STUB(first);
STUB(second);

/* What a version finds: calls inside the object that must have none. */
static int32_t watched = -1, seen;
static void look(void) { seen = watched < 0 ? 0 : host_inside((uint32_t)watched, 0); }
static long first_1(long a) { return look(), a + 100; }
static long second_1(long a) { return look(), a + 100; }
static long first_2(long a) { return look(), a + 200; }
static long second_2(long a) { return look(), a + 200; }

/* ---- barriers --------------------------------------------------------------------------------------- */

static int listener;

/* From now on a new thread's membarrier(PRIVATE_EXPEDITED) waits for us. */
static void hold_membarriers(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PRIVATE_EXPEDITED, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0)
        exit(UNAVAILABLE);
}

/* Wait until the agent is in a membarrier; its request, which let_go() answers. */
static struct seccomp_notif held(const char *which)
{
    struct seccomp_notif n = {0};
    struct pollfd p = {listener, POLLIN, 0};
    double began = seconds();
    while (poll(&p, 1, 10) != 1)
        CHECK(__atomic_load_n(&psu_runtime.done_seq, __ATOMIC_ACQUIRE) != psu_runtime.command_seq
              && seconds() - began < 30, "the agent makes no barrier: %s", which);
    CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) == 0, "%s: errno %d", which, errno);
    return n;
}

static void let_go(struct seccomp_notif n)
{
    struct seccomp_notif_resp r = {n.id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r) == 0, "errno %d", errno);
}

static void answers(const char *where, long expected)
{
    long a = first(1), b = second(1);
    CHECK(a == expected && b == expected, "%s: %ld %ld", where, a, b);
}

struct transaction {
    struct psu_commit head;
    struct psu_new_object o;
    struct psu_switch s[2];
    uint32_t retire;
};

/* What the next commit is asked for: object `index` with both functions, in place of object `old` (-1:
 * the originals). */
static struct transaction replace(uint32_t index, char *page, int old)
{
    struct transaction t = {.head = {.objects = 1, .switches = 2, .retires = old >= 0}, .retire = (uint32_t)old};
    t.o = (struct psu_new_object){.index = index, .patch = index + 1};
    t.o.region[0].address = (uint64_t)page;
    t.o.region[0].size = 8192;
    for (uint32_t i = 0; i < 2; i++) {
        volatile uint64_t *slot = i ? &second_slot : &first_slot;
        t.s[i] = (struct psu_switch){.slot = (uint64_t)slot, .body = (uint64_t)page + 64 * i, .kind = PSU_PLAIN,
                                     .gate = 2 * index + i, .index = index, .old_kind = PSU_NO_GATE,
                                     .old_gate = PSU_NO_GATE, .looks = 1};
        host_gate_of(slot, &t.s[i].old_kind, &t.s[i].old_gate);
    }
    return t;
}

/* An object with both functions. */
static char *place(void *one, void *other)
{
    uint8_t code[128];
    memset(code, CODE_TRAP, sizeof code);
    code_jump(code, one);
    code_jump(code + 64, other);
    struct psu_map m = {0, 8192, PROT_READ | PROT_WRITE, 0};
    CHECK(host_command(PSU_OP_MAP, &m, sizeof m, 1) == 0);
    memcpy((void *)m.address, code, sizeof code);
    struct psu_map x = {m.address, 4096, PROT_READ | PROT_EXEC, 0};
    CHECK(host_command(PSU_OP_PROTECT, &x, sizeof x, 1) == 0);
    return (char *)m.address;
}

/* Ask for the commit that the buffer describes behind the command. */
static void send_record(uint32_t count)
{
    struct psu_command *c = (struct psu_command *)psu_runtime.command_buffer;
    c->op = PSU_OP_COMMIT;
    c->count = count;
    psu_runtime.command = (uint64_t)c;
    __atomic_store_n(&psu_runtime.command_seq, (uint16_t)(psu_runtime.command_seq + 1), __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &psu_runtime.parking, 129 /* FUTEX_WAKE_PRIVATE */, 1, 0, 0, 0);
}

static void send(const struct transaction *t)
{
    struct psu_command *c = (struct psu_command *)psu_runtime.command_buffer;
    memcpy(c + 1, t, sizeof *t - (t->head.retires ? 0 : 4));
    send_record(2);
}

static void wait_done(void)
{
    while (__atomic_load_n(&psu_runtime.done_seq, __ATOMIC_ACQUIRE) != psu_runtime.command_seq)
        sched_yield();
    CHECK(psu_runtime.result == 0, "%ld", (long)psu_runtime.result);
}

/* Lets every barrier of the child's agent pass. */
static void *serve(void *unused)
{
    struct pollfd p = {listener, POLLIN, 0};
    struct seccomp_notif n;
    (void)unused;
    while (poll(&p, 1, -1) == 1) {
        memset(&n, 0, sizeof n);
        CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) == 0, "in the child: errno %d", errno);
        let_go(n);
    }
    return 0;
}

/* A child of this moment: whatever its parent's agent is in the middle of, its own agent puts things right.  `now` is
 * the object that answers with `expected` (-1: the originals). */
static void fork_now(int now, long expected)
{
    pid_t child = fork();
    if (child == 0) {
        pthread_t server;
        alarm(60);
        answers("in the child", expected);
        CHECK(pthread_create(&server, 0, serve, 0) == 0);
        host_agent();
        answers("in the child with its agent", expected);
        CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0);
        char *page = place(first_2, second_2);
        struct transaction t = replace(9, page, now);
        send(&t);
        wait_done();
        answers("in the patched child", 201);
        CHECK(now < 0 || host_freed((uint32_t)now, 5000));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "child: %#x", status);
}

/* One transaction, looked at in each of its barriers. */
static void watch(uint32_t index, char *page, int old, long before, long after)
{
    struct transaction t = replace(index, page, old);
    uint64_t seq = psu_runtime.commit_seq, was[2] = {first_slot, second_slot};
    send(&t);

    struct seccomp_notif n = held("1");
    CHECK(first_slot == was[0] && second_slot == was[1]);
    for (uint32_t i = 0; i < 2; i++)
        CHECK(host_gate(PSU_PLAIN, 2 * index + i)->slot && host_gate(PSU_PLAIN, 2 * index + i)->base == (uint64_t)page + 1, "not bound");
    answers("1", before);
    let_go(n);

    n = held("4");
    CHECK(psu_runtime.commit_seq == seq);
    CHECK(first_slot != was[0] && second_slot != was[1], "calls must pass the new gates before the commit");
    watched = (int32_t)index;
    answers("4", before);
    CHECK(seen == 0, "who is sent to the old version is still counted at the new one");
    CHECK(host_object(index)->state == PSU_FREE && (old < 0 || host_object((uint32_t)old)->state == PSU_CURRENT));
    uint32_t enters;
    CHECK(host_inside(index, &enters) == 0 && (old < 0 || host_inside((uint32_t)old, 0) == 0));
    CHECK(enters, "not even counted");
    watched = -1;
    fork_now(old, before);
    let_go(n);

    n = held("8");
    CHECK(psu_runtime.commit_seq == seq + 1);
    CHECK(old < 0 || host_object((uint32_t)old)->state == PSU_CURRENT, "retired before the barrier");
    answers("8", after);
    for (int i = 0; i < 2 && old >= 0; i++) { /* a late thread */
        watched = old;
        seen = 1;
        long a = ((long (*)(long))was[i])(1);
        CHECK(a == after, "late: %ld", a);
        CHECK(seen == 0, "who is sent to the new version is still counted at the old one");
    }
    watched = -1;
    fork_now((int)index, after);
    CHECK(old < 0 || host_inside((uint32_t)old, 0) == 0);
    let_go(n);
    wait_done();
    answers("done", after);
    CHECK(old < 0 || host_freed((uint32_t)old, 5000));
}

/* Back to the originals: who calls from inside the object asks for the commit, too, before that is made. */
static void watch_back(uint32_t old, long before)
{
    struct { struct psu_commit head; struct psu_switch s[2]; uint32_t retire; } back = {{.switches = 2, .retires = 1}, .retire = old};
    uint64_t originals[] = {(uint64_t)first_original, (uint64_t)second_original};
    for (uint32_t i = 0; i < 2; i++) {
        volatile uint64_t *slot = i ? &second_slot : &first_slot;
        back.s[i] = (struct psu_switch){.slot = (uint64_t)slot, .to_original = originals[i], .gate = PSU_NO_GATE};
        CHECK(host_gate_of(slot, &back.s[i].old_kind, &back.s[i].old_gate));
        CHECK(host_gate(PSU_PLAIN, 2 * old + i)->base != PSU_NOWHERE);
    }
    struct psu_command *c = (struct psu_command *)psu_runtime.command_buffer;
    memcpy(c + 1, &back, sizeof back);
    send_record(2);
    let_go(held("back: 1"));
    struct seccomp_notif n = held("back: 4");
    answers("back: 4", before);
    for (uint32_t i = 0; i < 2; i++)
        CHECK(host_gate(PSU_PLAIN, 2 * old + i)->base == PSU_NOWHERE, "calls from inside do not ask");
    let_go(n);
    let_go(held("back: 8"));
    wait_done();
    answers("back", 1);
    CHECK(host_freed(old, 5000));
}

static void barriers(void)
{
    hold_membarriers();
    host_agent();
    char *page = place(first_1, second_1);
    watch(0, page, -1, 1, 101);
    page = place(first_2, second_2);
    watch(1, page, 0, 101, 201);
    page = place(first_1, second_1);
    watch(0, page, 1, 201, 101); /* gates and index a second time */
    watch_back(0, 101);
}

/* ---- sums ------------------------------------------------------------------------------------------- */

#define HELD 400 /* an object whose counts are not on a block's first page */
static int go_in[2], go_out[2];

static long stay(long a)
{
    char c;
    CHECK(write(go_in[1], "x", 1) == 1 && read(go_out[0], &c, 1) == 1);
    return a + 100;
}

static void *caller(void *unused)
{
    (void)unused;
    return (void *)first(1);
}

static void sums(void)
{
    static char memory[64 << 10] __attribute__((aligned(4096)));
    struct psu_block *last = (struct psu_block *)memory;
    char *second_page = memory + 4096, c;
    _Static_assert(offsetof(struct psu_block, count) + 8 * HELD >= 4096
                   && offsetof(struct psu_block, count) + 8 * HELD < 8192, "HELD");
    int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) < 0)
        exit(UNAVAILABLE);
    CHECK(pipe(go_in) == 0 && pipe(go_out) == 0);
    host_agent();
    void *page = host_jump_to(stay), *page_2 = host_jump_to(first_2);
    struct host_switch s = {&first_slot, 0, (uint64_t)page, PSU_PLAIN, 1, 0};
    CHECK(host_commit(HELD, page, &s, 1, -1) == 0);
    long (*late)(long) = (long (*)(long))first_slot;
    pthread_t inside;
    CHECK(pthread_create(&inside, 0, caller, 0) == 0 && read(go_in[0], &c, 1) == 1);
    CHECK(second(1) == 1 && host_inside(HELD, 0) == 1);

    /* One more block behind all others, of an owner that never dies; half of it is not there. */
    s = (struct host_switch){&second_slot, 0, (uint64_t)page_2, PSU_PLAIN, 2, 0};
    CHECK(host_commit(1, page_2, &s, 1, -1) == 0 && second(1) == 201); /* the main thread has a block */
    memset(memory, 0, 4096);
    last->tid = 0xffffffffu;
    struct psu_block *b = (struct psu_block *)psu_runtime.blocks;
    while (b->all)
        b = b->all;
    struct uffdio_register r = {.range = {(uint64_t)second_page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(faults, UFFDIO_REGISTER, &r) == 0, "errno %d", errno);
    __atomic_store_n(&b->all, last, __ATOMIC_SEQ_CST);

    page = host_jump_to(first_2);
    s = (struct host_switch){&first_slot, 0, (uint64_t)page, PSU_PLAIN, 3, 0};
    CHECK(host_commit(2, page, &s, 1, HELD) == 0);
    struct pollfd p = {faults, POLLIN, 0};
    struct uffd_msg m;
    CHECK(poll(&p, 1, 20000) == 1 && read(faults, &m, sizeof m) == (ssize_t)sizeof m
          && m.event == UFFD_EVENT_PAGEFAULT);
    CHECK(host_object(HELD)->state == PSU_RETIRED);
    CHECK(late(1) == 201); /* enters and leaves while the agent adds up */
    struct uffdio_zeropage zero = {.range = {(uint64_t)second_page, 4096}};
    CHECK(ioctl(faults, UFFDIO_ZEROPAGE, &zero) == 0, "errno %d", errno);
    /* The next command is served when the agent is through with this look. */
    CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0);
    CHECK(host_object(HELD)->state == PSU_RETIRED, "freed while a call is inside");
    void *result;
    CHECK(write(go_out[1], "x", 1) == 1 && pthread_join(inside, &result) == 0 && (long)result == 101);
    CHECK(host_freed(HELD, 5000));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    if (!strcmp(argv[1], "barriers"))
        barriers();
    else if (!strcmp(argv[1], "sums"))
        sums();
    else
        return 2;
    puts("ok");
    return 0;
}
