"""Runs in the arm64 guest: what the live tests need of it, one line each."""

import ctypes
import importlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import psu_bin  # noqa: E402

PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GETREGSET, NT_PRSTATUS = 7, 0x4206, 0x4207, 0x4204, 1
MEMBARRIER, REGISTER_SYNC_CORE, SYNC_CORE = 283, 1 << 6, 1 << 5      # of the arm64 system calls

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
libc.ptrace.restype = ctypes.c_long
scratch = Path(os.environ["TMPDIR"])

print("machine", platform.machine(), "processors", os.cpu_count())

# A program that the host compiled, and a message of a compiler that fails.
(scratch / "p.c").write_text('#include <unistd.h>\nint main(void) { write(1, "started\\n", 8); for (;;) pause(); }\n')
subprocess.run(["gcc", "-O2", "-o", "p", "p.c"], cwd=scratch, check=True)
failed = subprocess.run(["gcc", "-c", "none.c"], cwd=scratch, capture_output=True, text=True)
print("compiler", failed.returncode, "none.c" in failed.stderr)

with subprocess.Popen([scratch / "p"], stdout=subprocess.PIPE) as program:
    assert program.stdout and program.stdout.readline() == b"started\n"
    # The line is here before its write has returned; the program sleeps in nothing but pause().
    while "(sleeping)" not in Path(f"/proc/{program.pid}/status").read_text():
        time.sleep(0.001)
    assert libc.ptrace(PTRACE_SEIZE, program.pid, 0, 0) == 0, os.strerror(ctypes.get_errno())
    assert libc.ptrace(PTRACE_INTERRUPT, program.pid, 0, 0) == 0
    _, status = os.waitpid(program.pid, 0)
    registers = (ctypes.c_uint64 * 34)()
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(registers), ctypes.sizeof(registers))
    assert libc.ptrace(PTRACE_GETREGSET, program.pid, NT_PRSTATUS, ctypes.addressof(vector)) == 0
    # 34 words: x0 to x30, sp, pc, pstate.  pause() of libc is a ppoll, whose number (73) is in x8.
    print("ptrace", os.WIFSTOPPED(status), vector[1] // 8, registers[8])
    program.send_signal(signal.SIGKILL)

print("membarrier", libc.syscall(MEMBARRIER, REGISTER_SYNC_CORE, 0, 0), libc.syscall(MEMBARRIER, SYNC_CORE, 0, 0))
print("atomics", "atomics" in Path("/proc/cpuinfo").read_text())
for name in ("capstone", "click", "elftools", "numpy", "ptrace.binding", "pytest", "psu_bin.cli"):
    importlib.import_module(name)
print("modules", psu_bin.__version__)
print("error", file=sys.stderr)
sys.exit(7)
