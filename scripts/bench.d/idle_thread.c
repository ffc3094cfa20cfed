/* A library for LD_PRELOAD: one more thread, which never does anything.
 *
 * The C library spares a process with one thread the locks of malloc and others (glibc: __libc_single_threaded).  psu-bin's agent
 * is a thread, so a program that had none pays for them from its first patch on; this shows how much of the cost that is. */
#include <pthread.h>
#include <unistd.h>

static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

__attribute__((constructor)) static void start(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, wait_for_ever, 0);
}
