/* New round_of and count: same variables, and new ones: a static, a global with a value, an array, a string. */
#include <stdio.h>
extern int global;
static int shared;
extern __thread int per_thread;
extern struct point { int x, y; } place;
extern const char *message;
int other(void);
int brand_new = 42;
static int fresh[100];
int count(void)
{
    static int calls;
    return calls += 10;
}
void round_of(const char *who)
{
    static int rounds = 70;
    shared++;
    per_thread++;
    fresh[3]++;
    place.x = 9;
    message = "kept after the version is gone";
    printf("%s v1 global %d shared %d calls %d thread %d place %d other %d new %d rounds %d fresh %d\n", who, ++global, shared,
           count(), per_thread, place.x, other(), brand_new++, ++rounds, fresh[3]);
}
