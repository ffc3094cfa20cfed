"""The package as others get it: what a source distribution holds, and that a wheel made of it works away from this folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built of a source distribution, built of the files that the repository tracks (or of all, without git)."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode == 0:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / name)
    else:
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".cache", "*.so"))
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=source)
    shutil.rmtree(source)
    [archive] = folder.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, archive,
        cwd=folder)
    [made] = folder.glob("*.whl")
    return made


def run(*command, cwd):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{command}: {done.stderr[-2000:]}")


def test_the_wheel_fits_any_python_of_this_platform(wheel):
    assert wheel.name.startswith("psu_bin-") and "-py3-none-linux_" in wheel.name


def test_the_wheel_holds_both_licenses(wheel):
    with zipfile.ZipFile(wheel) as z:
        texts = [z.read(n).decode() for n in z.namelist() if "dist-info" in n and "LICENSE" in n]
    assert len(texts) == 2
    assert any("GNU GENERAL PUBLIC LICENSE" in t and "Version 2, June 1991" in t for t in texts)
    assert any(t.startswith("MIT License") for t in texts)


def test_an_installed_wheel_instruments_a_program(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path / "installed")
    purelib = next((tmp_path / "installed").glob("*.data/*"), tmp_path / "installed")
    assert (purelib / "psu_bin" / "shim" / "psu.h").read_text().count("PSU_UPDATABLE")
    (tmp_path / "p.c").write_text('#include <stdio.h>\n#include "psu.h"\nPSU_UPDATABLE int f(void) { return 7; }\n'
                                  'int main(void) { return printf("f %d\\n", f()) < 0; }\n')
    run("gcc", "-O2", f"-I{purelib}/psu_bin/shim", "-o", "p", "p.c", cwd=tmp_path)
    code = f"import sys; sys.path.insert(0, {str(purelib)!r}); import psu_bin.cli as c; " \
           f"assert c.__file__.startswith({str(purelib)!r}); c.main()"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, "instrument", "p"], cwd=tmp_path, env=env, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["./p.psu"], cwd=tmp_path, capture_output=True, text=True).stdout == "f 7\n"
    shim = purelib / "psu_bin" / "shim" / "libpsu_shim.so"
    assert (tmp_path / "libpsu_shim.so").read_bytes() == shim.read_bytes()


@pytest.mark.parametrize("module", ["psu_bin", "psu_bin.cli"])
def test_the_command_is_a_module_too(module):
    done = subprocess.run([sys.executable, "-m", module, "regress"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("psu-bin: regress: missing argument")
