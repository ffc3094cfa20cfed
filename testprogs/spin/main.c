/* Threads hammer two functions that every patch replaces together.
 *
 * Proves: no thread ever goes back to an older version; the functions of one patch switch at one instant (a thread that saw
 * version N of `first` never sees less than N of `second` after it); freed code is not executed (it is unmapped).
 * Usage: main THREADS.  Prints "version N" when it first sees N, "ERROR ..." when something is wrong.
 * Signals with SIGALRM at a high rate call the functions, too, when ALARM=1 is in the environment. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

__attribute__((noipa)) int first(void) { return 0; }
__attribute__((noipa)) int second(void) { return 0; }

static void complain(const char *what, int a, int b)
{
    char text[100];
    int n = snprintf(text, sizeof text, "ERROR %s %d %d\n", what, a, b);
    if (write(1, text, n) != n)
        _exit(3);
}

static void check(int *newest)
{
    int a = first(), b = second();
    if (a < *newest)
        complain("went back", a, *newest);
    if (b < a)
        complain("switched apart", a, b);
    *newest = b;
}

static void *work(void *unused)
{
    int newest = 0;
    for (;;)
        check(&newest);
    return unused;
}

static void on_alarm(int number)
{
    static __thread int newest;
    (void)number;
    check(&newest);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (getenv("ALARM")) {
        struct sigaction a = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
        struct itimerval t = {{0, 500}, {0, 500}};
        sigaction(SIGALRM, &a, 0);
        setitimer(ITIMER_REAL, &t, 0);
    }
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        pthread_create(&t, 0, work, 0);
    }
    for (int last = -1;;) {
        int now = first();
        if (now != last)
            printf("version %d\n", now);
        last = now;
        usleep(1000);
    }
}
