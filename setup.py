"""Compiles the shim when the package is built; everything else about the package is in setup.cfg.

The shim is C for the target's machine, not a Python extension: one shared library, shipped as package data.  Where a
cross compiler for another architecture of shim/arch is installed, its shim is built and shipped, too, so that
`instrument` can write programs for that architecture.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:    # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel


class BuildWithShim(build_py):
    """build_py, and psu_bin/shim (library and psu.h) beside the modules (in place for an editable install)."""

    def run(self):
        here = Path(__file__).resolve().parent
        folder = here / "psu_bin" if self.editable_mode else Path(self.build_lib).resolve() / "psu_bin"
        target = folder / "shim" / "libpsu_shim.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        subprocess.run(["make", "-C", str(here / "shim"), f"CC={compiler}", f"OUT={target}"], check=True)
        shutil.copyfile(here / "shim" / "psu.h", target.with_name("psu.h"))
        own = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.split("-")[0]
        for arch in sorted(folder.name for folder in (here / "shim" / "arch").iterdir()):
            cross = f"{arch}-linux-gnu-gcc"
            if arch != own and shutil.which(cross):
                other = target.parent / arch / target.name
                subprocess.run(["make", "-C", str(here / "shim"), f"CC={cross}", f"OUT={other}"], check=True)
        super().run()


class ShimWheel(bdist_wheel):
    """A wheel for any Python 3 of one platform: what depends on the machine is the shim alone."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    """Installed where packages of one platform go."""

    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithShim, "bdist_wheel": ShimWheel}, distclass=PlatformDistribution)
