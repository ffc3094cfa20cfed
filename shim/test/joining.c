/* SPDX-License-Identifier: MIT
 *
 * joining.c: a library whose constructor waits for a thread, which leaves a patched function by pthread_exit.  The dynamic
 * linker's lock is taken meanwhile: the gate must do without it, as the C library does that has loaded its unwinder.
 * Compiled twice: with -DLIBRARY for the library, which calls what the program exports.  Argument: path of the library. */
#define _GNU_SOURCE
#include <pthread.h>

#ifdef LIBRARY

extern void *leave(void *);
__attribute__((constructor)) static void wait_for_thread(void)
{
    pthread_t t;
    if (!pthread_create(&t, 0, leave, 0))
        pthread_join(t, 0);
}

#else

#include <dlfcn.h>

#include "host.h"

void *work(void *);
void *work_original(void *unused)
{
    pthread_exit(unused);
}
STUB(work);

/* In between, or the C library's unwinding would end ahead of the gate, whose stack pointer is start_thread's. */
void *leave(void *unused)
{
    void *volatile result = work(unused);
    return result;
}
static void *only_leave(void *unused) { pthread_exit(unused); }

static void in_thread(void *(*start)(void *))
{
    pthread_t t;
    CHECK(pthread_create(&t, 0, start, 0) == 0 && pthread_join(t, 0) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    alarm(10);
    in_thread(only_leave); /* from here the C library has its unwinder */
    host_agent();
    void *page = host_jump_to(work_original);
    struct host_switch s = {&work_slot, 0, (uint64_t)page, PSU_SIDE, 1, 0};
    CHECK(host_commit(0, page, &s, 1, -1) == 0);
    host_gate(PSU_SIDE, 1)->code = (uint64_t)work_original; /* code in an object would need unwind rules */
    struct { struct psu_symbol s; char name[16]; } r = {.name = "exit"};
    r.s.name = (uint64_t)psu_runtime.command_buffer + sizeof(struct psu_command) + sizeof r.s;
    CHECK(host_command(PSU_OP_RESOLVE, &r, sizeof r, 1) == 0);
    CHECK(dlopen(argv[1], RTLD_NOW), "%s", dlerror());
    uint32_t enters;
    int32_t n = host_inside(0, &enters);
    CHECK(n == 0 && enters == 1, "%d of %u", n, enters);
    puts("ok");
    return 0;
}

#endif
