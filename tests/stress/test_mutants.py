"""The tests notice mistakes in the shim: some of scripts/mutants, and that all of them can still be made."""

from __future__ import annotations

import platform

import pytest
from mutant_list import MUTANTS, SHORT
from mutants import ROOT, Skipped, survives

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="mutants of the x86-64 gates")


@pytest.mark.parametrize("name", SHORT)
def test_a_mistake_in_the_shim_is_noticed(name: str) -> None:
    try:
        survived, found = survives(next(m for m in MUTANTS if m.name == name))
    except Skipped as e:
        pytest.skip(str(e))
    assert not survived, name
    assert "hangs" not in found


def test_every_mutant_has_what_it_changes_and_somebody_who_must_notice() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    model = "".join((ROOT / "tests" / "model" / f"test_{name}.py").read_text() for name in ("model", "turning_model"))
    for m in MUTANTS:
        text = (ROOT / m.file).read_text()
        assert text.count(m.old) == 1, f"{m.name}: {text.count(m.old)}"
        assert m.old != m.new and m.why
        assert f'"{m.model}"' in model if m.model else m.tests, m.name
