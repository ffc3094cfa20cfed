/* A coroutine on a stack of its own, begun by code that moves the stack pointer itself and calls from there, as libdill does: what
 * the program and its patches share.  PROGRAMS: the patches have no such code, but call the program's.  POINTER: it calls through
 * a pointer. */
#include <setjmp.h>
#include <stdint.h>

extern jmp_buf back;
extern char stack_of_worker[];
enum { STACK = 64 << 10 };
void suspend(int version);
void start(void);
void worker(void);

#ifdef __aarch64__
#ifdef POINTER
#define CALL(function) "blr %1"
#else
#define CALL(function) "bl " #function
#endif
#define CALL_ON(stack, function) \
    __asm__ volatile("mov x19, sp\n\tmov sp, %0\n\t" CALL(function) "\n\tmov sp, x19" \
                     : : "r"(stack), "r"(function) : "x19", "x30", "memory")
#else
#ifdef POINTER
#define CALL(function) "call *%1"
#else
#define CALL(function) "call " #function
#endif
#define CALL_ON(stack, function) \
    __asm__ volatile("mov %%rsp, %%rbx\n\tmov %0, %%rsp\n\t" CALL(function) "\n\tmov %%rbx, %%rsp" \
                     : : "r"(stack), "r"(function) : "rbx", "memory")
#endif

#ifdef PROGRAMS
/* It is a function of the program that moves the stack pointer: it returns on the other stack. */
int moved(void *stack);
#undef CALL_ON
#define CALL_ON(stack, function) if (moved(stack)) function()
#endif

/* The call is the object's own, and goes on when `start` has returned. */
#define START __attribute__((noipa)) void start(void) \
{ \
    if (!_setjmp(back)) \
        CALL_ON(stack_of_worker + STACK, worker); \
}
#define WORKER(v) __attribute__((noipa)) void worker(void) \
{ \
    for (;;) \
        suspend(v); \
}
