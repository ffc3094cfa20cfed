extern volatile int seen, arrived;
#define WORKER \
    __attribute__((noipa)) void *worker(void *how) \
    { \
        seen = V; \
        arrived = 1; \
        if (*(const char *)how == 'e') \
            pthread_exit(0); \
        while (*(const char *)how == 'c') \
            pause(); \
        return 0; \
    }
