/* What the state machine and its patch share. */
struct machine;
struct next { struct next (*to)(struct machine *); };
typedef struct next state(struct machine *);
struct machine {
    state *now;
    volatile unsigned long steps;
    const char *volatile last;
};
#define KEPT __attribute__((noinline))
KEPT state red, green, yellow;
