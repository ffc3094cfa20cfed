/* What the program and its patches share. */
#ifdef __x86_64__
enum { STACK = 8 << 20, RESERVE = 4096 };
#else
enum { STACK = 2 << 20, RESERVE = 4096 };    /* what gates keep is 8 KiB a call there: room for SVE's longest vectors */
#endif
extern volatile int seen;
extern __thread char *limit;
long deeper(long level);              /* calls down */
void bottom(void);
void leave(void);                     /* back to the enter that is under way */
void yield(void);                     /* the scheduler of this thread; some other thread goes on */
long down(long level), worked(long x), jumping(long x), yielding(long x);
