/* New versions: the innermost one writes where it must not, or waits, if `where` is set. */
#include <stdio.h>

extern int total;
extern volatile int *where;
int to_faulty(int);
int to_middle(int, int, int, int, int, int, int, int);
void stay(void);

__attribute__((noipa)) int faulty(int n)
{
    int local = n * 100;
    if (where)
        stay();         /* the wait */
    *where = local;     /* the fault */
    return local + total;
}

__attribute__((noipa)) int middle(int a, int b, int c, int d, int e, int f, int g, int h)
{
    int before = to_faulty(h + 1);      /* from the middle */
    return printf("new middle %d\n", a + b + c + d + e + f + g + h) + before;
}

__attribute__((noipa)) int step(int n)
{
    int before = to_middle(n, 2, 3, 4, 5, 6, 7, 80);      /* from the step */
    return before + 1;
}

__attribute__((noipa)) int outer(int n)
{
    int before = step(n);      /* from outside */
    puts("new outer");
    return before + 2;
}
