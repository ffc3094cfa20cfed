/* Patched functions that somebody else calls: the C library, the dynamic linker, the start of a thread; and main itself.
 *
 * Proves: constructors, and what is called before main, can be patched later; callbacks of qsort and bsearch, start routines and exit
 * handlers run in the newest version; main and a start routine that never return go on in the version they began in.
 * Prints "early N" (what ran before main), "version N" when the loop of main first sees N, "stuck N" when a thread's life begins in N,
 * at the end (a line on standard input that says "end") "main N", "exit N", "destroyed N".  "ERROR ..." when something is wrong.
 * "stick" starts one more thread that stays in its start routine; "let go" ends all those. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "callbacks.h"

int early_calls, let_go, newest, ends;
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

__attribute__((noipa)) int early(void) { early_calls++; return 0; }
__attribute__((noipa)) int compare(const void *a, const void *b) { compared = 0; return *(const int *)a - *(const int *)b; }
__attribute__((noipa)) void *moment(void *p) { *(int *)p = 0; return p; }
__attribute__((noipa)) void at_exit(void) { puts("exit 0"); }
__attribute__((noipa)) void *stay(void *unused)
{
    puts("stuck 0");
    pthread_mutex_lock(&lock);
    while (!let_go)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return unused;
}
__attribute__((noipa, constructor)) void construct(void) { early(); }
__attribute__((noipa, destructor)) void destroy(void) { puts("destroyed 0"); }
static void before_all(int argc, char **argv, char **environment) { (void)argc, (void)argv, (void)environment; early(); }
__attribute__((section(".preinit_array"), used)) static void (*const first_of_all)(int, char **, char **) = before_all;

int compared;

static void *listen(void *unused)
{
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        pthread_t t;
        if (!strncmp(line, "stick", 5))
            pthread_create(&t, 0, stay, 0);
        pthread_mutex_lock(&lock);
        if (!strncmp(line, "let go", 6))
            let_go = 1;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        if (!strncmp(line, "end", 3))
            __atomic_store_n(&ends, 1, __ATOMIC_RELEASE);
    }
    return unused;
}

void turn(void)
{
    int numbers[50], key = 30, seen = newest, lived = -1;
    pthread_t t;
    for (int i = 0; i < 50; i++)
        numbers[i] = (i * 7) % 50;
    qsort(numbers, 50, sizeof *numbers, compare);
    for (int i = 0; i < 50; i++)
        if (numbers[i] != i)
            puts("ERROR not sorted");
    if (compared < seen)
        puts("ERROR an old version of compare");
    seen = compared;
    if (bsearch(&key, numbers, 50, sizeof *numbers, compare) != &numbers[30])
        puts("ERROR not found");
    if (compared < seen)
        puts("ERROR an old version of compare");
    seen = compared;
    if (pthread_create(&t, 0, moment, &lived) || pthread_join(t, 0) || lived < seen)
        puts("ERROR an old start routine");
    if (lived > newest)
        printf("version %d\n", newest = lived);
}

int main(void)
{
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    printf("early %d\n", early_calls);
    atexit(at_exit);
    pthread_create(&t, 0, listen, 0);
    while (!__atomic_load_n(&ends, __ATOMIC_ACQUIRE)) {
        turn();
        usleep(500);
    }
    puts("main 0");
    return 0;
}
