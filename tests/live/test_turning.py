"""Direct calls: of the function itself while that is the original, turned before its first patch, and back when that is reverted."""

import re
from pathlib import Path

import pytest
from conftest import GUARDED, MACHINE, MARKED, psu_bin, updates
from psu_bin import arch as arch_package
from psu_bin.attach import mirrors, target, turning
from psu_bin.attach.process import Process
from psu_bin.attach.revert import revert
from psu_bin.attach.transaction import attach


class Calls:
    """The direct calls in a running program."""

    def __init__(self, pid):
        self.target = target.read(Process(pid))
        self.process = self.target.process
        self.module = next(m for m in self.target.modules if m.executable)
        self.form = arch_package.for_machine(self.module.machine, self.module.path).site_form

    def of(self, name):
        """Those of one function."""
        runs = mirrors.known(self.process, self.target.runtime(), self.module)
        functions = self.module.descriptor.functions
        return [s for s in turning.read_sites(self.process, self.module, runs) if functions[s.function].name == name]

    def closed(self, name):
        """Whether they are turned, all of them."""
        entry = next(f.address for f in self.module.descriptor.functions if f.name == name) + self.module.load_bias
        found = {self.form.target(s.at, s.field) != entry for s in self.of(name)}
        assert len(found) == 1
        return found.pop()

    def code(self):
        """What maps says of the program's code."""
        return {(m.start, m.end, m.prot) for m in self.process.maps() if "x" in m.prot and m.path}


@pytest.mark.parametrize("flags", [(), ("-no-pie",), (GUARDED,)], ids=" ".join)
def test_closed_for_patches_and_opened_by_revert_while_threads_call(lab, flags):
    running = lab.start(lab.program("near", "-O2", *flags, sources=("main.c", *(MARKED if flags == (GUARDED,) else ()))), "3")
    running.expect("ready")
    stubs = Calls(running.pid)
    assert not stubs.closed("inner") and not stubs.closed("outer")
    code = stubs.code()
    for v in range(1, 6):
        psu_bin("attach", running.pid, lab.patch("near", "patch.c", f"-DV={v}"))
        running.say("call")
        running.expect(f"^version {v * 1001}$")
        assert stubs.closed("inner") and not stubs.closed("outer")
        assert stubs.code() == code, "no code is writable"
    running.say("quit")
    running.expect("^end$")


def guarded(running):
    """The program's mappings of code in which the processor lets branches lead to marks only."""
    found, header = set(), ""
    for line in Path(f"/proc/{running.pid}/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            header = line
        elif line.startswith("VmFlags:") and "bt" in line.split() and header.endswith("/main.psu"):
            found.add(header.split()[0])
    return found


@pytest.mark.skipif(MACHINE != "aarch64", reason="x86-64's marks are not checked in programs")
def test_code_in_which_branches_must_meet_marks_keeps_that(lab):
    running = lab.start(lab.program("near", "-O2", GUARDED, sources=("main.c", *MARKED)), "0")
    running.expect("ready")
    before = guarded(running)
    assert len(before) == 2, "the program's code, and what instrument added"
    for v in 1, 2:
        psu_bin("attach", running.pid, lab.patch("near", "patch.c", f"-DV={v}", GUARDED))
        running.say("call")
        running.expect(f"^version {v * 1001}$")
        assert guarded(running) == before and Calls(running.pid).closed("inner")
    psu_bin("revert", running.pid, "--original")
    assert guarded(running) == before and not Calls(running.pid).closed("inner")


def test_many_times_open_and_closed(lab):
    running = lab.start(lab.program("near", "-O2"), "0")
    running.expect("ready")
    stubs = Calls(running.pid)
    patch = lab.patch("near", "patch.c", "-DV=1")
    for _ in range(updates(50)):
        attach(running.pid, (patch,))
        running.say("call")
        running.expect("^version 1001$")
        assert stubs.closed("inner")
        revert(running.pid, None)
        running.say("call")
        running.expect("^version 0$")
        assert not stubs.closed("inner")


def test_what_somebody_else_changed_is_left_alone(lab):
    running = lab.start(lab.program("near", "-O2"), "0")
    running.expect("ready")
    site = Calls(running.pid).of("inner")[0]
    patch = lab.patch("near", "patch.c", "-DV=1")
    with open(f"/proc/{running.pid}/mem", "r+b", buffering=0) as memory:     # as debuggers write
        memory.seek(site.at)
        memory.write(b"\xcc")
        refused = psu_bin("attach", running.pid, patch, check=False)
        assert refused.status == 1 and re.search(r"somebody has changed the call at .*: cc .*breakpoint",
                                                 refused.err), refused.err
        memory.seek(site.at)
        memory.write(site.field[:1])
    running.say("call")
    running.expect("^version 0$")
    psu_bin("attach", running.pid, patch)
    running.say("call")
    running.expect("^version 1001$")


def test_calls_inside_one_of_many_objects(lab):
    running = lab.start(lab.program("objects"))
    running.expect("ready")
    pairs = range(10, 90)
    patches = {n: lab.patch("objects", "patch.c", f"-DN={n}", "-DV=1", out=f"{n}.o") for n in pairs}
    inner = {n: lab.patch("objects", "patch.c", f"-DN={n}", "-DV=2", "-DINNER", out=f"inner{n}.o")
             for n in (10, 73, 74, 75, 89)}

    def expect(changed):
        for n in pairs:
            running.say(str(n))
            assert running.expect(rf"^{n}: (.*)$")[1] == f"1 {2 if n in changed else 1}"

    for n in pairs:
        attach(running.pid, (patches[n],))
    expect(())
    for n in inner:
        attach(running.pid, (inner[n],))
    expect(inner)
    for n in reversed(inner):
        revert(running.pid, None)
    expect(())
    assert running.alive()
