/* What the program and its patches share. */
extern int early_calls, let_go, newest, ends, compared;
extern pthread_mutex_t lock;
extern pthread_cond_t changed;
void turn(void);
