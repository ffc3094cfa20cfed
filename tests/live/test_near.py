"""Near stubs: open while a function is the original, closed before its first patch, open again when that is reverted."""

import re

import pytest
from conftest import psu_bin
from psu_bin import arch as arch_package
from psu_bin import near_forms
from psu_bin.attach import near, target
from psu_bin.attach.process import Process
from psu_bin.attach.revert import revert
from psu_bin.attach.transaction import attach
from psu_bin.descriptor import NEAR


class Stubs:
    """The near stubs of a running program."""

    def __init__(self, pid):
        self.process = Process(pid)
        m = next(m for m in target.read(self.process).modules if m.executable)
        self.arch = arch_package.for_machine(m.machine, m.path)
        forms = {f.name: near_forms.in_program(self.arch, m.descriptor.flags, f.flags) for f in m.descriptor.functions}
        self.all = {f.name: near.Near(f.address + m.load_bias - len(forms[f.name].nop), m.stub(i), m.slot(i),
                                      forms[f.name], f.name)
                    for i, f in enumerate(m.descriptor.functions) if f.flags & NEAR}

    def closed(self, name):
        n = self.all[name]
        now = self.process.read(n.address, len(n.form.nop))
        assert now in (n.form.nop, n.form.jump(n.address, n.stub, n.slot)), now
        return now != n.form.nop

    def code(self):
        """What maps says of the program's code."""
        return {(m.start, m.end, m.prot) for m in self.process.maps() if "x" in m.prot and m.path}


@pytest.mark.parametrize("flags", [(), ("-no-pie",), ("-fcf-protection=full",)], ids=" ".join)
def test_closed_for_patches_and_opened_by_revert_while_threads_call(lab, flags):
    running = lab.start(lab.program("near", "-O2", *flags), "3")
    running.expect("ready")
    stubs = Stubs(running.pid)
    assert {"inner", "outer"} <= set(stubs.all) and not stubs.closed("inner") and not stubs.closed("outer")
    code = stubs.code()
    for v in range(1, 6):
        psu_bin("attach", running.pid, lab.patch("near", "patch.c", f"-DV={v}"))
        running.say("call")
        running.expect(f"^version {v * 1001}$")
        assert stubs.closed("inner") and not stubs.closed("outer")
        assert stubs.code() == code, "no code is writable"
    running.say("quit")
    running.expect("^end$")


def test_many_times_open_and_closed(lab):
    running = lab.start(lab.program("near", "-O2"), "0")
    running.expect("ready")
    stubs = Stubs(running.pid)
    patch = lab.patch("near", "patch.c", "-DV=1")
    for _ in range(50):
        attach(running.pid, (patch,))
        running.say("call")
        running.expect("^version 1001$")
        assert stubs.closed("inner")
        revert(running.pid, None)
        running.say("call")
        running.expect("^version 0$")
        assert not stubs.closed("inner")


def test_a_breakpoint_in_a_near_stub_is_left_alone(lab):
    running = lab.start(lab.program("near", "-O2"), "0")
    running.expect("ready")
    stubs = Stubs(running.pid)
    patch = lab.patch("near", "patch.c", "-DV=1")
    at = stubs.all["inner"].address
    with open(f"/proc/{running.pid}/mem", "r+b", buffering=0) as memory:     # as debuggers write
        memory.seek(at)
        memory.write(b"\xcc")
        refused = psu_bin("attach", running.pid, patch, check=False)
        assert refused.status == 1 and re.search(r"somebody has changed the code in front of inner: cc .*breakpoint",
                                                 refused.err), refused.err
        memory.seek(at)
        memory.write(stubs.all['inner'].form.nop[:1])
    running.say("call")
    running.expect("^version 0$")
    psu_bin("attach", running.pid, patch)
    running.say("call")
    running.expect("^version 1001$")
