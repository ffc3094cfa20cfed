/* A program that gives itself the name argv[1] and keeps the file argv[2] mapped: both are bytes that others read in /proc.
 * Prints "version N" when it first sees N. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

__attribute__((noipa)) int first(void) { return 0; }

int main(int argc, char **argv)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    int file = argc == 3 ? open(argv[2], O_RDONLY) : -1;
    if (file < 0 || prctl(PR_SET_NAME, argv[1]) || mmap(0, 1, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED)
        return puts("ERROR"), 1;
    for (int last = -1;; usleep(1000)) {
        int now = first();
        if (now != last)
            printf("version %d\n", now);
        last = now;
    }
}
