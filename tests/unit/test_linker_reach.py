"""Names that lie more than 2 GiB away: every instruction that -fPIE code uses for them still works."""

import pytest
from linking_host import Host, compile_c, program

PROGRAM = "#include <stdio.h>\nint probe(long x) { return 1; }\n"

# opterr, optind, optopt: ints of libc that the program does not use, so that it has no copy of them.
PATCH = r"""
#include <stdio.h>
#include <unistd.h>
#include <string.h>
extern char **environ; extern int opterr, optind, optopt, getdate_err, daylight;
extern long timezone; extern char *tzname[2];
__attribute__((noinline)) int keep(int a, int b, int c, int d, int e, int f) {
    return a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6; }
int far_add(long a, long b);
asm(".text\n.type far_add,@function\n"
    "far_add: add %rsi,timezone(%rip)\n mov timezone(%rip),%rsi\n lea (%rsi,%rdi),%eax\n ret\n"
    ".size far_add,.-far_add\n");
int probe(long x) {
    switch (x) {
    case 0: return stderr == *&stderr && fprintf(stderr, "%s", "") == 0 && fileno(stderr) == 2;
    case 1: optind = 70000; optind += 5; optind++; return optind;
    case 2: { char ***p = &environ; return *p == environ && environ != 0; }
    case 3: timezone = 1L << 40; timezone |= 3; return (timezone >> 38) + (timezone & 7);
    case 4: optopt = 65; return keep(optopt, opterr, optopt, 4, 5, 6) + (optopt == 65) + (opterr != 0);
    case 5: { unsigned char *c = (unsigned char *)&optopt; *c = 200;
              return *(unsigned char *)&optopt + *(signed char *)&optopt; }
    case 6: { double d = timezone; timezone = 7; return (int)(d * 0 + timezone * 2.0); }
    case 7: return __sync_val_compare_and_swap(&optopt, 200, 9) * 10 + optopt;
    case 8: getdate_err = 3; return getdate_err * optopt / (daylight + 3);
    case 9: { float f = *(float *)&daylight; *(float *)&daylight = f + 1.5f; return *(float *)&daylight * 4; }
    case 10: optind = x * 3; return optind << (optopt & 7);
    case 12: timezone = 5; return far_add(1000, 30);
    case 11: { short s = 300; *(short *)&getdate_err = s; return *(short *)&getdate_err; }
    }
    return (long)tzname > 0;
}
"""
EXPECTED = [1, 70006, 1, 7, 65 + 2 + 195 + 16 + 25 + 36 + 2, 200 - 56, 14, 2009, 9, 6, 30 << 1, 300, 1035, 1]


@pytest.mark.parametrize("flags", [
    ("gcc", "-O2"), ("gcc", "-O0"), ("gcc", "-Os"), ("gcc", "-O2", "-mavx2"), ("gcc", "-O3", "-mfma"),
    ("clang", "-O2", "-fdirect-access-external-data"), ("clang", "-O0", "-fdirect-access-external-data")], ids=" ".join)
def test_data_of_a_library_that_the_program_has_no_copy_of(flags):
    cc, *flags = flags
    obj = compile_c(PATCH, "-fPIE", *flags, "-w", cc=cc)
    with Host(program(PROGRAM, "-O1", "-fPIE")) as host:
        linked = host.attach(obj)
        assert [host.call("probe", n) for n in range(14)] == EXPECTED
        code = linked.modules[0][0][0].regions[0]
        assert b"\x48\x8d\xa4\x24\x80\x00\x00\x00" in code.data, "some instruction needed a saved register"


@pytest.mark.parametrize("before", [b"", b"\x53", b"\x41\x57", b"\xf3\x0f\x1e\xfa", b"\x90" * 20], ids=len)
@pytest.mark.parametrize("opcode, prefix", [(b"\x8b", 0x48), (b"\x63", 0x48), (b"\x8b", 0), (b"\x0f\xb6", 0), (b"\x0f\xbf", 0x48)],
                         ids=lambda x: bytes(x).hex() if isinstance(x, bytes) else hex(x))
def test_loads_into_every_register_wherever_they_are(before, opcode, prefix):
    """The instruction is behind others of its function, which stay as they are."""
    import capstone

    from psu_bin.arch import x86_64_reach
    md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    at, slot, thunk = 0x401000, 0x402000, 0x403000
    for register in (0, 1, 2, 3, 5, 6, 7, *range(8, 16)):       # rsp is refused
        rex = prefix | (0x44 if register & 8 else 0)
        load = (bytes((rex,)) if rex else b"") + opcode + bytes((0x05 | (register & 7) << 3,)) + bytes(4)
        code = bytearray(before + load + b"\xc3")
        [was] = md.disasm(load, 0, 1)
        out = x86_64_reach.rewrite(code, len(before), at + len(before), slot, thunk)
        assert code[:len(before)] == before and code[-1:] == b"\xc3"
        [jump] = md.disasm(bytes(code[len(before):]), at + len(before), 1)
        assert (jump.mnemonic, jump.op_str) == ("jmp", hex(thunk))
        insns = list(md.disasm(out, thunk))
        assert insns[-1].mnemonic == "jmp" and insns[-1].op_str == hex(at + len(before) + len(load))
        base, new = insns[0].op_str.split(",")[0], insns[1]
        assert new.mnemonic == was.mnemonic, (new, was)
        assert new.op_str == was.op_str.replace("rip", base), (new.op_str, was.op_str)
