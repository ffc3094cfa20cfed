"""dlopen and dlclose of an instrumented library: without patches it goes, with patches it stays."""

import pytest
import subprocess

from conftest import WAIT, psu_bin, updates
from updating import Versions


@pytest.fixture
def host(lab):
    """A host that is not instrumented, and an instrumented plugin."""
    plugin = lab.program("unload", "-fPIC", "-shared", sources=("plugin.c",), out="plugin.so")
    running = lab.start(lab.program("unload", "-ldl", instrument=False))
    running.expect("^ready$")
    running.plugin = plugin
    return running


def ask(running, command, answer):
    running.say(command)
    running.expect(answer)


def test_a_library_without_patches_is_unloaded(host):
    ask(host, f"load {host.plugin}", "^loaded$")
    ask(host, "call", "^plugin 1$")
    ask(host, "unload", "^unloaded 0 gone$")
    ran = psu_bin("status", host.pid, check=False)
    assert ran.status == 1 and "is not instrumented" in ran.err


def test_a_patched_library_stays_and_is_found_again(lab, host):
    versions = Versions(lab, "unload", "patch.c", "-fPIC")
    ask(host, f"load {host.plugin}", "^loaded$")
    ask(host, "call", "^plugin 1$")
    versions.attach(host.pid, 10000)
    ask(host, "call", "^plugin 10002$")
    ask(host, "unload", "^unloaded 0 there$")
    versions.attach(host.pid, 20000)
    ask(host, f"load {host.plugin}", "^loaded$")
    ask(host, "call", "^plugin 20003$")
    psu_bin("revert", host.pid, "--original", "--wait", "--timeout", WAIT)
    ask(host, "unload", "^unloaded 0 there$")
    ask(host, f"load {host.plugin}", "^loaded$")
    ask(host, "call", "^plugin 4$")


def test_a_refused_patch_pins_nothing(lab, host):
    ask(host, f"load {host.plugin}", "^loaded$")
    (lab.folder / "wrong.c").write_text("int nowhere(int); int inner(int x) { return nowhere(x); }")
    subprocess.run(["gcc", "-fPIC", "-c", "wrong.c"], cwd=lab.folder, check=True)
    ran = psu_bin("attach", host.pid, lab.folder / "wrong.o", check=False)
    assert ran.status == 1 and "nowhere" in ran.err
    ask(host, "unload", "^unloaded 0 gone$")


def test_a_library_that_comes_and_goes_while_it_is_patched(lab, host):
    """Until an attach meets it loaded, attaches are refused; from then on it stays."""
    from psu_bin.errors import PsuError
    versions = Versions(lab, "unload", "patch.c", "-fPIC")
    host.say(f"cycle {host.plugin} 400000")
    host.expect("^cycling")
    done = 0
    wanted = updates(100)
    for _ in range(3000):
        try:
            versions.attach(host.pid, done + 1)
            done += 1
        except PsuError as e:
            assert not done, e
        if done == wanted:
            break
    assert done == wanted
    host.expect(rf"^cycling {done}\d\d\d\d?\d?\d?$")
    assert host.alive()
