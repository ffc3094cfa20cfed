/* SPDX-License-Identifier: MIT
 *
 * found.c: a thread asks for the unwind rules of an object in use, as an unwinder does, and is held at every instruction of
 * that while the object in an entry that is looked at before goes and another one comes: small at a low address, large at one
 * further up, by turns, so that the address of one with the size of the other would cover the object in use.  Only its own
 * entry is ever the answer, from _dl_find_object and from dl_iterate_phdr.
 *
 * Another process, the parent, steps the thread n instructions from a fixed place on, for n = 0, 1, 2, ... until it has its
 * answer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "host.h"
#include "step.h"

long work(long a);
long work_original(long a) { return a; }
STUB(work);
long other(long a);
long other_original(long a) { return a; }
STUB(other);

#define LOW 0x300000000000ul
#define SMALL 4096ul
#define LARGE (1024 * 4096ul)
#define USED (LOW + LARGE / 2)    /* LOW with LARGE covers it; neither object does */
#define HIGH (LOW + LARGE)

/* What both processes see. */
static struct shared { volatile int tid, go, asking, held, swapped, answered, steps; } *shared;
static int request[2], answer[2];

static int listed(struct dl_phdr_info *info, size_t size, void *frames)
{
    (void)size;
    int hit = 0;
    if (!strcmp(info->dlpi_name, "psu-bin")) /* the dynamic linker's lock, which the agent may want, is free again */
        shared->asking = 1;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD
            && USED - (info->dlpi_addr + info->dlpi_phdr[i].p_vaddr) < info->dlpi_phdr[i].p_memsz)
            hit = 1;
        else if (hit && info->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME)
            *(void **)frames = (void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    return hit;
}

static int iterating;
static void *ask(void *unused)
{
    struct dl_find_object mine, now;
    void *frames = 0;
    CHECK(_dl_find_object((void *)USED, &mine) == 0 && mine.dlfo_map_start == (void *)USED);
    CHECK(dl_iterate_phdr(listed, &frames) == 1 && frames == mine.dlfo_eh_frame);
    memset(&now, 0, sizeof now);
    frames = 0;
    int result;
    shared->asking = 0;
    shared->tid = (int)syscall(SYS_gettid);
    while (!shared->go)
        ;
    shared->asking = !iterating;
    if (iterating)
        result = dl_iterate_phdr(listed, &frames) - 1;
    else
        result = _dl_find_object((void *)USED, &now);
    shared->answered = 1;
    CHECK(result == 0);
    CHECK(iterating ? frames == mine.dlfo_eh_frame
                    : now.dlfo_map_start == mine.dlfo_map_start && now.dlfo_eh_frame == mine.dlfo_eh_frame,
          "%s, held after %d instructions: %p to %p", iterating ? "iterating" : "finding", shared->steps, now.dlfo_map_start,
          now.dlfo_map_end);
    return unused;
}

/* The parent's part. */
static void step_and_hold(void)
{
    pid_t tid = shared->tid;
    int status;
    CHECK(ptrace(PTRACE_SEIZE, tid, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0);
    CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status));
    shared->go = 1;
    for (int n = shared->steps; n > 0 && !shared->answered; n -= shared->asking) {
        if (stepped(tid))
            continue;
        CHECK(ptrace(PTRACE_SINGLESTEP, tid, 0, 0) == 0);
        CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status));
    }
    shared->held = 1;
    while (!shared->swapped)
        sched_yield();
    CHECK(ptrace(PTRACE_DETACH, tid, 0, 0) == 0);
}

static void commit(volatile uint64_t *slot, uint32_t index, uint32_t gate, uint64_t at, uint64_t size, int64_t retire)
{
    struct { struct psu_commit head; struct psu_new_object o; struct psu_switch s; uint32_t retire; } r;
    struct psu_map m = {at, size, PROT_READ | PROT_WRITE, 0};
    CHECK(host_command(PSU_OP_MAP, &m, sizeof m, 1) == 0);
    memset((void *)at, 0, 4096);
    memset(&r, 0, sizeof r);
    r.head.objects = r.head.switches = 1;
    r.head.retires = retire >= 0;
    r.retire = (uint32_t)retire;
    r.o.index = index;
    r.o.patch = index + 1;
    r.o.eh_frame = at;            /* ends at once: nobody is ever in there */
    r.o.region[0].address = at;
    r.o.region[0].size = size;
    uint32_t kind = PSU_NO_GATE, old = PSU_NO_GATE;
    host_gate_of(slot, &kind, &old);
    r.s = (struct psu_switch){(uint64_t)slot, 0, at, PSU_PLAIN, gate, index, 0, kind, old, 0, 0, 0};
    CHECK(host_command(PSU_OP_COMMIT, &r, sizeof r - (retire < 0 ? 8 : 4), 1) == 0);
}

static void every_instruction(void)
{
    int large = 0;
    for (int n = 0, over = 0; !over; n += 1 + n / 64)
        for (int way = 0; way < 2; way++) {
            pthread_t t;
            memset((void *)shared, 0, sizeof *shared);
            shared->steps = n;
            CHECK(pthread_create(&t, 0, ask, 0) == 0);
            while (!shared->tid)
                sched_yield();
            CHECK(write(request[1], "", 1) == 1);
            while (!shared->held)
                sched_yield();
            over = shared->answered;
            struct host_switch back = {&other_slot, (uint64_t)other_original, 0, 0, 0, 0};
            CHECK(host_commit(0, 0, &back, 1, 0) == 0 && host_freed(0, 5000));
            large = !large;
            commit(&other_slot, 0, 0, large ? HIGH : LOW, large ? LARGE : SMALL, -1);
            shared->swapped = 1;
            char byte;
            CHECK(read(answer[0], &byte, 1) == 1 && pthread_join(t, 0) == 0);
            if (over)
                printf("%s: %d instructions\n", iterating ? "iterating" : "finding", n);
        }
}

int main(void)
{
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && !pipe(request) && !pipe(answer));
    setvbuf(stdout, 0, _IOLBF, 0);
    pid_t child = fork();
    if (child) {
        int status;
        char byte;
        close(request[1]);
        while (read(request[0], &byte, 1) == 1) {
            step_and_hold();
            CHECK(write(answer[1], "", 1) == 1);
        }
        CHECK(waitpid(child, &status, __WALL) == child);
        CHECK(WIFEXITED(status), "signal %d", WTERMSIG(status));
        return WEXITSTATUS(status);
    }
    host_agent();
    commit(&work_slot, 3, 3, USED, SMALL, -1);
    commit(&other_slot, 0, 0, LOW, SMALL, -1);
    for (iterating = 0; iterating < 2; iterating++)
        every_instruction();
    puts("ok");
    return 0;
}
