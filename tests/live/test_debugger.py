"""What a debugger sees of injected code: names and lines, in a live process and in core dumps."""

import platform
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, PROGRAMS, WAIT, psu_bin, updates

from psu_bin.attach.transaction import attach

pytestmark = pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
UPDATES = updates(100)
# On x86-64 gates have copies near the program, which go by one name and have a file of their own.
COUNTING, COPIES = ("psu_near", 1) if platform.machine() == "x86_64" else ("psu_(plain|side)", 0)
SOURCE = (PROGRAMS / "crash" / "patch.c").read_text().splitlines()
LIST = ("p $entry = __jit_debug_descriptor.first", "while $entry", "printf \"entry %#lx\\n\", $entry->symfile",
        "set $entry = $entry->next", "end", "echo end of the list\\n")


def line(comment):
    return next(n for n, text in enumerate(SOURCE, 1) if f"/* {comment} */" in text)


def chain(place):
    """The frames from the patched function, in the line that `place` marks, through three kinds of gates."""
    return (rf"#\d+ .*\bfaulty \(.*\) at patch.c:{line(place)}\n#\d+ .* psu_full_gates \(.*\n#\d+ .* to_faulty \(.*\n"
            rf"#\d+ .* middle \(.*\) at patch.c:{line('from the middle')}\n#\d+ .* {COUNTING}_gates \(.*\n"
            rf"#\d+ .* to_middle \(.*\n#\d+ .* step \(.*\) at patch.c:{line('from the step')}\n"
            rf"#\d+ .* outer \(.*\) at patch.c:{line('from outside')}\n#\d+ .* {COUNTING}_gates \(.*\n"
            r"#\d+ .* work \(")


def gdb(folder, *arguments, run=()):
    script = folder / "commands.gdb"
    script.write_text("\n".join(run) + "\n")
    done = subprocess.run(["gdb", "-nx", "-q", "-batch", *map(str, arguments), "-x", str(script)], capture_output=True,
                          text=True, timeout=2 * WAIT, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


@pytest.fixture
def patched(lab):
    """The program with its patch, compiled with `flags`."""
    def start(*flags, cc="gcc", cores=False):
        lab.program("crash")
        before = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (before[1] if cores else 0, before[1]))
        running = lab.start("sh", "-c", f"cd {lab.folder} && exec ./main.psu")
        resource.setrlimit(resource.RLIMIT_CORE, before)
        running.expect("^ready$")
        psu_bin("attach", running.pid, lab.patch("crash", "patch.c", *flags, cc=cc))
        return running
    return start


@pytest.mark.parametrize("cc, flags", [("gcc", ()), ("gcc", ("-O0",)), ("gcc", ("-gdwarf-4", "-ffunction-sections")),
                                       ("gcc", ("-gz", "-g3", "-Os")),
                                       ("clang", ("-fno-inline", "-Wno-unknown-attributes"))], ids=str)
def test_a_backtrace_of_a_live_process(lab, patched, cc, flags):
    if not shutil.which(cc):
        pytest.skip(f"{cc} is not installed")
    running = patched(*flags, cc=cc)
    running.say("wait")
    running.expect("^inside$")
    text = gdb(lab.folder, "-p", running.pid, run=("thread apply all bt", *LIST))
    assert re.search(chain("the wait"), text), text
    assert text.count("\nentry 0x") == 1 + COPIES, text
    # Superseded and freed, it is gone from the debugger's list; what a thread still executes is not.
    again = lab.patch("crash", "patch.c")
    for _ in range(2 if flags else UPDATES):
        attach(running.pid, (again,))
    psu_bin("attach", running.pid, again)
    text = gdb(lab.folder, "-p", running.pid, run=("thread apply all bt", *LIST))
    assert re.search(chain("the wait"), text), text
    assert text.count("\nentry 0x") == 2 + COPIES and "end of the list" in text, text
    running.say("wait")        # the debugger left nothing behind
    running.expect("^inside$")


