"""Which version a call executes, and when: the newest for new calls, its own for one in progress, all functions at once."""

import platform
import re

import pytest
from conftest import GUARDED, WAIT, psu_bin


def patches(status):
    return {p["id"]: p for p in status["patches"]}


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("alarm", [False, True], ids=["calm", "signals"])
def test_versions_never_go_back_and_switch_together(lab, threads, alarm):
    running = lab.start(lab.program("spin"), threads, env={"ALARM": "1"} if alarm else None)
    running.expect("^version 0$")
    for v in range(1, 12):
        patch = lab.patch("spin", "patch.c", f"-DV={v}")
        result = psu_bin("attach", running.pid, patch, "--json").json
        assert sorted(result["functions"]) == ["first", "second"]
        assert result["threads_stopped"] == 0
        running.expect(f"^version {v}$", reject=f"ERROR|^version (?!{v}$|{v - 1}$)")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = patches(psu_bin("status", running.pid, "--json").json)
    assert status[11]["state"] == "current"
    assert all(p["state"] == "freed" and p["bytes"] == 0 for i, p in status.items() if i != 11)
    assert running.alive()


WAYS = "direct tail recursive data table register stack qsort thread dlsym".split()


@pytest.mark.parametrize("flags", [("-rdynamic",), ("-no-pie", "-rdynamic"), ("-O0", "-rdynamic"),
                                   (GUARDED, "-Wl,-z,now", "-fno-plt", "-rdynamic")],
                         ids=lambda f: " ".join(f))
def test_every_way_of_calling_reaches_the_newest_version(lab, flags):
    every_way(lab, flags, ())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="options of x86-64")
@pytest.mark.parametrize("flags", [("-mindirect-branch=thunk", "-mfunction-return=thunk"), ("-mcmodel=large",),
                                   ("-fsanitize=address", "-O1")], ids=lambda f: " ".join(f))
def test_program_and_patch_are_compiled_in_an_unusual_way(lab, flags):
    every_way(lab, (*flags, "-rdynamic"), [f for f in flags if "sanitize" not in f])


def every_way(lab, flags, of_patch):
    running = lab.start(lab.program("calls", *flags))

    def everywhere(v):
        return "^" + " ".join(f"{w} {v}" for w in WAYS) + " same 1$"

    running.expect(everywhere(0))
    for v in (1, 2):
        psu_bin("attach", running.pid, lab.patch("calls", "patch.c", f"-DV={v}", *of_patch))
        running.fresh()
        running.next()     # a line that was perhaps half computed before the commit
        line = running.expect("^direct").string
        assert re.match(everywhere(v), line), line
    psu_bin("revert", running.pid)
    running.fresh()
    running.next()
    assert re.match(everywhere(1), running.expect("^direct").string)
    psu_bin("revert", running.pid, "--original")
    running.fresh()
    running.next()
    assert re.match(everywhere(0), running.expect("^direct").string)


def test_a_thread_that_never_stops_running_keeps_its_version(lab):
    running = lab.start(lab.program("inprogress"))
    running.expect("ready")
    psu_bin("attach", running.pid, lab.patch("inprogress", "patch.c", "-DV=1"))
    running.say("busy")
    running.expect("busy 0 began in 1")
    psu_bin("attach", running.pid, lab.patch("inprogress", "patch.c", "-DV=2"))
    status = patches(psu_bin("status", running.pid, "--json").json)
    assert [status[i]["state"] for i in (1, 2)] == ["retired", "current"]
    assert re.search("1 call in progress of thread [0-9]+ in one of 2 functions: busy, job$|"
                                   "1 call in progress of thread [0-9]+ in one of 2 functions: job, busy$",
                                   status[1]["kept_because"]), status[1]["kept_because"]
    running.say("end 0")
    running.expect("busy 0 ended in 1")
    psu_bin("wait", running.pid, "--timeout", WAIT)


