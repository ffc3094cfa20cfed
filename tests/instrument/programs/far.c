/* Data between a program's code and its stubs, more than a branch of AArch64 spans; room near the code for stubs of the test's own. */
#ifdef __cplusplus
extern "C" {
#endif
char far_pool[200 << 20];
int far_use(long i) { return far_pool[i]; }
#ifdef __cplusplus
}
#endif

__asm__(".text\n.balign 4096\n.globl far_room\n.type far_room,%object\nfar_room: .skip 4096, 0\n.size far_room, 4096\n.previous");
