"""Compiles the shim when the package is built; everything else about the package is in setup.cfg.

The shim is C for the target's machine, not a Python extension: one shared library, shipped as package data.
"""

import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution


class BuildWithShim(build_py):
    """build_py, and psu_bin/shim/libpsu_shim.so beside the modules (in place for an editable install)."""

    def run(self):
        here = Path(__file__).resolve().parent
        folder = here / "psu_bin" if self.editable_mode else Path(self.build_lib).resolve() / "psu_bin"
        target = folder / "shim" / "libpsu_shim.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        subprocess.run(["make", "-C", str(here / "shim"), f"CC={compiler}", f"OUT={target}"], check=True)
        super().run()


class BinaryDistribution(Distribution):
    """A wheel with the shim in it fits one platform only."""

    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithShim}, distclass=BinaryDistribution)
