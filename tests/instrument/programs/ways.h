/* What ways.c and target.c share. */
#ifndef WAYS_H
#define WAYS_H

/* Not inlined, not cloned, nothing known of it by its callers: each call in the source is a call in the program. */
#if defined __clang__
#define KEPT __attribute__((noinline, used))
#else
#define KEPT __attribute__((noipa, used))
#endif
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

typedef int fn(int);

int target(int x);
int other(int x);
int aliased(int x);      /* a second name of target */
int deep(int x);         /* calls itself; slot `deep` changes when x is 3 */
int deep_other(int x);
void patch(const char *name);

#endif
