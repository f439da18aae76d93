"""Where intermediate tensors lie in the block of memory that a run has.

Greedy (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020): one tensor after the other, each at
the lowest place that is free from the call that writes it to the last one that reads it; of several orders the one that takes
least. TVM's planner gives each tensor a whole storage of another; here several lie side by side where a large one was, at its low
end, which the caches still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tvmflow.build.constants import ALIGNMENT, LARGE, PAGE


class Life(NamedTuple):
    """Size of a tensor in bytes, and the numbers of the first and the last call that use it."""

    size: int
    first: int
    last: int


def plan(tensors: Sequence[Life]) -> tuple[list[int], int]:
    """Where each tensor begins, in bytes, and the bytes of all. Large ones begin at the same place of a page as the block."""
    orders: tuple[Callable[[Life], tuple[int, int]], ...] = (
        lambda life: (-life.size, life.first),
        lambda life: (life.first, -life.size),
        lambda life: (-life.last, -life.size),
    )
    indices = range(len(tensors))
    plans = (_in_order(tensors, sorted(indices, key=lambda i: order(tensors[i]))) for order in orders)
    return min(plans, key=lambda found: found[1])


def _in_order(tensors: Sequence[Life], order: Sequence[int]) -> tuple[list[int], int]:
    starts: dict[int, int] = {}
    for i in order:
        unit = PAGE if tensors[i].size >= LARGE else ALIGNMENT
        start = 0
        for begin, end in sorted((at, at + tensors[j].size) for j, at in starts.items() if _meet(tensors[i], tensors[j])):
            if start + tensors[i].size <= begin:
                break
            start = max(start, -(-end // unit) * unit)
        starts[i] = start
    end = max((start + tensors[i].size for i, start in starts.items()), default=0)
    return [starts[i] for i in range(len(tensors))], -(-end // ALIGNMENT) * ALIGNMENT


def _meet(one: Life, other: Life) -> bool:
    return one.first <= other.last and other.first <= one.last
