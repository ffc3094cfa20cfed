/* A program and a shared library, both instrumented.
 *
 * Proves: a new version in one module is reached by calls from the other, through the PLT, the GOT, a pointer handed over, dlsym;
 * the pointers to one function that the two modules see are equal; patches of both modules commit together.
 * Prints one line a round; ERROR when a round saw price and discount of different patches ("both" in the patches). */
#define _GNU_SOURCE
#include "library.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

int sold_at_least(int n);
PSU_UPDATABLE int discount(int amount) { return -amount; }

static int (*volatile kept_in_data)(int) = discount;    /* a relative relocation, as of `counter` in the library */

static void *work(void *unused)
{
    for (;;)
        total(1);
    return unused;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_t t;
    pthread_create(&t, 0, work, 0);
    int (*kept)(int) = price;
    for (;; usleep(20000)) {
        int (*named)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "price");
        printf("plt %d total %d pointer %d handed %d named %d back %d same %d sold %d\n", price(1), total(1), kept(1),
               each(price, 1), named(1), each(kept_in_data, 1), kept == price && named == price, sold_at_least(1));
    }
}
