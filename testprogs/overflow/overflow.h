/* Ten arguments, more than registers hold: a side-frame gate. */
#ifdef SIDE
#define MORE , int b, int c, int d, int e, int f, int g, int h, int i, int j
#define PASS , b, c, d, e, f, g, h, i, j
#define FIRST_PASS , 1, 2, 3, 4, 5, 6, 7, 8, 9
#define ALL_RIGHT (b == 1 && c == 2 && d == 3 && e == 4 && f == 5 && g == 6 && h == 7 && i == 8 && j == 9)
#else
#define MORE
#define PASS
#define FIRST_PASS
#define ALL_RIGHT 1
#endif
extern volatile int seen, wrong;
int dig(int level MORE), handled(int x);
/* A patch calls its own functions without a gate, but for those that it calls through pointers. */
extern int (*volatile again)(int level MORE);
#define DIG \
    __attribute__((noipa)) int dig(int level MORE) \
    { \
        volatile int here = level; \
        seen = V; \
        if (!ALL_RIGHT) \
            wrong = 1; \
        return again(level + 1 PASS) + here; \
    } \
    __attribute__((noipa)) int handled(int x) { return x + V; }
