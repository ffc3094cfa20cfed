/* What the program and its patches share. */
extern volatile int held, released, late_version, fresh_version;
extern void (*volatile fresh_one)(void);
long work(volatile long *in);
void late(void);
