/* A state machine whose states are functions, reached through pointers: each state returns the next one.
 *
 * Proves that pointers which the program stored before a patch lead to the new version: each thread keeps its next
 * state in a structure, and a table holds all of them. Each machine counts its steps and checks that no state was
 * skipped.
 * Usage: main [THREADS]; prints what colour the lights show; "ERROR" when a check fails. */
#include "machine.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

state *const states[3] = {red, green, yellow};

struct next red(struct machine *m) { m->last = "red 1"; return (struct next){green}; }
struct next green(struct machine *m) { m->last = "green 1"; return (struct next){yellow}; }
struct next yellow(struct machine *m) { m->last = "yellow 1"; return (struct next){red}; }

static void *run(void *argument)
{
    struct machine *m = argument;
    for (m->now = red;; m->steps++) {
        if (m->now != states[m->steps % 3]) {
            printf("ERROR: step %lu is in the wrong state\n", m->steps);
            exit(1);
        }
        m->now = m->now(m).to;
        usleep(500);
    }
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    struct machine *machines = calloc(threads, sizeof *machines);
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        machines[i].last = "off";
        pthread_create(&t, 0, run, &machines[i]);
    }
    for (unsigned n = 0;; n++) {
        struct machine *m = &machines[n % threads];
        /* Three steps from here on: what a thread did before it lost its processor for a while is not shown. */
        for (unsigned long before = m->steps; m->steps < before + 3;)
            usleep(1000);
        printf("light %s\n", m->last);
    }
}
