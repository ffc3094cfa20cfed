/* A program that becomes another one when it is told to, and otherwise waits: nothing in its memory changes by itself.
 *
 * A line on standard input says what it does:
 *   leader PROGRAM   its first thread replaces it
 *   thread PROGRAM   another thread does, and takes the first one's number (de_thread in the kernel)
 *   call             prints "answer A pair P": what the functions give; the pair is always 41
 *   end              ends with status 7
 * Prints "ready" first.  With -DOTHER it is another build: the functions are others, and in another order. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef OTHER
__attribute__((noipa)) int added(void) { return 41; }
__attribute__((noipa)) int pair(void) { return added(); }
__attribute__((noipa)) int answer(void) { return 0; }
#else
__attribute__((noipa)) int answer(void) { return 0; }
__attribute__((noipa)) int pair(void) { return 41; }
#endif

static int wish[2];

static void become(const char *program)
{
    execl(program, program, (char *)0);
    puts("ERROR exec");
}

static void *worker(void *unused)
{
    char program[900] = "";
    while (read(wish[0], program, sizeof program - 1) > 0)
        become(program);
    return unused;
}

int main(void)
{
    char line[1000], program[900];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (pipe2(wish, O_CLOEXEC))
        return 1;
    pthread_create(&t, 0, worker, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "leader %899s", program) == 1)
            become(program);
        else if (sscanf(line, "thread %899s", program) == 1)
            write(wish[1], program, strlen(program));
        else if (!strncmp(line, "call", 4))
            printf("answer %d pair %d\n", answer(), pair());
        else if (!strncmp(line, "end", 3))
            return 7;
    }
    return 0;
}
