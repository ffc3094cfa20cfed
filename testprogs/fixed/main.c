/* A position-dependent program, for patches that hold addresses of the C library's functions in 32 bits.
 *
 * Proves: a patch compiled with -fno-pic may pass, store and compare addresses of functions whose address the program
 * never took, and those that it took; later versions compare equal with what earlier ones stored.
 * Each line on standard input runs sort and same once and is answered by "VERSION sorted|unsorted same|different". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int (*stored)(const char *, const char *);      /* by the patches only */
int (*own)(const char *) = atoi;                /* by the program: the linker gave atoi an address in it */
char names[5][8];

volatile int version;                           /* so that the caller cannot know what sort returns */

__attribute__((noinline)) int sort(void) { return version; }
__attribute__((noinline)) int same(void) { return stored == 0 && own == atoi; }

int main(void)
{
    char line[100];
    static const char given[5][8] = {"pear", "fig", "plum", "apple", "date"};
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        memcpy(names, given, sizeof names);
        int now = sort(), sorted = 1;
        for (int i = 1; i < 5; i++)
            if (strcmp(names[i - 1], names[i]) > 0)
                sorted = 0;
        printf("%d %s %s\n", now, sorted ? "sorted" : "unsorted", same() ? "same" : "different");
    }
    return 0;
}
