/* A program that has reserved 16 TiB of memory, as AddressSanitizer does, and used a page in the middle.
 *
 * Calls first() and prints "version N" when it first sees N; patches may leave first() by longjmp(out, N). */
#include <setjmp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

jmp_buf out;

__attribute__((noipa)) int first(void) { return 0; }

int main(void)
{
    size_t size = (size_t)1 << 44;
    char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    if (memory == MAP_FAILED)
        return puts("ERROR"), 1;
    memory[size / 2] = 1;
    for (volatile int last = -1;; usleep(1000)) {
        int now = setjmp(out);
        if (!now)
            now = first();
        if (now != last)
            printf("version %d\n", now);
        last = now;
    }
}
