/* Pointers to functions, taken in the program, in its data and in a patch: C demands that they compare equal.
 *
 * Proves: wherever a pointer to a function comes from, it is the same one; and it leads to the newest version.
 * Line "check": prints "same" or what differs, and "calls V1 V2 ..." through every pointer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "pointers.h"

OPAQUE int open_(int n) { return n * 10; }
static OPAQUE int hidden(int n) { return n * 10; }
function *table[] = {open_, hidden, abs};
static function *const volatile constants[] = {open_, hidden, abs};
function *kept[3];

OPAQUE void taken(function **out)
{
    out[0] = open_;
    out[1] = hidden;
    out[2] = abs;
}
OPAQUE void others(function **out)
{
    for (int i = 0; i < 3; i++)
        out[i] = constants[i];
}

static void check(void)
{
    function *here[3], *there[3];
    int bad = 0;
    taken(here);
    others(there);
    for (int i = 0; i < 3; i++) {
        bad |= (here[i] != kept[i]) << i | (there[i] != kept[i]) << (i + 3) | (table[i] != kept[i]) << (i + 6);
        if (i < 2)
            printf("call %d %d %d %d\n", here[i](1), there[i](1), table[i](1), kept[i](1));
    }
    void *found = dlsym(RTLD_DEFAULT, "open_");
    bad |= (found && found != (void *)kept[0]) << 9;
    if (bad)
        printf("different %#x\n", bad);
    else
        puts("same");
}

static void *wait_(void *unused) { for (;;) pause(); return unused; }

int main(void)
{
    char line[64];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_create(&t, 0, wait_, 0);
    taken(kept);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        check();
}
