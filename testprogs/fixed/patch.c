/* Sorts with the C library's strcmp.  The first version stores its address, the others compare with what is there.
 * DATA: takes the address of a variable of the C library, which no entry can stand for. */
#include <stdlib.h>
#include <string.h>

extern int (*stored)(const char *, const char *);
extern int (*own)(const char *);
extern char names[5][8];
extern char **environ;
int (*volatile wide)(const char *, const char *) = strcmp;

int sort(void)
{
#ifdef FIRST
    stored = strcmp;
#endif
    qsort(names, 5, sizeof *names, (int (*)(const void *, const void *))strcmp);
    return V;
}

int same(void)
{
#ifdef DATA
    char ***volatile p = &environ;
    if (!*p)
        return 0;
#endif
    return stored == strcmp && wide == stored && own == atoi && stored("same", "same") == 0 && stored("a", "b") < 0;
}
