/* Version V of the job. */
#include <stdio.h>
void wait_for_end(int number);
void job(int number)
{
    printf("job %d began in %d\n", number, V);
    wait_for_end(number);
    printf("job %d ended in %d\n", number, V);
}
