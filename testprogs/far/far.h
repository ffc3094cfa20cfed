enum { SIZE = 200 << 20, ENDS = 4096 };
extern char pool[SIZE];
extern int (*volatile pointer)(int);
int helper(int), direct(int), tail(int), pointed(int);
