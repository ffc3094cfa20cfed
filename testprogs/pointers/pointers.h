/* What the program and its patch share. */
#ifdef __clang__
#define OPAQUE __attribute__((noinline, optnone))
#else
#define OPAQUE __attribute__((noipa))
#endif
typedef int function(int);
extern function *table[], *kept[];
int open_(int n);
void taken(function **out);
void others(function **out);
