"""Solving set equations over a graph of basic blocks, with bit sets of registers, for a whole module at once.

Each round handles all nodes that changed in the round before; sets only grow, so it ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from psu_bin.instrument.blocks import spread


class Graph:
    """Edges grouped by where they come from."""

    def __init__(self, nodes: int, source: np.ndarray, target: np.ndarray) -> None:
        self._order = np.argsort(source, kind="stable")
        self._target = target[self._order]
        self._start = np.searchsorted(source[self._order], np.arange(nodes + 1))

    def edges(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of each edge that leaves `nodes`, as given to the constructor; where it leads)."""
        low = self._start[nodes]
        at = spread(low, self._start[nodes + 1] - low)
        return self._order[at], self._target[at]


def solve(state: np.ndarray, graph: Graph, carry: Callable[[np.ndarray], np.ndarray]) -> None:
    """Grow `state` (uint64, one a node) until for every edge, state[target] contains what the edge carries.

    carry(edges): what these edges, by number, carry at present.
    """
    active = np.flatnonzero(state)
    while len(active):
        edges, target = graph.edges(active)
        value = carry(edges)
        new = value & ~state[target]
        some = np.flatnonzero(new)
        np.bitwise_or.at(state, target[some], value[some])
        active = np.unique(target[some])
