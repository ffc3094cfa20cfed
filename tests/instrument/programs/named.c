/* Asks for the names of addresses in its own code, as crash handlers do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEPARATE __attribute__((noipa))

SEPARATE void inner(void)
{
    void *frames[4];                      /* as many as are ours */
    int count = backtrace(frames, 4);
    char **names = backtrace_symbols(frames, count);
    for (int i = 0; i < count; i++) {
        Dl_info info;
        printf("%.*s) %d", (int)strcspn(names[i], ")"), names[i], i);
        if (dladdr(frames[i], &info) && info.dli_sname)
            printf(" in %s, near its begin %d", info.dli_sname, (char *)frames[i] - (char *)info.dli_saddr < 400);
        puts("");
    }
    free(names);
}

SEPARATE void outer(void) { inner(); puts("outer"); }
#ifdef ALIASES
void another(void) __attribute__((alias("outer")));
void third(void) __attribute__((weak, alias("outer")));
#endif

static SEPARATE void hidden(void) { outer(); puts("hidden"); }

int main(void)
{
    Dl_info info;
    hidden();
    int found = dladdr((void *)outer, &info);
    printf("dladdr %s %d\n", found ? info.dli_sname : "-", found && info.dli_saddr == (void *)outer);
    printf("the same %d %d\n", dlsym(RTLD_DEFAULT, "outer") == (void *)outer, !dlsym(RTLD_DEFAULT, "hidden"));
    return 0;
}
