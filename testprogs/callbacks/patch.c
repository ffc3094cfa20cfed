/* Everything that somebody else calls, version V; main, too, which nobody calls again. */
#include <pthread.h>
#include <stdio.h>
#include "callbacks.h"

__attribute__((noipa)) int early(void) { early_calls++; return V; }
__attribute__((noipa)) int compare(const void *a, const void *b) { compared = V; return *(const int *)a - *(const int *)b; }
__attribute__((noipa)) void *moment(void *p) { *(int *)p = V; return p; }
__attribute__((noipa)) void at_exit(void) { printf("exit %d\n", V); }
__attribute__((noipa)) void *stay(void *unused)
{
    printf("stuck %d\n", V);
    pthread_mutex_lock(&lock);
    while (!let_go)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return unused;
}
__attribute__((noipa)) void construct(void) { early(); }
__attribute__((noipa)) void destroy(void) { printf("destroyed %d\n", V); }
int main(void)
{
    printf("ERROR main %d\n", V);
    return 1;
}
