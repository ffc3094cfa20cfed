/* Version V of the start routine; SIDE: it reads above its return address, as one with stack arguments. */
#include <pthread.h>
#include <unistd.h>
#include "worker.h"
#ifdef SIDE
#undef WORKER
#define WORKER \
    __attribute__((noipa)) void *worker(void *how) \
    { \
        if (*((void **)__builtin_frame_address(0) + 3) == how) \
            seen = -1; \
        seen = V; \
        arrived = 1; \
        if (*(const char *)how == 'e') \
            pthread_exit(0); \
        while (*(const char *)how == 'c') \
            pause(); \
        return 0; \
    }
#endif
WORKER
