/* The whole life of a thread, version V. */
#include <pthread.h>
#include <stdio.h>

static int seen;

__attribute__((noipa)) int first(void) { return V; }
__attribute__((noipa)) void leave(void) { pthread_exit((void *)1); }
__attribute__((noipa)) void *life(void *unused)
{
    int before = __atomic_load_n(&seen, __ATOMIC_ACQUIRE), now = first();
    if (now < before)
        printf("ERROR went back from %d to %d\n", before, now);
    if (now > before)
        __atomic_compare_exchange_n(&seen, &before, now, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    leave();
    return unused;
}
__attribute__((noipa)) int spawn(pthread_t *thread, const pthread_attr_t *how) { return pthread_create(thread, how, life, 0); }