def test_a_core_dump_that_the_debugger_makes(lab, patched):
    running = patched()
    core = lab.folder / "core.gdb"
    debugger = subprocess.Popen(["gdb", "-nx", "-q", "-batch", "-p", str(running.pid), "-ex", "echo attached\\n",
                                 "-ex", "continue", "-ex", f"generate-core-file {core}", "-ex", "bt", "-ex", "kill"],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    try:
        while (text := debugger.stdout.readline()) and "attached" not in text:
            pass
        running.say("crash")
        text = debugger.communicate(timeout=2 * WAIT)[0]
    finally:
        debugger.kill()
        debugger.wait()
    assert "SIGSEGV" in text and re.search(chain("the fault"), text), text
    text = gdb(lab.folder, lab.folder / "main.psu", core, run=("bt",))
    assert re.search(chain("the fault"), text), text


def test_a_core_dump_of_the_kernel(lab, patched):
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"core dumps go elsewhere: {pattern}")
    if not resource.getrlimit(resource.RLIMIT_CORE)[1]:
        pytest.skip("core dumps are forbidden here: RLIMIT_CORE")
    running = patched(cores=True)
    running.say("crash")
    assert running.process.wait(timeout=PATIENCE) == -signal.SIGSEGV
    cores = [f for f in lab.folder.iterdir() if f.is_file() and f.read_bytes()[:17].startswith(b"\x7fELF")
             and f.read_bytes()[16:18] == b"\4\0"]
    assert cores, list(lab.folder.iterdir())
    text = gdb(lab.folder, lab.folder / "main.psu", cores[0], run=("bt", "p total"))
    assert re.search(chain("the fault"), text), text
    assert "$1 = 7\n" in text, text


JIT = """struct entry;
struct { unsigned version, action; struct entry *relevant, *first; } __jit_debug_descriptor = {1, 0, 0, 0};
__attribute__((noinline)) void __jit_debug_register_code(void) { __asm__ volatile(""); }
"""


def test_a_program_with_a_jit_compiler_of_its_own(lab):
    """It has the same two symbols: they stay its own, and debuggers see both lists."""
    (lab.folder / "jit.c").write_text(JIT)
    running = lab.start(lab.program("crash", str(lab.folder / "jit.c"), "-rdynamic"))
    running.expect("^ready$")
    psu_bin("attach", running.pid, lab.patch("crash"))
    running.say("wait")
    running.expect("^inside$")
    text = gdb(lab.folder, "-p", running.pid, run=("thread apply all bt", "p 'jit.c'::__jit_debug_descriptor"))
    assert re.search(chain("the wait"), text), text
    assert "first = 0x0}" in text, text


def test_without_debug_information_there_are_the_names(lab, patched):
    running = patched("-g0")
    running.say("wait")
    running.expect("^inside$")
    text = gdb(lab.folder, "-p", running.pid, run=("thread apply all bt",))
    assert re.search(r"#\d+ .* in faulty \(\)\n(.*\n){2}#\d+ .* in middle \(\)\n(.*\n){2}#\d+ .* in step \(\)\n"
                     r"#\d+ .* in outer \(\)", text), text
    assert re.search(r"#\d+ .* work \(", text), text


def test_lines_that_cannot_be_read_are_a_warning(lab):
    program = lab.program("crash")
    running = lab.start(program)
    running.expect("^ready$")
    patch = lab.patch("crash")
    data = bytearray(patch.read_bytes())
    subprocess.run(["objcopy", "-O", "binary", "--only-section=.debug_line", "--set-section-flags", ".debug_line=alloc",
                    patch, lab.folder / "lines"], check=True)
    section = (lab.folder / "lines").read_bytes()
    at = bytes(data).index(section)
    data[at + 4:at + 6] = b"\x77\0"             # its DWARF version
    patch.write_bytes(data)
    done = psu_bin("attach", running.pid, patch)
    assert "line numbers cannot be read: DWARF version 119" in done.out + done.err, done
    running.say("wait")
    running.expect("^inside$")
