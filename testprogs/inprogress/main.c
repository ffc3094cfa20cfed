/* A call in progress finishes in the version it began in, and keeps exactly that version in memory.
 *
 * Each line on standard input starts a thread that calls `job`, which waits until it is told to end: "start", "end N"; or
 * `busy`, which runs all the time: "busy". */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
char ended[1000];

__attribute__((noipa)) void wait_for_end(int number)
{
    pthread_mutex_lock(&lock);
    while (!ended[number])
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

__attribute__((noipa)) void job(int number)
{
    printf("job %d began in 0\n", number);
    wait_for_end(number);
    printf("job %d ended in 0\n", number);
}

__attribute__((noipa)) void busy(int number)
{
    printf("busy %d began in 0\n", number);
    while (!__atomic_load_n(&ended[number], __ATOMIC_ACQUIRE))
        ;
    printf("busy %d ended in 0\n", number);
}

static void *keep_busy(void *number) { busy((int)(long)number); return 0; }
static void *start(void *number) { job((int)(long)number); return 0; }

int main(void)
{
    char line[100];
    long next = 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "start", 5) || !strncmp(line, "busy", 4)) {
            pthread_t t;
            pthread_create(&t, 0, *line == 's' ? start : keep_busy, (void *)next++);
        } else {
            pthread_mutex_lock(&lock);
            ended[atoi(line + 4)] = 1;
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
        }
    }
    return 0;
}