def test_a_call_in_progress_finishes_in_its_version_and_keeps_just_that(lab):
    running = lab.start(lab.program("inprogress"))
    running.expect("ready")
    running.say("start")
    running.expect("job 0 began in 0")
    for v in (1, 2, 3):
        psu_bin("attach", running.pid, lab.patch("inprogress", "patch.c", f"-DV={v}"))
        running.say("start")
        running.expect(f"job {v} began in {v}")
    status = patches(psu_bin("status", running.pid, "--json").json)
    assert [status[i]["state"] for i in (1, 2, 3)] == ["retired", "retired", "current"]
    assert [status[i]["activations"] for i in (1, 2, 3)] == [1, 1, 1]
    assert "in job" in status[1]["kept_because"]
    running.say("end 1")
    running.expect("job 1 ended in 1")
    for _ in range(100):       # the thread has said that it ends, and is not out of job yet
        failed = psu_bin("wait", running.pid, "--timeout", 0.2, check=False)
        assert failed.status == 1
        if "1 retired object" in failed.err:
            break
    assert "1 retired object" in failed.err
    status = patches(psu_bin("status", running.pid, "--json").json)
    assert [status[i]["state"] for i in (1, 2, 3)] == ["freed", "retired", "current"]
    running.say("end 2")
    running.expect("job 2 ended in 2")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    running.say("end 0")
    running.expect("job 0 ended in 0")
    running.say("end 3")
    running.expect("job 3 ended in 3")


@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_arguments_on_the_stack_arrive(lab, optimisation, cc):
    running = lab.start(lab.program("stackargs", optimisation, "-Wno-everything" if cc == "clang" else "-w", cc="gcc"))
    running.expect("^version 0$")
    for v in (1, 2, 3):
        psu_bin("attach", running.pid, lab.patch("stackargs", "patch.c", optimisation, f"-DV={v}", cc=cc))
        running.expect(f"^version {v}$")
    psu_bin("revert", running.pid, "--original", "--wait", "--timeout", WAIT)
    running.expect("^version 0$")


def test_virtual_functions_and_exceptions(lab):
    running = lab.start(lab.program("cxx", sources=("main.cc",), cc="g++"))
    running.expect("^area 16 version 0 caught 0 alive 0$")
    psu_bin("attach", running.pid, lab.patch("cxx", "patch.cc", cc="g++"))
    running.expect("^area 1600 version 1 caught 1 alive 0$")
    running.expect("^area 1600 version 1 caught none alive 0$")
    psu_bin("revert", running.pid, "--wait", "--timeout", WAIT)
    running.expect("^area 16 version 0 caught 0 alive 0$")


@pytest.mark.parametrize("variables", [0, 300])
@pytest.mark.parametrize("how", ["wait", "run"])
def test_a_single_thread_is_borrowed_once_and_sees_no_eintr(lab, how, variables):
    running = lab.start(lab.program("single"), how, env={f"VARIABLE_{n}": "value" for n in range(variables)})
    running.expect("ready")
    assert psu_bin("status", running.pid, "--json").json["agent"] is None
    first = psu_bin("attach", running.pid, lab.patch("single", "patch.c", "-DV=1"), "--json").json
    assert first["threads_stopped"] == 1
    running.say("5")
    running.expect("answer 1005")
    second = psu_bin("attach", running.pid, lab.patch("single", "patch.c", "-DV=2"), "--json").json
    assert second["threads_stopped"] == 0
    running.say("5")
    running.expect("answer 2005")
    assert "EINTR" not in running.seen


def test_a_plugin_in_a_host_that_is_not_instrumented(lab):
    host = lab.program("plugin", "-ldl", instrument=False)
    plugin = lab.program("plugin", "-fPIC", "-shared", sources=("plugin.c",), out="plugin.so")
    running = lab.start(host, plugin)
    running.expect("^plugin says 20$")
    result = psu_bin("attach", running.pid, lab.patch("plugin", "patch.c", "-fPIC", out="plugin.o"), "--json").json
    assert result["threads_stopped"] == 0
    running.expect("^plugin says 710$")
    psu_bin("revert", running.pid)
    running.expect("^plugin says 20$")


def test_wait_that_times_out_says_that_the_patch_is_in(lab):
    running = lab.start(lab.program("inprogress"))
    running.expect("ready")
    psu_bin("attach", running.pid, lab.patch("inprogress", "patch.c", "-DV=1"))
    running.say("start")
    running.expect("job 0 began in 1")
    ran = psu_bin("attach", running.pid, lab.patch("inprogress", "patch.c", "-DV=2"), "--wait", "--timeout", 0.1, "--json",
                  check=False)
    assert ran.status == 1 and ran.json["patch"] == 2 and "the change is in" in ran.err
    running.say("end 0")
    psu_bin("wait", running.pid, "--timeout", WAIT)
