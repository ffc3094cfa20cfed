/* A caller in a patch that is in the middle of a call, while the functions that it is about to call get versions that change
 * more registers than it was compiled to expect: the program's own, by revert, and another patch's.
 *
 * Usage: main.  Lines in: "work" has another thread call work(), "go" lets the caller that is held go on, "late" calls late() by
 * a pointer, "stay" has a thread do so that stays in it until "leave".  Lines out: "ready"; "held" when a caller is; "done L F" behind a call of work(), where versions L and F of late and
 * fresh ran last; "late L"; "ERROR" for a wrong result. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "goback.h"
#include "../relying/relying.h"

static volatile int stay;
volatile int held, released, late_version = -1, fresh_version = -1;
void (*volatile fresh_one)(void);      /* a function that a patch brings along */
static void (*volatile late_one)(void);

#define ADD_NOW(n) sum = sum * 3 + in[n];

__attribute__((noinline)) void late(void)
{
    late_version = 0;
    while (stay)
        usleep(1000);
    SPOIL_GENERAL;
    SPOIL_VECTOR;
}
__attribute__((noinline)) long work(volatile long *in)
{
    long sum = 0;
    EACH_GENERAL(ADD_NOW)
    late();
    if (fresh_one)
        fresh_one();
    return sum;
}

static void *once(void *unused)
{
    long in[32], want = 0;
    for (int i = 0; i < 32; i++)
        in[i] = (i + 1) * 0x123456789abcdefl;
#define WANT(n) want = want * 3 + in[n];
    EACH_GENERAL(WANT)
    if (work(in) != want)
        puts("ERROR");
    printf("done %d %d\n", late_version, fresh_version);
    return unused;
}

static void *stays(void *unused)
{
    late_one();
    return unused;
}

int main(void)
{
    char line[80];
    pthread_t t, t2;
    setvbuf(stdout, 0, _IOLBF, 0);
    late_one = late;
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "late\n")) {
            late_one();
            printf("late %d\n", late_version);
            continue;
        }
        if (!strcmp(line, "go\n")) {
            released = 1;
            pthread_join(t, 0);
            continue;
        }
        if (!strcmp(line, "stay\n")) {
            stay = 1;
            late_version = -1;
            pthread_create(&t2, 0, stays, 0);
            while (late_version < 0)
                usleep(100);
            puts("staying");
            continue;
        }
        if (!strcmp(line, "leave\n")) {
            stay = 0;
            pthread_join(t2, 0);
            puts("left");
            continue;
        }
        held = released = 0;
        pthread_create(&t, 0, once, 0);
        while (!held && pthread_tryjoin_np(t, 0))
            usleep(100);
        if (held)
            puts("held");
    }
    return 0;
}
