/* What the program and its patches share. */
#ifdef __clang__
#define OPAQUE __attribute__((noinline, optnone))
#else
#define OPAQUE __attribute__((noipa))
#endif
extern int turn;
int first(void);
int second(void);
int last(void);
void seen(int a, int b, int c, int *newest);
int loop(int *newest, int left);
