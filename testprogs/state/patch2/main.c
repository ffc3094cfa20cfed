/* Finds the variables that patch 1 brought along, and the string that it left in the program. */
#include <stdio.h>
extern int global;
static int shared;
extern __thread int per_thread;
extern const char *message;
extern int brand_new;
int count(void);
void round_of(const char *who)
{
    static int rounds = 70;
    printf("%s v2 global %d shared %d calls %d thread %d new %d rounds %d [%s]\n", who, global, ++shared, count(), ++per_thread,
           brand_new, ++rounds, message);
}
