"""Which words of a stack are addresses of code: the ends of ranges, and the highest address there is, against the plain way."""

import random

import numpy as np

from psu_bin.attach import borrow

RANGES = [(0x1000, 0x2000), (0x2000, 0x2008), (0x7F00_0000_0000, 0x7F00_0000_1000), ((1 << 64) - 0x1000, (1 << 64) - 8)]


def plain(words, ranges):
    found = [(i, n) for i, w in enumerate(words) for n, (start, end) in enumerate(ranges) if start <= w < end]
    return [i for i, _ in found], [n for _, n in found]


def test_words_are_found_as_the_plain_way_finds_them():
    edges = [e + d for r in RANGES for e in r for d in (-1, 0, 1)] + [0, (1 << 64) - 1]
    words = random.Random(7).choices(edges, k=500)
    for ranges in (RANGES, RANGES[:1], RANGES[2:], []):
        positions, which = borrow._among(np.array(words, "<u8"), ranges)
        assert (positions.tolist(), which.tolist()) == plain(words, ranges)
    assert plain(words, RANGES)[0]
    assert not borrow._among(np.array([], "<u8"), RANGES)[0].size
