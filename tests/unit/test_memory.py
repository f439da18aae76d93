"""Tensors that are needed at the same time lie side by side, others in the same place."""

from __future__ import annotations

import random

import pytest

from tvmflow.build.constants import ALIGNMENT, LARGE, PAGE
from tvmflow.build.memory import Life, plan


def most_alive(lives: list[Life]) -> int:
    """Bytes that no plan can do without."""
    return max(sum(life.size for life in lives if life.first <= call <= life.last) for call in range(100))


@pytest.mark.parametrize("seed", range(40))
def test_what_lives_at_once_lies_apart(seed: int) -> None:
    draw = random.Random(seed)
    begins = [draw.randrange(60) for _ in range(draw.randrange(1, 30))]
    lives = [
        Life(draw.choice((1, 64, 100, 4096, LARGE - 1, LARGE, LARGE + 65)), first, first + draw.randrange(12)) for first in begins
    ]
    starts, size = plan(lives)
    for i, one in enumerate(lives):
        assert starts[i] % (PAGE if one.size >= LARGE else ALIGNMENT) == 0
        assert starts[i] >= 0
        assert starts[i] + one.size <= size
        for j, other in enumerate(lives[:i]):
            if one.first <= other.last and other.first <= one.last:
                assert starts[i] + one.size <= starts[j] or starts[j] + other.size <= starts[i]
    assert size >= most_alive(lives)


def test_a_chain_takes_its_two_largest_neighbours() -> None:
    sizes = [96, 64, 256, 128, 640, 64, 512, 64]
    lives = [Life(size, call, call + 1) for call, size in enumerate(sizes)]
    assert plan(lives)[1] == most_alive(lives) == 640 + 128


def test_small_tensors_share_the_place_of_a_large_one() -> None:
    large, *small = lives = [Life(4 * LARGE, 0, 1), *(Life(PAGE, 2, 9) for _ in range(8))]
    starts, size = plan(lives)
    assert size == large.size
    assert sorted(starts[1:]) == [PAGE * i for i in range(8)]


def test_the_largest_first_is_not_always_best() -> None:
    """A chain whose last tensor is the largest: placed first, at the begin, it leaves a gap that is too small for the others."""
    lives = [Life(768, 0, 6), Life(6144, 2, 3), Life(6144, 3, 4), Life(6144, 4, 5), Life(6912, 5, 7)]
    assert plan(lives)[1] == most_alive(lives)


def test_nothing_takes_no_memory() -> None:
    assert plan([]) == ([], 0)
