"""The index of a section's objects finds what a look at each of them finds."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from psu_bin.attach.boundary import Ordered

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=10).map(
    lambda found: [SimpleNamespace(start=a, end=a + n) for a, n in sorted(found, key=lambda x: x[0])])


@given(spans, st.integers(-1, 45), st.integers(0, 16))
def test_as_by_looking_at_each(objects, at: int, more: int) -> None:
    ordered = Ordered(objects)
    assert ordered.covering(at) is next((o for o in objects if o.start <= at < o.end), None)
    assert ordered.ending(at) is next((o for o in objects if o.end == at and o.end > o.start), None)
    assert ordered.starting(at, at + more) is next((o for o in objects if at <= o.start <= at + more), None)
