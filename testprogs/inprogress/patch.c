/* Version V of the job. */
#include <stdio.h>
void wait_for_end(int number);
void job(int number)
{
    printf("job %d began in %d\n", number, V);
    wait_for_end(number);
    printf("job %d ended in %d\n", number, V);
}
extern char ended[];
__attribute__((noipa)) void busy(int number)
{
    printf("busy %d began in %d\n", number, V);
    while (!__atomic_load_n(&ended[number], __ATOMIC_ACQUIRE))
        ;
    printf("busy %d ended in %d\n", number, V);
}
