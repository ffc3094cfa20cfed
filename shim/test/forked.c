/* SPDX-License-Identifier: MIT
 *
 * forked.c: fork at every instruction of what the agent does: a commit, freeing the object that it leaves, a way back to the
 * original, taking back what was staged, looking a name up.  The child has no agent but a copy of its half-done work, and
 * gets an agent of its own: from then on it must be patched and freed like any other, and must not unmap what the parent's
 * agent had unmapped already, for by then something else may lie there.
 *
 * Another process, the parent of the program, steps the agent; whenever it has made one step, the program's main thread
 * forks a child, which tries all that and exits.
 *
 * Arguments: the case (see main), STRIDE (fork at every so many instructions). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define HOST_PATIENCE 300 /* the agent makes one step at a time */
#include "host.h"
#include "step.h"

long work(long a);
long work_original(long a) { return a; }
STUB(work);
static long version_1(long a) { return a + 1; }
static long version_2(long a) { return a + 2; }
static long version_3(long a) { return a + 3; }

enum { IDLE, STEP, STOPPED, OVER };
static struct shared { volatile int turn, steps, stride, failed; } *shared;

/* ---- objects: a page with code, .eh_frame in it, and another page ----------------------------------- */

enum { FRAMES = 2048 };
static const struct psu_switch nothing;
struct object { char *code, *data; };

static struct object place(long (*version)(long))
{
    struct object o = {host_jump_to((void *)version), host_map(8192, 0)};
    memset(o.data, 7, 8192);
    return o;
}

static uint64_t meta;   /* staged, for the next commit */

/* work: to `body` in a new object, or (body 0) back to the original; object `retire` is left. */
static int64_t commit(uint32_t index, uint32_t kind, const struct object *o, int64_t retire)
{
    struct { struct psu_commit head; char rest[2000]; } r;
    char *at = r.rest;
    memset(&r, 0, sizeof r);
    if (o) {
        struct psu_new_object n;
        memset(&n, 0, sizeof n);
        n.index = index;
        n.patch = index + 1;
        n.region[0].address = (uint64_t)o->code;
        n.region[0].size = 4096;
        n.region[1].address = (uint64_t)o->data;
        n.region[1].size = 8192;
        n.eh_frame = (uint64_t)o->code + FRAMES; /* int3: nobody reads it but who takes a freed one for registered */
        n.symfile = (uint64_t)o->data;
        n.symfile_size = 64;
        memcpy(at, &n, sizeof n);
        at += sizeof n;
        r.head.objects = 1;
    }
    struct psu_switch s = nothing;
    s.slot = (uint64_t)&work_slot;
    s.to_original = o ? 0 : (uint64_t)work_original;
    s.body = o ? (uint64_t)o->code : 0;
    s.kind = kind;
    s.gate = index;
    s.index = index;
    s.old_kind = s.old_gate = PSU_NO_GATE;
    host_gate_of(&work_slot, &s.old_kind, &s.old_gate);
    memcpy(at, &s, sizeof s);
    at += sizeof s;
    r.head.switches = 1;
    if (retire >= 0) {
        uint32_t x = (uint32_t)retire;
        memcpy(at, &x, 4);
        at += 4;
        r.head.retires = 1;
    }
    r.head.meta_size = 4096;
    r.head.meta = meta;
    return host_command(PSU_OP_COMMIT, &r, (size_t)(at - (char *)&r), 1);
}

/* ---- the child's part ------------------------------------------------------------------------------- */

static struct { char *at; size_t size; int mine; } watched[16];
static int watched_count;
static long expected[3];        /* what work(0) may say: what it was before, what it becomes */
static uint32_t next_index, kind_now;

static void watch(void *at, size_t size)
{
    watched[watched_count].at = at;
    watched[watched_count++].size = size;
}

static void watch_object(const struct object *o)
{
    watch(o->code, 4096);
    watch(o->data, 8192);
}

static long call(void)
{
    long r = work(0);
    CHECK(r == expected[0] || r == expected[1], "%ld", r);
    return r;
}

