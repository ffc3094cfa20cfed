/* Every way to call a function: each prints the version that it reached.
 *
 * Proves the newest-version rule: direct call, tail call, recursion, pointer in data, in a structure, in a table, on the stack
 * and in a register, callback of a library function (qsort), a name looked up at run time, another module's call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((noipa)) int target(int depth) { return depth ? target(depth - 1) : 0; }
__attribute__((noipa)) int compare(const void *a, const void *b);
static int compared;
__attribute__((noipa)) int compare(const void *a, const void *b)
{
    compared = 0;
    return *(const int *)a - *(const int *)b;
}

int (*in_data)(int) = target;
static struct { const char *name; int (*function)(int); } in_table[] = {{"a", target}, {"b", target}};
int *const compared_at = &compared;

__attribute__((noipa)) int tail(int depth) { return target(depth); }
__attribute__((noipa)) int through(int (*f)(int)) { return f(0); }
__attribute__((noipa)) void *start(void *unused) { (void)unused; return (void *)(long)target(0); }

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    int (*kept)(int) = target;
    for (unsigned long n = 0;; n++) {
        int v[3] = {3, 1, 2};
        qsort(v, 3, sizeof v[0], compare);
        void *joined;
        pthread_t t;
        pthread_create(&t, 0, start, 0);
        pthread_join(t, &joined);
        int (*named)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "target");
        printf("direct %d tail %d recursive %d data %d table %d register %d stack %d qsort %d thread %d dlsym %d same %d\n",
               target(0), tail(0), target(3), in_data(0), in_table[n % 2].function(0), through(target), kept(0), compared,
               (int)(long)joined, named ? named(0) : -1, kept == in_data && kept == in_table[1].function && (!named || named == kept));
        usleep(20000);
    }
}
