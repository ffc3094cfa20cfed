/* A program whose patch has a fault: a core dump and a debugger must name the patched functions and their lines.
 *
 * A line on standard input lets a thread call `outer`, which calls `step`, which calls `middle`, which calls `faulty`;
 * after "wait" `faulty` waits for ever, after "crash" it crashes.  In the patch each goes through a gate of another kind: outer's is
 * plain, as the original calls library functions and no caller expects it to leave registers alone; middle has
 * arguments on the stack; faulty is small and leaves registers alone, which its callers might rely on.  They reach each
 * other through functions of the program, because calls inside one patch need no gate: `step` shows that. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int total = 7;
volatile int *where;

__attribute__((noipa)) void stay(void) { puts("inside"); for (;;) pause(); }
__attribute__((noipa)) int faulty(int n) { return n + total; }
__attribute__((noipa)) int middle(int a, int b, int c, int d, int e, int f, int g, int h)
{
    return printf("middle %d\n", a + b + c + d + e + f + g + h) + faulty(h);
}
static volatile int zero;
__attribute__((noipa)) int to_faulty(int n) { return faulty(n) + zero; }
__attribute__((noipa)) int to_middle(int a, int b, int c, int d, int e, int f, int g, int h)
{
    return middle(a, b, c, d, e, f, g, h) + zero;
}
__attribute__((noipa)) int step(int n) { return to_middle(n, 2, 3, 4, 5, 6, 7, 8) + 1; }
__attribute__((noipa)) int outer(int n) { puts("outer"); return step(n) + 1; }

static void *work(void *n) { printf("outer %d\n", outer((int)(long)n)); return 0; }

int main(void)
{
    char line[10];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        static int place;
        if (!strncmp(line, "wait", 4))
            where = &place;
        pthread_create(&t, 0, work, (void *)1L);
    }
    return 0;
}