static void child(void)
{
    alarm(20);
    for (int i = 0; i < watched_count; i++)
        for (size_t page = 0; page < watched[i].size; page += 4096) {
            char *p = watched[i].at + page;
            if (mmap(p, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == p) {
                *p = 42;
                watched[i].mine |= 1 << page / 4096;
            }
        }
    call();
    CHECK(dlsym(RTLD_DEFAULT, "puts") && dlopen(0, RTLD_NOW));
    host_agent();
    call();
    CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0);
    long now = call();
    int64_t old = -1;
    for (uint32_t i = 0; i < next_index; i++)
        if (host_object(i)->state == PSU_CURRENT) {
            CHECK(old == -1, "objects %ld and %u are current", (long)old, i);
            old = i;
        }
    CHECK((old >= 0) == (now != 0), "%ld, object %ld", now, (long)old);
    struct object o = place(version_3);
    meta = (uint64_t)host_map(4096, 1);
    int64_t error = commit(next_index, kind_now, &o, old);
    CHECK(error == 0, "the child's own commit, %ld left: %ld (entry %lu)", (long)old, (long)error, psu_runtime.failed_entry);
    CHECK(work(0) == 3);
    for (uint32_t i = 0; i < next_index; i++)
        CHECK(host_freed(i, 5000), "object %u", i);
    meta = (uint64_t)host_map(4096, 1);
    CHECK((error = commit(next_index + 1, kind_now, 0, next_index)) == 0, "back: %ld", (long)error);
    CHECK(work(0) == 0 && host_freed(next_index, 5000));
    CHECK(psu_runtime.retired_count == 0, "%u", psu_runtime.retired_count);
    for (int i = 0; i < watched_count; i++)
        for (size_t page = 0; page < watched[i].size; page += 4096)
            if (watched[i].mine >> page / 4096 & 1) {
                unsigned char there;
                CHECK(mincore(watched[i].at + page, 4096, &there) == 0, "%p: the child's memory was unmapped",
                      (void *)(watched[i].at + page));
                CHECK(watched[i].at[page] == 42);
            }
    _exit(0);
}

/* ---- the program's part ----------------------------------------------------------------------------- */

static int64_t (*record_now)(void);
static volatile int64_t answer;
static volatile int answered;

static void *ask(void *unused)
{
    answer = record_now();
    answered = 1;
    return unused;
}

/* Has the agent do what `work_of` asks it for, one step at a time, with a child at each. */
static void at_every_instruction(const char *what, int64_t (*work_of)(void), int stride, int64_t wanted)
{
    pthread_t t;
    int children = 0;
    record_now = work_of;
    answered = 0;
    shared->steps = 0;
    shared->stride = stride;
    shared->turn = STEP;
    while (shared->turn != STOPPED)
        sched_yield();
    CHECK(pthread_create(&t, 0, ask, 0) == 0);
    for (;;) {
        shared->turn = STEP;
        while (shared->turn == STEP)
            sched_yield();
        if (answered && !psu_runtime.retired_count && psu_runtime.agent_state == PSU_AGENT_PARKED)
            break;
        int status;
        pid_t p = fork();
        if (!p)
            child();
        CHECK(waitpid(p, &status, 0) == p);
        if (status) {
            fprintf(stderr, "%s: forked after %d instructions: status %x\n", what, shared->steps, (unsigned)status);
            shared->failed++;
        }
        children++;
    }
    shared->turn = OVER;
    while (shared->turn == OVER)
        sched_yield();
    CHECK(pthread_join(t, 0) == 0 && answer == wanted, "%s: %ld", what, (long)answer);
    printf("%s: %d instructions, %d children\n", what, shared->steps, children);
    CHECK(!shared->failed, "%d", shared->failed);
}

/* The parent's part: steps the agent when it is told to. */
static void stopped(pid_t tid)
{
    int status;
    CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status), "%x", (unsigned)status);
}

