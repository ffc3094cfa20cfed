/* SPDX-License-Identifier: MIT
 *
 * threads.c: when the agent starts, and the functions that we put in front of the C library's to know the moment.
 *
 * The agent comes with the program's own first thread: before that, a second thread would switch the C library's stdio,
 * malloc and reference counts to locked paths.  PSU_AGENT=start starts it at once, PSU_AGENT=never leaves it to
 * psu-bin, in this process and those that it forks before. A shim that arrives with a plugin in a process that has threads already starts it at once, too.
 *
 * pthread_exit and thrd_exit are here because of the agent: see agent.c, end_with_the_last_thread.  The main thread can leave
 * without them, too: cancelled; or, in a child that another thread than the main one forked, by returning from that thread's start
 * routine, since it is the main thread there.  Then a destructor of thread-specific data says so.
 */
#include "internal.h"

#define EXPORT __attribute__((visibility("default")))
enum { ON_FIRST_THREAD = 1, NEVER = 2, AT_ONCE = 3 };

uint32_t psu_main_exited;
static uint32_t when; /* 0: not known yet */
static uint32_t loaded_by; /* the process that loaded the shim, which may be our parent */

extern char __libc_single_threaded __attribute__((weak, visibility("default")));

static int equal(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

static uint32_t agent_when(void)
{
    char value[16];
    if (!when) {
        uint32_t w = ON_FIRST_THREAD;
        if (psu_environment("PSU_AGENT", value, sizeof value)) {
            if (equal(value, "start"))
                w = AT_ONCE;
            else if (equal(value, "never"))
                w = NEVER;
        }
        when = w;
    }
    return when;
}

typedef int create_function(void *, const void *, void *(*)(void *), void *);
typedef int thrd_create_function(void *, int (*)(void *), void *);
typedef void exit_function(void *);
typedef void thrd_exit_function(int);
static create_function *real_create;
static thrd_create_function *real_thrd_create;
static exit_function *real_exit;
static thrd_exit_function *real_thrd_exit;

static void *once(void *known, const char *name)
{
    void *f = __atomic_load_n((void **)known, __ATOMIC_RELAXED);
    if (!f) {
        f = psu_find(name);
        __atomic_store_n((void **)known, f, __ATOMIC_RELAXED);
    }
    return f;
}

static void before_thread(void)
{
    int saved = psu_errno_get();
    psu_blocks_adopt();
    /* A fork child of a process for which psu-bin made one gets its own: without it, the counters of threads that come and
     * go would never be used again. */
    if (agent_when() != NEVER || __atomic_load_n(&psu_runtime.agent_pid, __ATOMIC_ACQUIRE))
        psu_agent_ensure();
    psu_errno_set(saved);
}

EXPORT int pthread_create(void *thread, const void *attributes, void *(*start)(void *), void *argument)
{
    before_thread();
    create_function *f = once(&real_create, "pthread_create");
    return f ? f(thread, attributes, start, argument) : PSU_ENOSYS;
}

EXPORT int thrd_create(void *thread, int (*start)(void *), void *argument)
{
    before_thread();
    thrd_create_function *f = once(&real_thrd_create, "thrd_create");
    return f ? f(thread, start, argument) : 2; /* thrd_error in glibc and musl */
}

static void note_exit(void)
{
    if (psu_gettid() == psu_getpid()) {
        __atomic_store_n(&psu_main_exited, 1, __ATOMIC_RELEASE);
        psu_agent_wake();
    }
}

static void main_leaves(void *unused)
{
    (void)unused;
    note_exit();
}

/* Who calls this is about to start the agent.  If it is the main thread, a destructor will say that it leaves (the C library may
 * need memory for that, as for the agent's thread).  If it is another one, which was borrowed in a child whose parent had no agent,
 * nobody knows how the main thread began there: the agent looks from now on. */
void psu_main_watch(void)
{
    static unsigned key;
    static uint32_t made;
    if (psu_gettid() == psu_getpid()) {
        int (*make)(unsigned *, void (*)(void *)) = (int (*)(unsigned *, void (*)(void *)))psu_find("pthread_key_create");
        int (*set)(unsigned, const void *) = (int (*)(unsigned, const void *))psu_find("pthread_setspecific");
        if (!made && make && !make(&key, main_leaves))
            made = 1;
        if (made && set && !set(key, &key))
            return;
    }
    if (psu_getpid() != loaded_by)
        psu_main_exited = 1;
}

EXPORT void pthread_exit(void *value)
{
    exit_function *f = once(&real_exit, "pthread_exit");
    note_exit();
    f(value); /* whoever calls pthread_exit has it */
}

EXPORT void thrd_exit(int value)
{
    thrd_exit_function *f = once(&real_thrd_exit, "thrd_exit");
    note_exit();
    f(value);
}

static int already_threaded(void)
{
    if (&__libc_single_threaded)
        return !__libc_single_threaded;
    return psu_thread_count() > 1;
}

__attribute__((constructor)) static void loaded(void)
{
    int saved = psu_errno_get();
    loaded_by = psu_getpid();
    /* Now, while no error of the program's own dlopen can be pending that our dlsym would clear. */
    once(&real_create, "pthread_create");
    once(&real_exit, "pthread_exit");
    once(&real_thrd_create, "thrd_create");
    once(&real_thrd_exit, "thrd_exit");
    psu_frames_start();
    psu_gates_start();
    if (agent_when() == AT_ONCE || (agent_when() == ON_FIRST_THREAD && already_threaded()))
        psu_agent_ensure();
    psu_errno_set(saved);
}
