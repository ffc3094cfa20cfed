/* SPDX-License-Identifier: MIT
 *
 * agent.c: the shim's own thread.  It runs psu-bin's commands, frees retired objects, recycles dead threads' blocks,
 * and sleeps without a timer when there is nothing of that to do.
 *
 * How psu-bin talks to it: PTRACE_INTERRUPT stops it, the record and then command_seq are written, and it goes on.
 * Wherever it was while agent_state said PARKED, it looks at command_seq before it sleeps again: the kernel restarts an
 * interrupted FUTEX_WAIT, which compares the word, of which command_seq is a half, anew.  So nothing must be touched between PARKED and the wait, and
 * the word is read again at every turn.
 *
 * Before the first command it makes no system call but those that every thread makes (futex), so that an instrumented
 * program in a sandbox runs as it did; psu-bin reads the sandbox's rules before the first command.
 *
 * It is an ordinary pthread_create thread, because glibc and musl change credentials and the like by signalling every
 * thread that they know.  Those signals (33 and 34) are therefore the only ones it does not block.
 *
 * One thing a silent extra thread breaks: a program whose main thread leaves alone, with pthread_exit mostly, ends when the last
 * thread does.  The agent sees to that: once main is gone and only the agent is left, it calls exit(0), as the C
 * library's last thread would have.
 */
#include "internal.h"

enum { PR_SET_NAME = 15, SIG_BLOCK = 0, SIG_SETMASK = 2, AT_FDCWD = -100, O_CLOEXEC = 02000000,
       SIGNALS_BYTES = 8 /* kernel's sigset_t */, DETACHED = 1 };
#define STACK_SIZE (256ul << 10)
/* 33, 34: glibc and musl wait, with a lock that pthread_create takes, until each thread has had its one.  32: glibc cancels a
 * thread with it, musl's timers have it. */
#define SYNC_SIGNALS (3ull << 32)
#define POLL_FIRST 1u                /* milliseconds */
#define POLL_LAST 1000u
#define POLL_LOOK 64u
#define POLL_LAST_THREAD 50u         /* main is gone: is anybody else left? */

static union { uint64_t words[16]; } attributes; /* a pthread_attr_t: 56 bytes in glibc and musl, 64 on AArch64 */

/* Whoever calls this has stored first what the agent shall see.  The word is another one from then on, so that an agent that
 * looked before that store, and does not sleep yet, will not: without it, the wake would be lost for ever.  (Sleeping after
 * all takes 65,536 wakes between its look and its wait, none of which finds it asleep.) */
void psu_agent_wake(void)
{
    __atomic_add_fetch(&psu_runtime.wakes, 1, __ATOMIC_SEQ_CST);
    psu_futex_wake(&psu_runtime.parking, 1);
}

/* Whether the main thread has ended but is not reaped yet, which is its state until the last thread ends. */
static int main_is_gone(void)
{
    char text[512];
    char path[48] = "/proc/self/task/";
    uint32_t pid = psu_getpid(), digits = 1;
    for (uint32_t n = pid; n > 9; n /= 10)
        digits++;
    char *at = path + 16;
    for (uint32_t i = digits; i-- > 0; pid /= 10)
        at[i] = (char)('0' + pid % 10);
    __builtin_memcpy(at + digits, "/stat", 6);
    long file = psu_syscall(NR_openat, AT_FDCWD, path, O_CLOEXEC, 0);
    if (file < 0)
        return 0;
    long n = psu_syscall(NR_read, file, text, sizeof text);
    psu_syscall(NR_close, file);
    while (n > 2 && text[n - 1] != ')') /* the name may hold anything; the last parenthesis ends it */
        n--;
    return n > 2 && (text[n + 1] == 'Z' || text[n + 1] == 'X');
}

static void end_with_the_last_thread(void)
{
    if (psu_thread_count() == 2 && main_is_gone()) {
        void (*leave)(int) = (void (*)(int))psu_find("exit");
        if (leave)
            leave(0);
    }
}

static void set_state(uint32_t state) { __atomic_store_n(&psu_runtime.agent_state, state, __ATOMIC_SEQ_CST); }