/* Whether a thread waits in the kernel. */
static int sleeping(uint32_t tid)
{
    char path[64], text[512], *end;
    snprintf(path, sizeof path, "/proc/%u/stat", tid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    end = strrchr(text, ')');
    return end && end[1] && end[2] == 'S';
}

/* Waits for the end of a step.  The agent may have gone to sleep in it, until there is a command: it is woken from that. */
static void step_ends(uint32_t agent)
{
    int status, asleep = 0;
    while (waitpid((pid_t)agent, &status, __WALL | WNOHANG) == 0) {
        asleep = sleeping(agent) ? asleep + 1 : 0;
        if (asleep == 20)
            CHECK(ptrace(PTRACE_INTERRUPT, agent, 0, 0) == 0, "%s", strerror(errno));
        if (asleep)
            sleep_ms(1);
    }
    CHECK(WIFSTOPPED(status), "%x", (unsigned)status);
}

static int over(int status)
{
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    fprintf(stderr, "the program ended: status %x\n", (unsigned)status);
    return 1;
}

static int step(pid_t program, uint32_t agent)
{
    int status;
    while (shared->turn != STEP) {
        if (waitpid(program, &status, WNOHANG) == program)
            return over(status);
        sched_yield();
    }
    CHECK(ptrace(PTRACE_SEIZE, agent, 0, 0) == 0, "%s", strerror(errno));
    CHECK(ptrace(PTRACE_INTERRUPT, agent, 0, 0) == 0);
    stopped(agent);
    shared->turn = STOPPED;
    while (shared->turn != OVER) {
        if (shared->turn != STEP) {
            if (waitpid(program, &status, WNOHANG) == program) {
                over(status);
                return 1;
            }
            sched_yield();
            continue;
        }
        for (int i = 0; i < shared->stride; i++) {
            shared->steps++;
            if (stepped((int)agent))
                continue;
            CHECK(ptrace(PTRACE_SINGLESTEP, agent, 0, 0) == 0, "%s", strerror(errno));
            step_ends(agent);
        }
        shared->turn = STOPPED;
    }
    /* A step in which the agent slept until it was interrupted has its trap still to come: it would be nobody's. */
    struct __ptrace_peeksiginfo_args first = {0, 0, 1};
    siginfo_t pending;
    while (ptrace(PTRACE_PEEKSIGINFO, agent, &first, &pending) == 1) {
        CHECK(ptrace(PTRACE_CONT, agent, 0, 0) == 0, "%s", strerror(errno));
        stopped((pid_t)agent);
    }
    CHECK(ptrace(PTRACE_DETACH, agent, 0, 0) == 0);
    shared->turn = IDLE;
    return -1;
}

static struct object object_1, object_2;
static int64_t update(void) { return commit(1, kind_now, &object_2, 0); }
static int64_t back(void) { return commit(1, kind_now, 0, 0); }
static int64_t reset(void) { return host_command(PSU_OP_RESET, 0, 0, 0); }
static int64_t map(void)
{
    struct psu_map m[3] = {{0, 4096, 3, 0}, {0, 8192, 3, 1}, {(uint64_t)object_1.code, 4096, 3, 0}};
    return host_command(PSU_OP_MAP, m, sizeof m, 3);
}
static int64_t resolve(void)
{
    struct { struct psu_symbol s; char name[16]; } r = {.name = "gettimeofday"};
    r.s.name = (uint64_t)psu_runtime.command_buffer + sizeof(struct psu_command) + sizeof r.s;
    return host_command(PSU_OP_RESOLVE, &r, sizeof r, 1);
}

int main(int argc, char **argv)
{
    int report[2];
    CHECK(argc == 3 && !pipe(report));
    const char *which = argv[1];
    int stride = atoi(argv[2]);
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    setvbuf(stdout, 0, _IOLBF, 0);
    pid_t program = fork();
    if (program) {
        uint32_t agent;
        int result = 1;
        close(report[1]);
        if (read(report[0], &agent, sizeof agent) == sizeof agent)
            while ((result = step(program, agent)) < 0)
                ;
        return result;
    }
    CHECK(dlopen("libgcc_s.so.1", RTLD_NOW), "%s", dlerror());
    host_agent();
    kind_now = !strcmp(which, "full") ? PSU_FULL : !strcmp(which, "side") ? PSU_SIDE : PSU_PLAIN;
    next_index = 2;
    object_1 = place(version_1);
    meta = (uint64_t)host_map(4096, 1);
    CHECK(commit(0, kind_now, &object_1, -1) == 0);
    watch((void *)meta, 4096);
    meta = (uint64_t)host_map(4096, 1);
    expected[0] = 1;
    expected[1] = 1;
    watch_object(&object_1);
    CHECK(write(report[1], &psu_runtime.agent_tid, 4) == 4);
    if (!strcmp(which, "back")) {
        expected[1] = 0;
        at_every_instruction(which, back, stride, 0);
    } else if (!strcmp(which, "reset")) {
        for (size_t i = 1; i <= 2; i++)
            watch(host_map(i * 4096, 0), i * 4096);
        watch(host_map(8192, 1), 8192);
        at_every_instruction(which, reset, stride, 0);
    } else if (!strcmp(which, "map")) {
        at_every_instruction(which, map, stride, -EEXIST);
    } else if (!strcmp(which, "resolve")) {
        at_every_instruction(which, resolve, stride, 0);
    } else {
        object_2 = place(version_2);
        watch_object(&object_2);
        expected[1] = 2;
        at_every_instruction(which, update, stride, 0);
    }
    puts("ok");
    return 0;
}
