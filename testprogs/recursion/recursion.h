/* What the program and its patches share. */
extern int deepest;
void middle(void);
long even(long n, long at);
long odd(long n, long a, long b, long c, long d, long e, long f, long g, long h, long at);
/* Through these, because calls from one function of a patch to another need no gate. */
extern long (*volatile to_even)(long n, long at);
extern long (*volatile to_odd)(long n, long a, long b, long c, long d, long e, long f, long g, long h, long at);