void *psu_agent_main(void *unused)
{
    uint32_t pause = POLL_FIRST;
    (void)unused;
    int introduced = 0;
    psu_thread_return = (uint64_t)__builtin_extract_return_addr(__builtin_return_address(0));
    psu_gates_start();
    psu_turn_repair();
    psu_debugger_repair();
    psu_commit_repair();
    psu_reclaim_repair();
    psu_blocks_recycle(); /* a fork child has the blocks of its parent's threads */
    psu_runtime.agent_tid = psu_gettid();
    for (;;) {
        uint32_t parking = __atomic_load_n(&psu_runtime.parking, __ATOMIC_SEQ_CST);
        uint16_t asked = (uint16_t)parking; /* little-endian: command_seq */
        if (asked != psu_runtime.done_seq) {
            set_state(PSU_AGENT_BUSY);
            /* Not before: a sandbox of the program may end it at a call that it does not know.  psu-bin has looked. */
            if (!introduced++) {
                psu_syscall(NR_prctl, PR_SET_NAME, "psu-agent", 0, 0, 0);
                psu_membarrier_register();
                psu_small_pages();
            }
            psu_run_command();
            __atomic_store_n(&psu_runtime.done_seq, asked, __ATOMIC_RELEASE);
            pause = POLL_FIRST;
        }
        if (psu_runtime.retired_count || psu_blocks_want_recycling()) {
            set_state(PSU_AGENT_BUSY);
            /* What dead threads left in the counts may be what an object waits for. */
            if (psu_blocks_want_recycling() || pause >= POLL_LOOK)
                psu_blocks_recycle();
            if (psu_reclaim())
                pause = POLL_FIRST;
        }
        uint32_t limit = psu_runtime.retired_count ? pause : 0;
        if (__atomic_load_n(&psu_main_exited, __ATOMIC_ACQUIRE)) {
            end_with_the_last_thread();
            if (!limit || limit > POLL_LAST_THREAD)
                limit = POLL_LAST_THREAD;
        }
        set_state(PSU_AGENT_PARKED);
        psu_futex_wait(&psu_runtime.parking, parking, limit);
        pause = pause * 2 < POLL_LAST ? pause * 2 : POLL_LAST;
    }
    return 0;
}

typedef int create_function(void *, const void *, void *(*)(void *), void *);

static int start(void)
{
    create_function *create = (create_function *)psu_find("pthread_create");
    if (!create) { /* glibc before 2.34, a program without libpthread */
        void *library = psu_open_library("libpthread.so.0", 1);
        if (library)
            create = (create_function *)psu_find_symbol(library, "pthread_create", 0);
    }
    int (*init)(void *) = (int (*)(void *))psu_find("pthread_attr_init");
    int (*detached)(void *, int) = (int (*)(void *, int))psu_find("pthread_attr_setdetachstate");
    int (*stack)(void *, size_t) = (int (*)(void *, size_t))psu_find("pthread_attr_setstacksize");
    if (!create || !init || !detached || init(&attributes))
        return PSU_ENOSYS;
    detached(&attributes, DETACHED);
    uint64_t thread[2];
    int error = PSU_EINVAL;
    /* The stack also holds the program's thread-local variables, of unknown size: EINVAL says that it is too small. */
    for (size_t size = STACK_SIZE; error == PSU_EINVAL && size <= 256 * STACK_SIZE; size *= 4) {
        if (stack)
            stack(&attributes, size);
        error = create(thread, &attributes, psu_agent_main, 0);
    }
    return error;
}

static void start_once(uint32_t pid, uint32_t owner)
{
    /* Never started, or this is a fork child with a copy of its parent's words.  One thread wins; the others go on. */
    if (!__atomic_compare_exchange_n(&psu_runtime.agent_pid, &owner, pid, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    int saved = psu_errno_get();
    set_state(PSU_AGENT_STARTING);
    psu_runtime.done_seq = psu_runtime.command_seq; /* a command of the parent is not ours to run */
    psu_main_exited = 0;
    psu_main_watch();
    psu_blocks_inherit();
    int error = start();
    psu_runtime.agent_error = error;
    if (error) {
        set_state(PSU_AGENT_NONE);
        __atomic_store_n(&psu_runtime.agent_pid, 0, __ATOMIC_RELEASE);
    }
    psu_errno_set(saved);
}

void psu_agent_ensure(void)
{
    uint32_t pid = psu_getpid(), owner = __atomic_load_n(&psu_runtime.agent_pid, __ATOMIC_ACQUIRE);
    if (owner == pid)
        return;
    /* From here to the end no handler of the program's may run: this may be a borrowed thread, which waits in a call that
     * handlers may leave by longjmp, and threads may be cancelled in, and the dynamic linker's and malloc's locks would stay
     * taken.  The agent inherits the mask. */
    uint64_t block = ~SYNC_SIGNALS, before = 0;
    psu_syscall(NR_rt_sigprocmask, SIG_SETMASK, &block, &before, SIGNALS_BYTES);
    start_once(pid, owner);
    psu_syscall(NR_rt_sigprocmask, SIG_SETMASK, &before, 0, SIGNALS_BYTES);
}
