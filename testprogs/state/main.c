/* State that new versions share with the program: globals, statics of two files with one name, static locals, thread-locals.
 *
 * Prints one line a round; the patches change the function and go on with the same variables. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

int global = 100;
static int shared = 1000;             /* other.c has one with this name */
__thread int per_thread = 7;
struct point { int x, y; } place = {1, 2};
const char *message = "first";
int other(void);

__attribute__((noipa)) int count(void)
{
    static int calls;
    return ++calls;
}

static pthread_mutex_t whole = PTHREAD_MUTEX_INITIALIZER;      /* a line is not mixed with the counts of another */

__attribute__((noipa)) void round_of(const char *who)
{
    shared++;
    per_thread++;
    printf("%s v0 global %d shared %d calls %d thread %d place %d other %d %s\n", who, global, shared, count(), per_thread,
           place.x, other(), message);
}

static void *work(void *unused)
{
    per_thread = 50;
    for (;;) {
        usleep(30000);
        pthread_mutex_lock(&whole);
        round_of("worker");
        pthread_mutex_unlock(&whole);
    }
    return unused;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_t t;
    pthread_create(&t, 0, work, 0);
    for (;;) {
        pthread_mutex_lock(&whole);
        round_of("main");
        pthread_mutex_unlock(&whole);
        usleep(30000);
    }
}
