"""One mistake that mutants.py makes: what is changed, why that is wrong, and what must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """name: for the command line; path: under shim/, or psu_bin/ and the rest; old is there exactly once; why: what goes
    wrong with `new`.

    tests: pytest's names of what must notice it, the quickest first; model: the mutant of tests/model/test_model.py
    that stands for it where no test on this machine can be sure to notice."""

    name: str
    path: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...] = ()
    model: str = ""

    @property
    def file(self) -> str:
        """The path from the root of the repository."""
        return self.path if self.path.startswith("psu_bin/") else f"shim/{self.path}"
