"""Names that a program gives to itself and to its files: bytes in the texts of /proc, which must not mislead anybody."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import WAIT, psu_bin

# What Python takes for ends of lines, no UTF-8, what looks like a field of stat and of status.
NAMES = [b"\xff\xfe \x85", b"a) Z 1 (\r", b"\rTgid:\t1", b"\x0bState: Z\x1c", b"\n \\n", b"\xe2\x80\xa8 x"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_attach_status_and_revert(lab, name):
    program = lab.program("names")
    folder = os.fsencode(lab.folder) + b"/" + name
    os.mkdir(folder)
    shutil.copy(os.fsencode(program), folder + b"/program " + name)
    shutil.copy(os.fsencode(lab.folder / "libpsu_shim.so"), folder)
    with open(folder + b"/file" + name, "wb") as f:
        f.write(b"x")
    p = lab.start(os.fsdecode(folder + b"/program " + name), os.fsdecode(name), os.fsdecode(folder + b"/file" + name))
    p.expect("version 0")
    psu_bin("attach", p.pid, lab.patch("names"))
    p.expect("version 1")
    status = psu_bin("status", p.pid, "--json").json
    assert [m["path"].encode("utf-8", "surrogateescape") for m in status["modules"]] == [folder + b"/program " + name]
    assert [x["state"] for x in status["patches"]] == ["current"] and status["agent"]
    psu_bin("revert", p.pid)
    p.expect("version 0")
    psu_bin("wait", p.pid, "--timeout", WAIT)
